"""Games that are learnt by lives and clipped rewards are scored whole, as a monitor beneath says."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.wrappers import RecordEpisodeStatistics
from stable_baselines3.common.atari_wrappers import ClipRewardEnv, EpisodicLifeEnv
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor

from popgraft.config import EnvConfig, ModelConfig, NetworkConfig
from popgraft.nn import Policy
from popgraft.ppo import initial_member
from popgraft.rollout import EnvGrid
from popgraft.rollout.evaluation import evaluate

LIVES, LIFE = 3, 4


class Game(gym.Env[Any, Any]):
    """Three lives of four steps, each of which is worth what the seed says; without a seed a game is worth nothing."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.ale = SimpleNamespace(lives=lambda: LIVES - self.time // LIFE)

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.time, self.worth = 0, 0 if seed is None else seed % 1000
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.time += 1
        return np.zeros(2, np.float32), float(self.worth), self.time == LIVES * LIFE, False, {}

    def get_action_meanings(self) -> list[str]:
        return ["NOOP"]


def learnt(monitor: Callable[[Any], Any]) -> gym.Env[Any, Any]:
    return ClipRewardEnv(EpisodicLifeEnv(monitor(Game())))


def scored(make: Callable[[int], Any], seeds: list[int], max_steps: int = 100) -> list[list[float]]:
    """Scores of evaluations one after the other, in the same environments."""
    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=2), 2, factory=make)
    model = ModelConfig(network=NetworkConfig(encoder_layers=[5], hidden_size=4))
    policy = Policy(grid.spaces, model.network)
    generators = [torch.Generator().manual_seed(m) for m in range(2)]
    hyperparams = {name: torch.full((2,), value) for name, value in model.hyperparams().items()}
    member = initial_member(policy, grid.spaces, model, hyperparams, generators, torch.device("cpu"))
    scores = [evaluate(policy, member, grid, [seed, seed], True, max_steps).mean.tolist() for seed in seeds]
    grid.close()
    return scores


@pytest.mark.parametrize("monitor", [Monitor, RecordEpisodeStatistics])
@pytest.mark.parametrize("kind", [DummyVecEnv, lambda envs: SubprocVecEnv(envs, start_method="fork")])
def test_the_score_is_the_whole_games(kind: Callable[..., Any], monitor: Callable[..., Any]) -> None:
    """Environments have the seeds s and s + 1, a game 12 steps: the mean of 12 · s and 12 · (s + 1). The second
    evaluation finds games under way, of which it must not play the rest."""
    scores = scored(lambda num_envs: kind([lambda: learnt(monitor)] * num_envs), [5, 50])
    assert scores == [[66, 66], [606, 606]]


def test_a_game_that_is_not_over_counts_as_it_stands() -> None:
    """Six decisions: four steps of the first life, the step by which the wrapper goes on to the next, and two."""
    (scores,) = scored(lambda num_envs: DummyVecEnv([lambda: learnt(Monitor)] * num_envs), [5], max_steps=6)
    assert scores == [7 * 5.5] * 2


def test_a_monitor_that_stands_above_sees_what_it_sees() -> None:
    """Four steps of a life, clipped to 1."""
    assert scored(
        lambda num_envs: VecMonitor(DummyVecEnv([lambda: ClipRewardEnv(EpisodicLifeEnv(Game()))] * num_envs)), [5]
    ) == [[4, 4]]
    assert scored(
        lambda num_envs: DummyVecEnv([lambda: Monitor(ClipRewardEnv(EpisodicLifeEnv(Game())))] * num_envs), [5]
    ) == [[4, 4]]


def test_without_a_monitor_an_episode_is_what_the_environment_says() -> None:
    assert scored(lambda num_envs: DummyVecEnv([lambda: ClipRewardEnv(EpisodicLifeEnv(Game()))] * num_envs), [5]) == [
        [4, 4]
    ]
    assert scored(lambda num_envs: DummyVecEnv([Game] * num_envs), [5]) == [[66, 66]]


@pytest.mark.parametrize(
    "learnt",
    [
        pytest.param({"reward_clip": True}, marks=pytest.mark.slow),
        {"reward_clip": True, "episodic_life": True},
    ],
)
def test_a_game_of_envpool_is_scored_whole(learnt: dict[str, bool]) -> None:
    """What the game without clipped rewards gives until it is over; with single lives, whose ends change how the game
    goes on, the points beneath until the game says by itself that it is over."""
    envpool = pytest.importorskip("envpool")
    small = {"img_height": 36, "img_width": 36, "noop_max": 1, "frame_skip": 16, "num_threads": 1}
    actions = np.random.default_rng(0).integers(0, 9, (1000, 2))
    pool = envpool.make_gymnasium("Asterix-v5", num_envs=2, seed=7, **small, **learnt | {"reward_clip": False})
    pool.reset()
    points, playing = np.zeros(2), np.ones(2, bool)
    for action in actions:
        _, reward, _, _, info = pool.step(action)
        points += reward * playing
        playing &= info["terminated"] == 0
        if not playing.any():
            break
    pool.close()
    assert not playing.any()
    assert (points >= 100).all()

    grid = EnvGrid(EnvConfig(id="Asterix-v5", num_envs=2, vectorization="envpool", kwargs=small | learnt), 1)
    for _ in range(2):  # the second evaluation begins with games under way
        grid.reset([0], [7])
        scores: dict[int, float] = {}
        for action in actions:
            grid.act(torch.from_numpy(action).view(1, 2, 1))
            over, returns = grid.whole_episodes()
            if len(scores) < 2:
                standing = dict(enumerate(grid.standing()[0].tolist()))
            for env in over[0].nonzero().flatten().tolist():
                scores.setdefault(env, float(returns[0, env]))
            if len(scores) == 2:
                break
        assert scores == dict(enumerate(points.tolist()))
        assert standing[env] == points[env]  # of the one that ended last
    grid.close()


def test_an_environment_of_envpool_without_lives_is_scored_by_its_steps() -> None:
    pytest.importorskip("envpool")
    grid = EnvGrid(EnvConfig(id="CartPole-v1", num_envs=2, vectorization="envpool"), 1)
    assert not grid.monitored
    grid.close()
