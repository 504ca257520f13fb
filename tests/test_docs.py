"""The documents are true: their commands and Python run, their settings and links exist.

In the blocks of one document, in order and in one folder: a `yaml` or `python` block that begins with a file's name is
written to that file, other `python` blocks are executed, and the `popgraft` lines of `console` blocks are run. Training
is cut short by the settings in `SHORT`.
"""

import dataclasses
import os
import re
import shlex
import sys
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch
import yaml
from pydantic import BaseModel

import popgraft
from popgraft import HyperparamConfig, load_config
from popgraft.cli.app import main
from popgraft.config import Config

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
SHORT = {
    "total_timesteps": 1,
    "model.n_epochs": 1,
    "pbt.perturbation_interval": 1,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 2,
    "evaluation.max_steps": 20,
    "execute.shards": 1,  # a process takes longer to start than all of this
}
OTHER_COMMANDS = ("python3 -m venv ", ".venv/bin/pip install ", "tensorboard ", "sqlite3 ")
"""Commands in the documents that are not this project's, and are not run."""


def blocks(document: Path) -> list[tuple[str, str]]:
    """Language and text of every fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", document.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def named(documents: list[Path]) -> Any:
    return pytest.mark.parametrize("document", [pytest.param(path, id=path.name) for path in documents])


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder with `configs`, in which training is short."""
    train = popgraft.train

    def short(config: Any, overrides: Any = (), **arguments: Any) -> Any:
        return train(load_config(config, overrides), SHORT, **arguments)

    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(popgraft, "train", short)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "/").is_relative_to(tmp_path):
            del sys.modules[name]


def run_command(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(line, comments=True)
    if words[0] == "make":
        assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target {words[1]}"
    elif words[0] == "popgraft":
        short = {"train": SHORT, "resume": {"total_timesteps": 5_000}}.get(words[1], {})
        settings = [word for key, value in short.items() for word in ("--set", f"{key}={value}")]
        monkeypatch.setattr(sys, "argv", [*words, *settings])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, line
    else:
        assert line.startswith(OTHER_COMMANDS), f"not known to be harmless: {line}"


@named([path for path in DOCUMENTS if any(language in ("console", "python") for language, _ in blocks(path))])
def test_blocks_run(document: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = types.ModuleType("snippet")
    for language, text in blocks(document):
        header = re.match(r"# (\w+\.(?:py|yaml))\n", text)
        if header:
            (folder / header[1]).write_text(text)
        elif language == "python":
            with torch.random.fork_rng():  # a reader's torch.nn modules draw from the global generator
                exec(compile(text, document.name, "exec"), scope.__dict__)
        elif language == "console":
            for line in text.splitlines():
                run_command(line, monkeypatch)
    assert not os.environ.get("PYTHONPATH")


@named([path for path in DOCUMENTS if any(language == "yaml" for language, _ in blocks(path))])
def test_settings_in_blocks_are_valid(document: Path) -> None:
    for language, text in blocks(document):
        if language == "yaml":
            load_config({"env": {"id": "CartPole-v1"}, **yaml.safe_load(text)})


@named(DOCUMENTS)
def test_links_lead_somewhere(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for label, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "http://")):
            continue
        path, _, anchor = target.partition("#")
        found = document.parent / path if path else document
        assert found.exists(), f"{label}: {target}"
        if anchor:
            assert anchor in [slug(heading) for heading in headings(found)], f"{label}: {target}"
        for name in re.findall(r"^`(\w+)`$", label) if found.suffix == ".py" else []:
            defined = re.search(rf"^\s*(def|class) {name}\b|^{name}\b.* = ", found.read_text(), re.MULTILINE)
            assert defined, f"{path} defines no {name}"


def headings(document: Path) -> list[str]:
    return re.findall(r"^#+ (.*)$", document.read_text(encoding="utf-8"), re.MULTILINE)


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def test_architecture_names_every_module() -> None:
    links = re.findall(r"\[\w+\]\(\.\./(src/popgraft/[\w/]+\.py)\)", (ROOT / "docs/architecture.md").read_text())
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "src/popgraft").rglob("[!_]*.py")}
    assert set(links) == modules


def test_floors_are_those_that_the_import_contract_enforces() -> None:
    (contract,) = (
        each
        for each in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        if each["type"] == "layers"
    )
    floors: list[set[str]] = []
    for line in (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("\n"):
        cells = [cell.strip() for cell in line.split("|")]
        if not re.search(r"\]\(\.\./src/popgraft/", cells[3] if len(cells) > 4 else ""):
            continue
        if cells[1]:
            floors.append(set())
        rooms = {cells[2].strip("`")} if cells[2] else set(re.findall(r"\.\./src/popgraft/(\w+)\.py", cells[3]))
        floors[-1] |= rooms
    assert floors == [set(layer.split(" | ")) for layer in contract["layers"]]


def test_table_of_settings_is_current() -> None:
    text = (ROOT / "docs/usage.md").read_text(encoding="utf-8")
    found = re.search(r"<!-- settings -->\n(.*)<!-- end of settings -->", text, re.DOTALL)
    assert found
    assert found[1] == settings(), f"docs/usage.md must say:\n{settings()}"


def settings() -> str:
    """The tables of all settings, made from the fields of the configuration."""
    rows = "\n".join(
        f"| `{name}` | {default} | {meaning} |" for name, (default, meaning) in hyperparam_fields().items()
    )
    return section(Config, "") + f"\n### Each entry of `pbt.hyperparams`\n\n{HEADER}\n{rows}\n"


HEADER = "| key | default | meaning |\n|---|---|---|"


def section(kind: type[BaseModel], prefix: str) -> str:
    title = f"`{prefix.rstrip('.')}`" if prefix else "Top level"
    rows, inner = [], ""
    for name, field in kind.model_fields.items():
        child: Any = field.annotation
        if isinstance(child, type) and issubclass(child, BaseModel):
            inner += section(child, f"{prefix}{name}.")
        else:
            derived = field.default_factory is not None
            default = "required" if field.is_required() else "" if derived else shown(field.default)
            choices = [shown(choice) for choice in get_args(child)] if get_origin(child) is Literal else []
            meaning = " ".join((field.description or "").split())
            meaning += f" One of {', '.join(choices)}." if len(choices) > 1 else ""
            rows.append(f"| `{name}` | {default} | {meaning} |")
    return f"\n### {title}\n\n{HEADER}\n" + "\n".join(rows) + "\n" + inner


def shown(value: Any) -> str:
    if isinstance(value, Path):
        return f"`{value}`"
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix(chr(10)).removesuffix('...').strip()}`"


def hyperparam_fields() -> dict[str, tuple[str, str]]:
    described = dict(re.findall(r"^ {8}(\w+): (.*)$", HyperparamConfig.__doc__ or "", re.MULTILINE))
    return {
        field.name: (
            "required" if field.default is dataclasses.MISSING else shown(field.default),
            described[field.name],
        )
        for field in dataclasses.fields(HyperparamConfig)
    }
