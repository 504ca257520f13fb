"""The documents' blocks of code, and what a reader would do with them."""

import re
import shlex
import sys
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import popgraft
from popgraft import load_config
from popgraft.cli.app import main

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = {
    "total_timesteps": 1,
    "model.n_epochs": 1,
    "model.n_steps": 32,
    "pbt.perturbation_interval": 1,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
    "evaluation.max_steps": 20,
    "execute.shards": 1,  # a process takes longer to start than all of this
}
OTHER_COMMANDS = ("python3 -m venv ", ".venv/bin/pip install ", "tensorboard ", "sqlite3 ")
"""Commands in the documents that are not this project's, and are not run."""

Blocks = list[tuple[str, str]]
"""Language and text of fenced blocks."""


def blocks(document: Path, heading: str | None = None) -> Blocks:
    """Every fenced block, or those below one heading of the second level."""
    text = document.read_text(encoding="utf-8")
    if heading is not None:
        text = dict(zip(headings(document, "##"), re.split(r"^## .*$", text, flags=re.MULTILINE)[1:], strict=True))[
            heading
        ]
    return re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def headings(document: Path, level: str = "#+") -> list[str]:
    """The texts of a document's headings."""
    return re.findall(rf"^{level} (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)


@contextmanager
def reading(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A reader in an empty folder with `configs`, in which training is short."""
    train = popgraft.train

    def short(config: Any, overrides: Any = (), **arguments: Any) -> Any:
        return train(load_config(config, overrides), SHORT, **arguments)

    (folder / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(popgraft, "train", short)
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(folder):
            del sys.modules[name]


def follow(read: Blocks, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Does what blocks say, in order, and returns the names that they have defined.

    A `yaml` or `python` block that begins with a file's name is written to that file, other `python` blocks are
    executed, and the `popgraft` lines of `console` blocks are run.
    """
    scope = types.ModuleType("snippet")
    with reading(folder, monkeypatch):
        for language, text in read:
            header = re.match(r"# (\w+\.(?:py|yaml))\n", text)
            if header:
                (folder / header[1]).write_text(text)
            elif language == "python":
                with torch.random.fork_rng():  # a reader's torch.nn modules draw from the global generator
                    exec(compile(text, "snippet", "exec"), scope.__dict__)
            elif language == "console":
                for line in text.splitlines():
                    run_command(line, monkeypatch)
    return vars(scope)


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs a line of a `console` block."""
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"
    elif words[0] == "popgraft":
        short = {"train": SHORT, "resume": {"total_timesteps": 1_000}}.get(words[1], {})
        settings = [word for key, value in short.items() for word in ("--set", f"{key}={value}")]
        monkeypatch.setattr(sys, "argv", [*words, *settings])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, line
    else:
        assert line.startswith(OTHER_COMMANDS), f"not known to be harmless: {line}"
