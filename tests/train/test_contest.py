"""The best agent is chosen, and valued, by episodes that it was not picked out by."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from popgraft import resume, train
from popgraft.train.contest import Estimate, eliminate

Tiny = Callable[..., dict[str, Any]]


def stage(
    *columns: list[float],
) -> tuple[Callable[[list[int], int, int], torch.Tensor], list[tuple[list[int], int, int]]]:
    """Returns known in advance, one list for every contestant, and the rounds in which they were asked for."""
    rounds = []

    def play(who: list[int], first: int, count: int) -> torch.Tensor:
        rounds.append((who, first, count))
        return torch.tensor([columns[place][first : first + count] for place in who], dtype=torch.float64)

    return play, rounds


def test_a_clear_order_takes_one_round() -> None:
    play, rounds = stage([1.0, 2.0, 3.0, 2.0], [2.0, 3.0, 4.5, 3.0])  # behind by 1, 1, 1.5, 1: mean 1.125 ± 0.125
    best, returns = eliminate(play, 2, 4)
    assert (best, rounds) == (1, [([0, 1], 0, 4)])
    assert returns[1].tolist() == [2.0, 3.0, 4.5, 3.0]


def test_low_may_be_good() -> None:
    play, _ = stage([1.0, 2.0, 3.0, 2.0], [2.0, 3.0, 4.5, 3.0])
    assert eliminate(play, 2, 4, high_is_good=False)[0] == 0


def test_whoever_is_close_plays_on_and_may_win_then() -> None:
    """0 leads by 1 ± 2 after two episodes, by 0 ± 1.2 after four; then 1 is ahead by 2 in each of the last four."""
    lead = [3.0, -1.0, -3.0, 1.0, -2.0, -2.0, -2.0, -2.0]
    play, rounds = stage(lead, [0.0] * 8, [-9.0, -10.0])
    best, returns = eliminate(play, 3, 2)
    assert best == 1
    assert rounds == [([0, 1, 2], 0, 2), ([0, 1], 2, 2), ([0, 1], 4, 4)]
    assert [len(each) for each in returns] == [8, 8, 2]


def test_of_equals_the_first_wins_at_once() -> None:
    play, rounds = stage([500.0, 500.0], [500.0, 500.0], [500.0, 500.0])
    assert eliminate(play, 3, 2)[0] == 0
    assert len(rounds) == 1


def test_who_has_failed_is_out() -> None:
    play, _ = stage([math.nan, math.nan], [1.0, 0.0])
    assert eliminate(play, 2, 2)[0] == 1
    play, _ = stage([1.0, 0.0], [math.nan, math.nan])
    assert eliminate(play, 2, 2)[0] == 0


def test_one_episode_proves_nothing() -> None:
    play, rounds = stage([0.0, 5.0, 5.0, 5.0], [1.0, 0.0, 0.0, 0.0])
    assert eliminate(play, 2, 1)[0] == 0
    assert [count for _, _, count in rounds] == [1, 1, 2]


def test_estimates_join_as_their_episodes_do() -> None:
    x = torch.randn(12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for cut in (1, 5, 11):
        joined, whole = Estimate.of(x[:cut]).joined(Estimate.of(x[cut:])), Estimate.of(x)
        assert joined == pytest.approx(whole)
    assert Estimate.of(x).stderr == pytest.approx(np.std(x.numpy(), ddof=1) / 12**0.5)


class Luck(gym.Env[np.ndarray, int]):
    """One step, whose reward is a draw from the standard normal distribution, for every action another one."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = gym.spaces.Box(-9, 9, (4,)), gym.spaces.Discrete(64)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        self.rewards = self.np_random.standard_normal(64)
        return self.np_random.standard_normal(4).astype(np.float32), {}

    def step(self, action: int) -> Any:
        return np.zeros(4, np.float32), float(self.rewards[action]), True, False, {}


class Counted(Luck):
    """Counts the steps of all."""

    steps = 0

    def step(self, action: int) -> Any:
        Counted.steps += 1
        return super().step(action)


def lucky(num_envs: int) -> gym.vector.VectorEnv[Any, Any, Any]:
    return gym.vector.SyncVectorEnv([Luck] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


@pytest.fixture
def luck(tiny: Tiny) -> Tiny:
    """Four members, or as many as are said, whose every score is luck."""

    def make(generations: int, pop: int = 4, **changes: Any) -> dict[str, Any]:
        run = {"env": {"num_envs": 2}, "pbt__population_size": pop, "total_timesteps": generations * pop * 32}
        return tiny(**{**run, "snapshots": {"interval": 1, "keep": 9}, **changes})

    return make


def test_the_best_of_equals_is_worth_what_all_are_worth(luck: Tiny) -> None:
    """Of 8 members in 6 generations the best claims some two standard errors, and none is worth more than another."""
    run = train(luck(6, pop=8, evaluation__episodes=20), factory=lucky)
    found, scores = run.summary, {(each.generation, each.member): each.score for each in run.scores}
    assert max(scores.values()) > 1.5 / 20**0.5
    assert found["claimed_score"] == scores[found["generation"], found["member"]]
    assert found["episodes"] >= 20
    assert abs(found["score"]) < 3 * found["stderr"]
    assert found["stderr"] == pytest.approx(1 / found["episodes"] ** 0.5, rel=0.4)


def test_every_step_is_of_training_or_of_evaluation(luck: Tiny) -> None:
    Counted.steps = 0
    run = train(
        luck(3, evaluation={"episodes": 5, "final_episodes": 7}, execute={"shards": 1}),
        factory=lambda num_envs: gym.vector.SyncVectorEnv(
            [Counted] * num_envs, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP
        ),
    )
    assert run.evaluation_steps > 3 * 4 * 5  # of generations; the rest is of contests
    assert Counted.steps == 3 * 4 * 32 + run.evaluation_steps + 7


def test_a_score_that_was_luck_does_not_end_the_run(luck: Tiny) -> None:
    run = train(luck(6, pop=8, evaluation__episodes=2, stop_at_score=1.0), factory=lucky)
    assert max(record.score for record in run.scores) > 1.0
    assert run.generations == 6
    assert "reached" not in {event.kind for event in run.events}


def test_contests_are_the_same_in_a_run_that_goes_on(luck: Tiny, tmp_path: Path) -> None:
    whole = train(luck(4), factory=lucky)
    half = train(luck(2, run_dir=str(tmp_path / "half")), factory=lucky)
    gone_on = resume(half.path, {"total_timesteps": 4 * 4 * 32}, factory=lucky)
    assert gone_on.summary == whole.summary
    assert torch.equal(gone_on.best.member.params, whole.best.member.params)


@pytest.mark.heavy
def test_at_the_end_the_best_meets_the_last_population(luck: Tiny) -> None:
    """Where scores are of training nobody plays before that; the incumbent is then no better than its challengers."""
    changed = 0
    for seed in range(4):
        run = train(luck(2, pbt__fitness="training", seed=seed, run_dir=f"{luck(1)['run_dir']}{seed}"), factory=lucky)
        texts = [event.text for event in run.events if event.kind in ("best", "final")]
        assert "best agent scores" in texts[-1]
        found = run.summary
        scores = {(each.generation, each.member): each.score for each in run.scores}
        assert found["score"] == scores[found["generation"], found["member"]]
        if len(texts) > 1:
            changed += 1
            assert f"member {found['member']} of the last generation takes the place of the best agent" in texts[0]
            assert found["generation"] == 1
    assert changed
