"""Environments with every kind of space, and small models that play them."""

import random
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from popgraft.sb3 import DistributionalPPO

SMALL = {"lstm_hidden_size": 8, "net_arch": [6]}


class Played(gym.Env[Any, Any]):
    """Random observations; episodes end after 3 to 9 steps, every other one by truncation; reward: the action's mean."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        self.observation_space, self.action_space = observation_space, action_space
        self.episode = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.episode += 1
        self.remaining = int(self.np_random.integers(3, 10))
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.remaining -= 1
        over, cut = self.remaining == 0, self.episode % 2 == 0
        reward = float(np.mean(action)) + float(self.np_random.normal())
        return self.observation_space.sample(), reward, over and not cut, over and cut, {}


VECTOR = spaces.Box(-1.0, 1.0, (3,), np.float32)


def make_env(num_envs: int = 4, observation_space: Any = VECTOR, action_space: Any = None) -> DummyVecEnv:
    """A monitored VecEnv of `Played`."""
    action = spaces.Discrete(2) if action_space is None else action_space
    return DummyVecEnv([lambda: Monitor(Played(observation_space, action))] * num_envs)


def make_model(env: Any = None, policy: Any = "MlpLstmPolicy", **arguments: Any) -> DistributionalPPO:
    """A small model."""
    given = {
        "n_steps": 16,
        "batch_size": 16,
        "n_epochs": 2,
        "seed": 0,
        "device": "cpu",
        "policy_kwargs": SMALL,
        **arguments,
    }
    return DistributionalPPO(policy, make_env() if env is None else env, **given)


@pytest.fixture
def small():
    return dict(SMALL)


@pytest.fixture
def played():
    return make_env


@pytest.fixture
def make():
    return make_model


@pytest.fixture
def unseeded() -> Iterator[None]:
    """Puts back the global generators, which Stable-Baselines3's own algorithms and environments draw from."""
    numpy_state, python_state = np.random.get_state(), random.getstate()
    with torch.random.fork_rng(devices=[]):
        yield
    np.random.set_state(numpy_state)
    random.setstate(python_state)
