"""Runs whose members have come to different generations."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
import pytest
import torch
from rich.console import Console

import popgraft
from popgraft import Run
from popgraft.dashboard.data import read
from popgraft.dashboard.figure import Figure
from popgraft.dashboard.figures import figures
from popgraft.dashboard.importance import importance, residuals
from popgraft.dashboard.status import status_of
from popgraft.dashboard.summary import summary
from popgraft.dashboard.tables import members
from popgraft.dashboard.text import text
from popgraft.state import Decision, Scores
from popgraft.store import RunDatabase, RunFolder

from .test_data import Make, found, make

__all__ = ["make"]

Round = tuple[Sequence[int], dict[int, int]]
"""Members that end a generation, and who of them inherits from whom."""


def record(folder: RunFolder, rounds: Sequence[Round], pop: int = 3) -> None:
    """Writes what shards write that do not wait for each other. Scores are 10 × member + generation."""
    numbers = torch.full((pop,), -1)
    with RunDatabase(folder.database) as database:
        for part, parents in rounds:
            trained = torch.tensor(part)
            numbers[trained] += 1
            scores = Scores(10.0 * torch.arange(pop) + numbers, torch.ones(pop), torch.full((pop,), 5))
            values = {"learning_rate": 1e-3 * (1 + torch.arange(pop) + numbers.float() / 10)}
            chosen = torch.tensor([parents.get(i, i) for i in range(pop)])
            reasons = dict.fromkeys(parents, "truncation")
            decision, fates = Decision(chosen, values, reasons), dict.fromkeys(parents, "copy")
            steps = 100 * (numbers + 1).clamp(min=0)
            database.record_generation(numbers, scores, values, steps, decision, fates, None, trained)
            database.record_metrics(numbers, {"value_loss": numbers[trained] + 0.5}, {"member_distance": 1.0}, trained)


@pytest.fixture
def apart(make: Callable[..., RunFolder]) -> Path:
    """Members 0, 1 and 2 have ended 5, 2 and 3 generations; 1 copies one ahead of it, and 0 one behind.

    0 after its third generation is the donor of 1 after its first; 2 after its second that of 0 after its fourth.
    """
    folder = make([], [])
    record(folder, [([0, 1, 2], {}), ([0], {}), ([0, 2], {}), ([1], {1: 0}), ([0], {0: 2}), ([0], {}), ([2], {})])
    return folder.path


def drawn(path: Path) -> dict[str, Figure]:
    contents = {section.id: section.content for section in figures(read(path))}
    return {id: content for id, content in contents.items() if isinstance(content, Figure)}


def test_what_has_not_been_reached_is_unknown(apart: Path) -> None:
    data = read(apart)
    nan = np.nan
    expected = [[0, 10, 20], [1, 11, 21], [2, nan, 22], [3, nan, nan], [4, nan, nan]]
    assert np.array_equal(data.scores, expected, equal_nan=True)
    assert data.steps.tolist() == [300, 600, 900, 1200, 1500]
    assert data.total == 100 * (5 + 2 + 3)
    assert (data.apart, data.latest.tolist(), data.last_scores.tolist()) == (True, [4, 1, 2], [4, 11, 22])
    assert data.best.tolist() == [20, 21, 22, 3, 4]


def test_words_are_of_everybodys_last_generation(apart: Path) -> None:
    found(RunFolder(apart), 2, 2)
    said = " ".join(summary(read(apart)))
    assert "3 agents trained on CartPole-v1 for 1,000 of " in said
    assert "in 2 to 5 generations" in said
    assert "In their last generation the median member scores 11" in said
    head, rows = members(read(apart))
    assert head[:3] == ["member", "generation", "score"]
    assert [row[:2] for row in rows] == [["2", "3"], ["1", "2"], ["0", "5"]]
    assert [row[-1] for row in rows] == ["0.0032", "0.0021", "0.0014"]
    Console(quiet=True).print(text(read(apart)))
    assert status_of(Run(apart)).done == 5


def test_the_tree_leads_ahead_and_back(apart: Path) -> None:
    data = read(apart)
    assert data.donors == {(1, 1): (2, 0), (3, 0): (1, 2)}
    _, links, *_ = drawn(apart)["tree"].traces
    ends = [(round(x), y) for x, y in zip(links["x"].tolist(), links["y"].tolist(), strict=True) if np.isfinite(x)]
    assert ends == [(2, 2), (5, 0)], "1 has not ended the generation after its graft"
    with RunDatabase(apart / "run.sqlite") as database, database._connection as connection:
        connection.execute("INSERT INTO members VALUES (2, 1, 12.0, 1.0, 5, 300, '{\"learning_rate\": 0.002}')")
    _, links, *_ = drawn(apart)["tree"].traces
    ends = [(round(x), y) for x, y in zip(links["x"].tolist(), links["y"].tolist(), strict=True) if np.isfinite(x)]
    assert ends == [(3, 0), (3, 1), (2, 2), (5, 0)]


@pytest.mark.parametrize(
    ("best", "line"),
    [
        ((4, 0), [(0, 2), (1, 2), (4, 0)]),  # from a donor that was behind
        ((2, 1), [(0, 0), (1, 0), (2, 0), (2, 1)]),  # from one that was ahead
        ((2, 2), [(0, 2), (1, 2), (2, 2)]),
    ],
)
def test_descent_through_donors_of_other_generations(
    apart: Path, best: tuple[int, int], line: list[tuple[int, int]]
) -> None:
    found(RunFolder(apart), *best)
    assert read(apart).ancestors == line


def test_descent_ends_where_a_damaged_database_leads_in_a_circle(apart: Path) -> None:
    with RunDatabase(apart / "run.sqlite") as database, database._connection as connection:
        connection.execute("INSERT INTO members VALUES (2, 1, 12.0, 1.0, 5, 300, '{\"learning_rate\": 0.002}')")
        connection.execute(
            "INSERT INTO grafts VALUES (1, 0, 1, 2, 'truncation', 1, 12, '{}', '{}', 'copy'" + ", NULL" * 6 + ")"
        )
    found(RunFolder(apart), 2, 1)
    assert read(apart).ancestors == [(2, 0), (2, 1)]


def test_everything_is_drawn(apart: Path) -> None:
    found(RunFolder(apart), 4, 0)
    figures = drawn(apart)
    assert figures.keys() == {"scores", "tree", "schedules", "exploits", "learning", "divergence"}
    for figure in figures.values():
        go.Figure(json.loads(figure.json))
    popgraft.report(apart)


def test_progress_counts_from_a_donor_ahead(make: Make) -> None:
    folder = make([], [], population_size=12)
    record(folder, [*[(range(12), {})] * 20, *[(range(6), {})] * 10, (range(6, 12), {7: 0})], 12)
    data = read(folder.path)
    assert data.donors == {(20, 7): (29, 0)}
    rows, who, _ = residuals(data)
    assert rows.max() == 29
    assert set(who[rows == 29].tolist()) == set(range(6))
    assert importance(data) == [], "everybody's progress is the same"
    noisy = dataclasses.replace(data, scores=data.scores + np.random.default_rng(0).standard_normal(data.scores.shape))
    assert {(each.name, math.isfinite(each.share)) for each in importance(noisy)} == {("learning_rate", True)}
