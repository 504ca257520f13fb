"""A population that becomes smaller: who ends, what the others have of it, and that it goes on after anything."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from popgraft import ConfigError, Observer, Run, train
from popgraft.config import load_config
from popgraft.dashboard.data import read
from popgraft.dashboard.status import status_of
from popgraft.dashboard.summary import summary
from popgraft.execute import InlineExecutor
from popgraft.pbt import Choice, Past, Standing, Strategy, everybody
from popgraft.state import Scores
from popgraft.store import snapshot
from popgraft.train import resume
from popgraft.train.replay import replay_config
from popgraft.train.standing import of_those_left

from .same import check_same, tensors

Make = Callable[..., dict[str, Any]]
GENERATION = 16  # steps of a member
SIZES = [4, 4, 2, 2, 1, 1]  # by generation
TOTAL = GENERATION * sum(SIZES)
STAGES = [{"share": 8 / 14, "size": 2}, {"share": 12 / 14, "size": 1}]


@pytest.fixture
def make(tiny: Make, tmp_path: Path) -> Make:
    def make(name: str, **changes: Any) -> dict[str, Any]:
        settings = {
            "pbt__population_size": 4,
            "pbt__population_schedule": STAGES,
            "pbt__perturbation_interval": 1,
            "model__n_epochs": 1,
            "model__network__n_quantiles": 5,
            "evaluation": {"episodes": 2, "max_steps": 8, "final_episodes": 2},
            "total_timesteps": TOTAL,
            "snapshots": {"interval": 1, "keep": 20},
        }
        return tiny(**settings | changes | {"run_dir": str(tmp_path / name)})

    return make


@pytest.fixture
def halved(make: Make, kept: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    if "run" not in kept:
        kept["run"] = train(make("") | {"run_dir": str(tmp_path_factory.mktemp("runs") / "halved")})
    return kept["run"]


def those_of(run: Run, generation: int) -> list[int]:
    return [record.member for record in run.scores if record.generation == generation]


def test_those_that_end_are_the_worst_and_leave_their_steps_to_the_others(halved: Run) -> None:
    assert [len(those_of(halved, number)) for number in range(halved.generations)] == SIZES
    taken = {record.member: record.steps for record in halved.scores}
    assert sorted(taken.values()) == [2 * GENERATION, 2 * GENERATION, 4 * GENERATION, 6 * GENERATION]
    for last in (1, 3):
        scores = {record.member: record.score for record in halved.scores if record.generation == last}
        left = those_of(halved, last + 1)
        assert max(scores[member] for member in scores.keys() - left) <= min(scores[member] for member in left)
    told = [event.generation for event in halved.events if event.kind == "ended"]
    assert told == [1, 3]
    assert halved.config.generations == len(SIZES) == status_of(halved).planned
    assert len(list(halved.folder.tensorboard.iterdir())) == 5


def test_who_is_left_can_be_used_and_who_has_ended_cannot(halved: Run) -> None:
    (last,) = halved.members
    assert those_of(halved, len(SIZES) - 1) == [last]
    assert int(halved.agent(last).member.age) == len(SIZES)
    other = (last + 1) % 4
    with pytest.raises(
        ConfigError, match=f"member {other} of .* has ended before the run did, .* give {last} or 'best'"
    ):
        halved.agent(other)
    with pytest.raises(ConfigError, match="no member 4"):
        halved.agent(4)


def test_a_report_knows_when_members_ended(halved: Run) -> None:
    data = read(halved)
    assert data.steps.tolist() == np.cumsum([GENERATION * size for size in SIZES]).tolist()
    assert data.total == TOTAL
    assert data.left.sum(1).tolist() == SIZES
    told = " ".join(summary(data))
    assert f"member {halved.members[0]}'s episodes return" in told
    assert "4 agents trained" in told
    assert "for 224 environment steps, in 2 to 6 generations" in told
    assert "After generation 2 the worst of 4 members ended" in told
    assert "After generation 4 the worst of 2 members ended" in told


def test_who_is_left_trains_as_in_a_population_that_stays(make: Make) -> None:
    """Without exploit a member is the same whoever else there is; a point after every generation in both runs."""
    changes = {"pbt__exploit_method": "none"}
    cut = train(make("cut", **changes))
    whole = train(make("whole", **changes, pbt__population_schedule=[], total_timesteps=4 * 4 * GENERATION))
    for number, size in ((3, 2), (4, 1)):  # in the midst of the second stage, and at its end
        left = snapshot.verified(cut.folder, f"generation_{number:06d}")["members"]
        ours, theirs = (tensors(run, f"generation_{number:06d}") for run in (cut, whole))
        names = [name for name in ours if name.startswith("member.")]
        assert (len(names) > 20, len(left)) == (True, size)
        for name in names:
            assert torch.allclose(ours[name], theirs[name][left], rtol=1e-3, atol=1e-5), name
    own, others = (
        {(record.generation, record.member): record for record in run.scores if record.generation < 4}
        for run in (cut, whole)
    )
    assert own.keys() < others.keys()
    for place, record in own.items():
        assert record.score == pytest.approx(others[place].score)
        assert record.hyperparams == others[place].hyperparams


class Interrupter(Observer):
    def __init__(self, updates: int) -> None:
        self.updates = updates

    def on_update(self, steps: int) -> None:
        self.updates -= 1
        if self.updates == 0:
            os.kill(os.getpid(), signal.SIGINT)


# Before a cut, after one, after both.
@pytest.mark.parametrize(
    "updates", [pytest.param(2, marks=pytest.mark.heavy), 3, pytest.param(5, marks=pytest.mark.heavy)]
)
def test_it_goes_on_as_if_nothing_had_been(make: Make, halved: Run, updates: int) -> None:
    settings = make("again")
    run = train(settings, observer=Interrupter(updates))
    assert run.state == "stopped"
    assert len(run.members) == SIZES[updates - 1]
    check_same(resume(run.path), halved)


@pytest.mark.heavy
def test_it_goes_on_after_an_end_in_the_midst_of_a_cut(
    make: Make, halved: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = InlineExecutor.make_shards

    def fails(self: InlineExecutor) -> None:
        if len(self.members) == 2:
            raise RuntimeError("no more environments")
        made(self)

    with monkeypatch.context() as patch:
        patch.setattr(InlineExecutor, "make_shards", fails)
        with pytest.raises(RuntimeError, match="no more environments"):
            train(make("again"))
    run = Run(make("again")["run_dir"])
    assert run.members == [0, 1, 2, 3]
    check_same(resume(run.path), halved)


def test_it_goes_back_over_a_cut_where_later_points_are_damaged(make: Make, halved: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(halved.path, tmp_path / "copy"))
    for name in snapshot.names(run.folder):
        if name > "generation_000001":
            snapshot.remove(run.folder, name)
    found = resume(run.path)
    for table in ("scores", "lineage", "members"):
        assert getattr(found, table) == getattr(halved, table)


def test_a_finished_run_goes_on_with_those_who_are_left(make: Make, halved: Run, tmp_path: Path) -> None:
    run = Run(shutil.copytree(halved.path, tmp_path / "copy"))
    found = resume(run.path, {"total_timesteps": TOTAL + 3 * GENERATION})
    assert found.generations == len(SIZES) + 3 == status_of(found).planned
    assert found.members == halved.members


def test_members_come_back_with_the_state_they_had(make: Make) -> None:
    config = load_config(make("executor"))
    values = {name: torch.full((4,), value) for name, value in config.model.hyperparams().items()}
    executor = InlineExecutor(config, values, shards=3)
    before = executor.export(torch.arange(4))
    executor.restore(executor.export(torch.tensor([1, 3])), [1, 3])
    assert [shard.members for shard in executor.shards] == [[1], [3]]
    assert torch.equal(executor.export(torch.tensor([3])).params, before.params[3:])
    before.params += 1
    executor.restore(before, [0, 1, 2, 3])
    assert [shard.members for shard in executor.shards] == [[0, 1], [2], [3]]
    assert torch.equal(executor.export(torch.arange(4)).params, before.params)
    executor.close()


class FromTheFirst(Strategy):
    """Everybody becomes the first of those that there are; two of them explore."""

    seen: list[int]

    def __call__(self, standing: Standing) -> Choice:
        own = {past.member for past in standing.history}
        assert own in (set(), {0, 1, 2, 3})
        assert standing.steps.min() == standing.steps.max()
        value = {"learning_rate": 1e-3}
        return Choice(torch.zeros(standing.pop, dtype=torch.long), explored={standing.pop - 1: value})


def test_a_strategy_sees_those_who_are_left_as_the_population(make: Make) -> None:
    run = train(make("own", pbt__strategy=FromTheFirst))
    left = [those_of(run, number) for number in range(len(SIZES))]
    for number in range(len(SIZES) - 1):
        heirs = {graft.member: graft.parent for graft in run.lineage if graft.generation == number}
        first, *others = left[number + 1]
        assert heirs == dict.fromkeys(others, first)
    for record in run.scores:
        if record.generation and record.member == left[record.generation][-1]:
            assert record.hyperparams["learning_rate"] == 1e-3


def test_history_calls_members_by_their_new_places() -> None:
    def past(generation: int, member: int, parent: int) -> Past:
        return Past(generation, member, float(member), 0.0, 1, 10, {}, parent, generation, parent)

    scores = Scores(torch.arange(4.0), torch.zeros(4), torch.ones(4, dtype=torch.long))
    known = [past(0, 0, 3), past(0, 1, 1), past(0, 2, 0), past(0, 3, 3)]
    config = load_config({"env": {"id": "CartPole-v1"}, "pbt": {"population_size": 4}})
    standing = everybody(1, scores, {"gamma": torch.arange(4.0)}, config.pbt, 0, recall=lambda: known)
    left = of_those_left(standing, torch.tensor([1, 3]))
    assert left.scores.mean.tolist() == [1.0, 3.0]
    told = [(each.member, each.parent, each.hyperparameter_parent, each.score) for each in left.history]
    assert told == [(0, 0, 0, 1.0), (1, 1, 1, 3.0), (2, 1, 1, 0.0), (3, 2, 2, 2.0)]  # 1, 3, and then 0 and 2


@pytest.mark.heavy
@pytest.mark.parametrize(
    "changes",
    [
        {"pbt__strategy": "pb2"},
        {"pbt__exploit_method": "backtracking", "pbt__metric_mode": "min", "pbt__population_schedule": STAGES[:1]},
        {"pbt__fitness": "training", "pbt__population_schedule": [{"share": 0.4, "size": 3}]},
    ],
)
def test_other_kinds_of_evolution_become_smaller_too(make: Make, changes: dict[str, Any]) -> None:
    run = train(make("other", **changes))
    assert run.state == "finished"
    assert len(run.members) == run.config.pbt.population_schedule[-1].size
    assert {event.kind for event in run.events} >= {"ended"}


def test_a_strategy_for_one_size_is_refused(make: Make) -> None:
    changes = {"pbt__population_size": 6, "pbt__population_schedule": [6, 3], "pbt__strategy": "mf_pbt"}
    with pytest.raises(ConfigError, match=r"pbt\.strategy='mf_pbt' is for a population of one size"):
        train(make("other", **changes))


def test_a_replay_has_members_of_its_own(halved: Run) -> None:
    config = replay_config(halved, seeds=2)
    assert config.pbt.population_schedule == []
    own = int(halved.summary["generation"]) + 1
    assert config.total_timesteps == 2 * own * GENERATION


@pytest.mark.heavy
def test_shards_in_processes_become_fewer(make: Make) -> None:
    changes = {"pbt__population_schedule": [{"share": 8 / 14, "size": 1}]}
    inline, processes = (train(make(f"{shards}", **changes, execute__shards=shards)) for shards in (1, 2))
    assert len(inline.scores) == 2 * 4 + 6
    for own, others in zip(processes.scores, inline.scores, strict=True):
        assert (own.generation, own.member, own.steps) == (others.generation, others.member, others.steps)
        assert own.score == pytest.approx(others.score)
