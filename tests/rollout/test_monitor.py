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
