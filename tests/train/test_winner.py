"""The life of the winner, read from records that are written by hand."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from popgraft.config import dump_config, load_config
from popgraft.errors import StoreError
from popgraft.rollout.grid import EnvGrid
from popgraft.state import Decision, Record, Scores
from popgraft.store import RunDatabase, RunFolder, snapshot
from popgraft.train.agent import empty_member
from popgraft.train.run import BEST, Run
from popgraft.train.winner import ancestry, schedule_of

Tiny = Callable[..., dict[str, Any]]

ARRIVED = [  # parent of every place after a generation; 3: the best state there ever was, place 1 after generation 0
    ([0, 1, 1], [0.1, 0.2, 0.3]),
    ([0, 1, 2], [0.1, 0.2, 0.3]),
    ([2, 1, 2], [0.4, 0.2, 0.3]),
    ([0, 3, 2], [0.4, 0.5, 0.3]),
    ([0, 1, 1], [0.4, 0.5, 0.6]),
]


@pytest.fixture
def run(tiny: Tiny, tmp_path: Path) -> Run:
    """Three members, five generations of 10 steps; the learning rate names place and time."""
    config = load_config(tiny(pbt__population_size=3))
    folder = RunFolder.create(tmp_path / "run", dump_config(config))
    rates = [0.1, 0.2, 0.25]
    ones = torch.ones(3)
    grid = EnvGrid(config.env, 1, 1)
    grid.close()
    record = Record(empty_member(config, grid.spaces), Scores(ones[:1], ones[:1], ones[:1].long()), 0, 1)
    with RunDatabase(folder.database) as database:
        for generation, (parents, after) in enumerate(ARRIVED):
            values, rates = {"learning_rate": torch.tensor(rates), "gamma": ones}, after
            moved = {place: "truncation" for place, parent in enumerate(parents) if parent != place}
            decision = Decision(torch.tensor(parents), {"learning_rate": torch.tensor(after), "gamma": ones}, moved)
            scores = Scores(ones, ones, ones.long())
            back = record if 3 in parents else None
            database.record_generation(
                generation, scores, values, 10 * (generation + 1), decision, dict.fromkeys(moved, "copy"), back
            )
    return Run(folder.path)


def crown(run: Run, generation: int, member: int) -> None:
    found = {"generation": generation, "member": member, "score": 1.0, "stderr": 0.0, "episodes": 1, "steps": 0}
    snapshot.save(run.folder, BEST, {"x": torch.zeros(1)}, found)


def life(run: Run) -> list[tuple[int, int, int]]:
    return [(each.record.generation, each.record.member, each.begin) for each in ancestry(run)]


def test_a_graft_leads_back_to_its_donor(run: Run) -> None:
    crown(run, 3, 0)  # 0 was overwritten with 2 after generation 2, and 2 with 1 after generation 0
    assert life(run) == [(0, 1, 0), (1, 2, 10), (2, 2, 20), (3, 0, 30)]
    assert [each.graft is not None for each in ancestry(run)] == [False, True, False, True]
    entries = schedule_of(ancestry(run), ["learning_rate"], grafts=True)
    assert entries == [
        {"steps": 0, "hyperparams": {"learning_rate": 0.2}, "graft": False},
        {"steps": 10, "hyperparams": {"learning_rate": 0.3}, "graft": True},
        {"steps": 30, "hyperparams": {"learning_rate": 0.4}, "graft": True},
    ]
    assert [each["graft"] for each in schedule_of(ancestry(run), ["learning_rate"], grafts=False)] == [False] * 3


def test_who_went_back_to_the_best_has_not_lived_what_came_between(run: Run) -> None:
    crown(run, 4, 1)  # 1 went back to its own state after generation 0
    assert life(run) == [(0, 1, 0), (4, 1, 10)]
    assert ancestry(run)[-1].end == 20
    crown(run, 2, 1)
    assert life(run) == [(0, 1, 0), (1, 1, 10), (2, 1, 20)]
    assert schedule_of(ancestry(run), ["learning_rate", "gamma"], grafts=True) == [
        {"steps": 0, "hyperparams": {"learning_rate": 0.2, "gamma": 1.0}, "graft": False}
    ]


def test_records_that_were_lost_are_named(run: Run) -> None:
    crown(run, 4, 0)
    with RunDatabase(run.folder.database) as database:
        database._connection.execute("DELETE FROM grafts")
        database._connection.execute("DELETE FROM members WHERE generation = 2")
        database._connection.commit()
    with pytest.raises(StoreError, match="has lost the records of generation 3, which the best agent lived in"):
        ancestry(run)
