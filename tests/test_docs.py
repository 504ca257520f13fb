"""The documents are true: their commands and Python run, their settings and links exist."""

import importlib.util
import os
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from popgraft import load_config
from popgraft.config import flat_config
from popgraft.sb3.arguments import Settings

from .documents import DOCUMENTS, ROOT, blocks, follow, headings

EXTENDING = ROOT / "docs/extending.md"


def named(documents: list[Path]) -> Any:
    return pytest.mark.parametrize("document", [pytest.param(path, id=path.name) for path in documents])


@pytest.mark.heavy
@named(
    [
        path
        for path in DOCUMENTS
        if path != EXTENDING  # recipe by recipe, in test_extending.py
        and any(language in ("console", "python") for language, _ in blocks(path))
    ]
)
def test_blocks_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    follow(blocks(document), tmp_path, monkeypatch)
    assert not os.environ.get("PYTHONPATH")


@named([path for path in DOCUMENTS if any(language == "yaml" for language, _ in blocks(path))])
def test_settings_in_blocks_are_valid(document: Path) -> None:
    for language, text in blocks(document):
        if language == "yaml":
            given = {"env": {"id": "CartPole-v1"}, **yaml.safe_load(text)}
            assert given.keys() <= load_config(given).model_fields_set


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


def test_settings_are_current() -> None:
    spec = importlib.util.spec_from_file_location("settings_page", ROOT / "docs/settings.py")
    assert spec is not None
    assert spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)
    assert (ROOT / "docs/settings.md").read_text(encoding="utf-8") == page.document(), "run make docs"


def test_every_setting_is_listed_with_its_default() -> None:
    tables = settings_page().partition("## Arguments of")[0]
    listed = dict(re.findall(r"^\| `([\w.]+)` \| [^|]* \| `(.*?)` \|", tables, re.MULTILINE))
    defaults = flat_config(load_config({"env": {"id": "CartPole-v1"}, "pbt": {"hyperparams": []}})) | {
        "env.id": None,
        "code_dir": None,
    }
    del defaults["model.learning_rate"]  # depends on the optimizer
    del defaults["pbt.hyperparams"]  # depends on the agent
    assert {key: yaml.safe_load(listed[key]) for key in defaults} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in defaults.items()
    }


def test_every_argument_of_the_algorithm_leads_to_a_setting() -> None:
    page = settings_page()
    rows = re.findall(r"^\| `(\w+)` \| \[`([\w.]+)`\]\(#\w*\S*\) \|", page, re.MULTILINE)
    assert set(dict(rows)) >= {*Settings.__annotations__, "gamma", "n_steps", "seed"}
    for argument, setting in rows:
        assert f"| `{setting}` |" in page or f"\n## {setting}\n" in page, argument


def settings_page() -> str:
    return (ROOT / "docs/settings.md").read_text(encoding="utf-8")
