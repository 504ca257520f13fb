from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from popgraft import Generation, Observer, Run, train

Tiny = Callable[..., dict[str, Any]]

MEMBER_TAGS = {
    "pbt/score",
    "rollout/ep_len_mean",
    "rollout/ep_rew_mean",
    "train/approx_kl",
    "train/clip_fraction",
    "train/ent_coef",
    "train/entropy_loss",
    "train/explained_variance",
    "train/learning_rate",
    "train/policy_loss",
    "train/value_loss",
}
POPULATION_TAGS = {
    "pbt/evaluation_steps",
    "pbt/exploitation_count",
    "pbt/exploration_count",
    "pbt/failed_ready_checks",
    "pbt/member_distance",
    "pbt/optimizer_distance",
    "pbt/post_exploit_value_loss_ratio",
    "pbt/max_performance",
    "pbt/mean_performance",
    "pbt/min_performance",
    "pbt/population_size",
    "pbt/ready_members",
    "pbt/std_performance",
}


class Keep(Observer):
    def __init__(self) -> None:
        self.generations: list[Generation] = []

    def on_generation(self, generation: Generation) -> None:
        self.generations.append(generation)


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    accumulator = EventAccumulator(str(folder))
    accumulator.Reload()
    return {
        tag: [(event.step, event.value) for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]
    }


@pytest.fixture
def written(tiny: Tiny) -> tuple[Run, list[Generation]]:
    keep = Keep()
    return train(tiny(), observer=keep), keep.generations


def test_there_is_a_folder_for_every_member_and_one_for_the_population(written: tuple[Run, list[Generation]]) -> None:
    folder = written[0].folder.tensorboard
    assert sorted(path.name for path in folder.iterdir()) == ["member_00", "member_01", "population"]
    assert set(curves(folder / "population")) == POPULATION_TAGS
    for member in ("member_00", "member_01"):
        assert set(curves(folder / member)) >= MEMBER_TAGS


def test_members_are_plotted_update_by_update_over_their_own_steps(written: tuple[Run, list[Generation]]) -> None:
    run, generations = written
    for member in (0, 1):
        found = curves(run.folder.tensorboard / f"member_0{member}")
        steps = [16, 32, 48, 64, 80, 96]  # 2 environments x 8 steps to an update
        for tag, name in [("train/value_loss", "value_loss"), ("train/learning_rate", "learning_rate")]:
            values = [v for generation in generations for v in generation.metrics[name][member].tolist()]
            assert found[tag] == [(step, pytest.approx(value)) for step, value in zip(steps, values, strict=True)]
        scores = [pytest.approx(generation.scores.mean[member].item()) for generation in generations]
        assert found["pbt/score"] == list(zip([32, 64, 96], scores, strict=True))
        assert {value for _, value in found["rollout/ep_len_mean"]} == {6.0}


def test_the_population_is_plotted_over_all_steps(written: tuple[Run, list[Generation]]) -> None:
    run, generations = written
    found = curves(run.folder.tensorboard / "population")
    steps = [64, 128, 192]
    means = [sum(generation.scores.mean.tolist()) / 2 for generation in generations]
    spreads = [abs(a - b) / 2 for a, b in (generation.scores.mean.tolist() for generation in generations)]
    assert found["pbt/mean_performance"] == [(s, pytest.approx(m)) for s, m in zip(steps, means, strict=True)]
    assert found["pbt/std_performance"] == [(s, pytest.approx(d)) for s, d in zip(steps, spreads, strict=True)]
    exploits = [len([graft for graft in run.lineage if graft.generation <= number]) for number in range(3)]
    assert exploits[-1] > 0
    assert found["pbt/exploitation_count"] == list(zip(steps, exploits, strict=True))
    assert {value for _, value in found["pbt/population_size"]} == {2.0}
