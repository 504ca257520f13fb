import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popgraft import Run, StoreError, load_config
from popgraft.config import dump_config
from popgraft.dashboard.data import RunData, elapsed, quartiles, read
from popgraft.state import Decision, Scores
from popgraft.store import RunDatabase, RunFolder, snapshot

Make = Callable[..., RunFolder]
NAN = math.nan
RATE = {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Makes the folder of a run of three members that nobody trained, with its scores and parents by generation."""

    def made(scores: list[list[float]], parents: list[list[int]], **pbt: Any) -> RunFolder:
        settings = {"population_size": 3, "hyperparams": [RATE], **pbt}
        config = load_config({"env": {"id": "CartPole-v1"}, "pbt": settings, "run_dir": str(tmp_path / "made")})
        folder = RunFolder.create(tmp_path / "made", dump_config(config), {"torch": "2.6"})
        with RunDatabase(folder.database) as database:
            for number, (row, chosen) in enumerate(zip(scores, parents, strict=True)):
                values = {"learning_rate": torch.tensor([0.001, 0.002, 0.004]) * 2**number}
                reasons = {i: "truncation" for i, parent in enumerate(chosen) if parent != i}
                decision = Decision(torch.tensor(chosen), values, reasons)
                found = Scores(torch.tensor(row, dtype=torch.float32), torch.ones(3), torch.full((3,), 5))
                fates = dict.fromkeys(reasons, "copy")
                database.record_generation(number, found, values, 100 * (number + 1), decision, fates)
                database.record_metrics(number, {"value_loss": found.mean}, {"member_distance": number + 0.5})
        return folder

    return made


def found(folder: RunFolder, generation: int, member: int) -> None:
    about = {"generation": generation, "member": member, "score": 1.0, "stderr": 0.0, "episodes": 5, "steps": 300}
    snapshot.save(folder, "best", {"nothing": torch.zeros(1)}, about)


def test_a_run_is_read_as_arrays(trained: Path) -> None:
    data, run = read(trained), Run(trained)
    assert data.state == "finished"
    assert data.generations.tolist() == list(range(6))
    assert data.steps.tolist() == [64 * (i + 1) for i in range(6)]
    for record in run.scores:
        place = record.generation, record.member
        assert (data.scores[place], data.stderr[place]) == (record.score, record.stderr)
        assert data.hyperparams["learning_rate"][place] == record.hyperparams["learning_rate"]
    assert data.found == run.summary
    assert data.metrics["value_loss"].shape == data.scores.shape
    assert np.isfinite(data.population["optimizer_distance"]).all()
    assert data.best.tolist() == data.scores.max(1).tolist()
    assert 0 < data.seconds < 60


def test_the_line_of_descent_ends_with_the_best_agent(trained: Path) -> None:
    data = read(trained)
    assert data.ancestors[-1] == (data.found["generation"], data.found["member"])
    assert [row for row, _ in data.ancestors] == list(range(data.found["generation"] + 1))
    parents = {(graft.generation, graft.member): graft.parent for graft in data.grafts}
    for (row, member), (_, child) in zip(data.ancestors, data.ancestors[1:], strict=False):
        assert parents.get((row, child), child) == member


def test_descent_by_hand(make: Make) -> None:
    folder = make([[1, 2, 3], [3, 1, 2], [1, 5, 2], [0, 0, 9]], [[2, 1, 2], [0, 0, 2], [0, 1, 1], [0, 1, 2]])
    found(folder, 3, 2)
    assert read(folder.path).ancestors == [(0, 2), (1, 0), (2, 1), (3, 2)]


def test_descent_by_backtracking_leaves_generations_out(make: Make) -> None:
    folder = make([[9, 2, 3], [3, 1, 2], [1, 5, 8]], [[0, 1, 2], [0, 1, 2], [0, 1, 2]])
    with RunDatabase(folder.database) as database, database._connection as connection:
        connection.execute(
            "INSERT INTO grafts VALUES (1, 2, 0, 0, 'backtracking', 2, 9, '{}', '{}', 'copy'" + ", NULL" * 6 + ")"
        )
    found(folder, 2, 2)
    assert read(folder.path).ancestors == [(0, 0), (2, 2)]


def test_what_was_not_recorded_is_nan(make: Make) -> None:
    folder = make([[1, NAN, 3], [NAN, NAN, NAN], [1, 5, 2]], [[0, 1, 2]] * 3)
    with RunDatabase(folder.database) as database, database._connection as connection:
        connection.execute("DELETE FROM members WHERE generation = 2 AND member = 0")
        connection.execute("DELETE FROM metrics WHERE generation = 0")
    data = read(folder.path)
    expected = [[1, NAN, 3], [NAN, NAN, NAN], [NAN, 5, 2]]
    assert np.array_equal(data.scores, expected, equal_nan=True)
    assert np.array_equal(data.best, [3, NAN, 5], equal_nan=True)
    assert data.leaders.tolist() == [2, 0, 1]
    assert np.array_equal(data.population["member_distance"], [NAN, 1.5, 2.5], equal_nan=True)
    assert (data.found, data.ancestors, data.state) == ({}, [], "stopped")


def test_low_scores_can_be_good(make: Make) -> None:
    data = read(make([[1, NAN, 3]], [[0, 1, 2]], metric_mode="min").path)
    assert (data.best.tolist(), data.leaders.tolist()) == ([1.0], [0])


def test_a_run_without_a_generation_is_empty(make: Make) -> None:
    data = read(make([], []).path)
    assert data.scores.shape == (0, 3)
    assert (data.ancestors, data.hyperparams, len(data.best)) == ([], {}, 0)
    assert data.quartiles.shape == (3, 0)


def test_reading_changes_nothing(trained: Path) -> None:
    def contents() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in trained.iterdir() if path.suffix in (".sqlite", ".yaml")}

    before = contents()
    read(trained)
    assert contents() == before


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no complete run"):
        read(tmp_path)


def test_quartiles_leave_out_what_is_unknown() -> None:
    values = np.array([[1.0, NAN, 2.0, 3.0, 4.0, 5.0], [NAN] * 6])
    low, median, high = quartiles(values)
    assert (low[0], median[0], high[0]) == (2, 3, 4)
    assert np.isnan([low[1], median[1], high[1]]).all()


def test_time_between_processes_does_not_count(make: Make) -> None:
    data = read(make([[1, 2, 3]] * 3, [[0, 1, 2]] * 3).path)
    (session,) = data.sessions
    sessions = [dataclasses.replace(session, time=time) for time in (100.0, 1000.0)]
    later = dataclasses.replace(data, sessions=sessions, ended=np.array([110.0, 130.0, 1007.0]))
    assert later.seconds == 30 + 7
    assert isinstance(later, RunData)


def test_a_clock_that_was_set_back_makes_no_time_negative_or_long() -> None:
    """An hour from day 10 on, then half an hour from day 1 on: the second process began nine days before the first one."""
    day, minute = 86400.0, 60.0
    begins, written = [10 * day, day], [10 * day + 30 * minute, 10 * day + 60 * minute, day + 30 * minute]
    assert elapsed(begins, written, written) == [30 * minute, 60 * minute, 90 * minute]
    assert elapsed([100.0], [90.0], [90.0]) == [0.0]
