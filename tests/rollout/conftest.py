"""Environments with known episodes, and a population that plays them."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft.config import EnvConfig, ModelConfig, NetworkConfig
from popgraft.nn import Policy
from popgraft.ppo import initial_member
from popgraft.rollout import EnvGrid


class Episodes(gym.Env[Any, Any]):
    """Its seed fixes everything, whatever is done: observations and rewards are random, episodes last 1 to 6 steps.

    Odd episodes are truncated, every third of them in the step in which it also terminates.
    """

    observation_space = gym.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gym.spaces.Discrete(2)
    episode = -1

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode = 0 if seed is not None else self.episode + 1
        self.remaining = self.np_random.integers(1, 7)
        return self._observe(), {}

    def step(self, action: Any) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        self.remaining -= 1
        truncated = bool(self.remaining == 0 and self.episode % 2 == 1)
        terminated = bool(self.remaining == 0 and (self.episode % 2 == 0 or self.episode % 3 == 0))
        return self._observe(), float(self.np_random.normal()), terminated, truncated, {}

    def _observe(self) -> np.ndarray:
        return self.np_random.normal(size=3).astype(np.float32)


@pytest.fixture
def episodes():
    return Episodes


@pytest.fixture
def play():
    """Makes (policy, member, grid) for `pop` members who play an environment class."""
    grids = []

    def make(env, pop, envs, next_step=False, **network):
        mode = AutoresetMode.NEXT_STEP if next_step else AutoresetMode.SAME_STEP
        config = EnvConfig(factory="not:used", num_envs=envs)
        grid = EnvGrid(config, pop, factory=lambda num_envs: SyncVectorEnv([env] * num_envs, autoreset_mode=mode))
        grids.append(grid)
        model = ModelConfig(network=NetworkConfig(**{"encoder_layers": [5], "hidden_size": 4, **network}))
        policy = Policy(grid.spaces, model.network)
        generators = [torch.Generator().manual_seed(m) for m in range(pop)]
        hyperparams = {name: torch.full((pop,), value) for name, value in model.hyperparams().items()}
        member = initial_member(policy, grid.spaces, model, hyperparams, generators, torch.device("cpu"))
        for m, row in enumerate(member.params):
            row += 0.3 * torch.randn(row.shape, generator=torch.Generator().manual_seed(9 + m))
        return policy, member, grid

    yield make
    for grid in grids:
        grid.close()
