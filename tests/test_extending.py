"""The recipes of docs/extending.md, followed to the letter as a user's modules outside the package."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from popgraft import Run, load_config

from .documents import ROOT, blocks, follow, headings

EXTENDING = ROOT / "docs/extending.md"
RECIPES = [heading for heading in headings(EXTENDING, "##") if blocks(EXTENDING, heading)]


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe(recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    defined = follow(blocks(EXTENDING, recipe), tmp_path, monkeypatch)
    CHECKS[recipe](tmp_path, defined)


def of_a_layer(folder: Path, defined: dict[str, Any]) -> None:
    assert {*defined["params"]["linear"]} == {"weight", "bias"}
    assert defined["stacked"].shape == (3, 5, 8)


def of_an_encoder(folder: Path, defined: dict[str, Any]) -> None:
    shapes = Run(folder / "runs/wide").best.policy.layout.shapes
    own = {path: tuple(shape) for path, shape in shapes.items() if "layers." in path}
    # A linear layer from CartPole's four numbers to 32 features, and a norm of these: a weight and a bias each.
    assert sorted(own.values()) == [(32,), (32,), (32,), (32, 4)]


def of_a_tensor_environment(folder: Path, defined: dict[str, Any]) -> None:
    run = Run(folder / "runs/lights")
    assert run.is_finished
    assert {record.score for record in run.scores} <= {0.0, 0.5, 1.0}  # of two episodes, each won or lost


def of_an_observer(folder: Path, defined: dict[str, Any]) -> None:
    run = Run(folder / "runs/watched")
    rows = [line.split(",") for line in (folder / "runs/watched/best.csv").read_text().splitlines()]
    steps = load_config(folder / "runs/watched/config.yaml").steps_per_generation
    assert rows == [[str(steps), str(max(record.score for record in run.scores)), str(len(run.lineage))]]


CHECKS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    "A layer": of_a_layer,
    "An encoder": of_an_encoder,
    "A tensor environment": of_a_tensor_environment,
    "An observer": of_an_observer,
}
"""What must be so when a recipe has been followed."""
