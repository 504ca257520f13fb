"""CartPole whose sensors and motor are rewired every so many steps."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

SCALE = np.array([1.0, 1.0, 0.1, 1.0], dtype=np.float32)
"""Typical sizes of position, velocity, angle and angular velocity, so that no component betrays itself by its scale."""


class RewiredCartPole(gym.vector.VectorWrapper):
    """Balances a pole through sensors and a motor whose wiring changes.

    A phase lasts `phase_steps` steps of every environment. It shows the four observations in an order and with signs
    drawn anew, and with probability ½ swaps what the two actions mean. Nothing announces a new phase: episodes go on
    through it, and end after 200 steps at the latest. The phases follow from the seed of the first reset.

    Args:
        num_envs: environments, which share their phases.
        phase_steps: length of a phase.
    """

    def __init__(self, num_envs: int, phase_steps: int) -> None:
        super().__init__(CartPoleVectorEnv(num_envs, max_episode_steps=200))
        low, high = np.full(4, -np.inf, dtype=np.float32), np.full(4, np.inf, dtype=np.float32)
        self.single_observation_space = gym.spaces.Box(low, high)
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self._phase_steps = phase_steps

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        """Starts the first phase."""
        self._generator, self._step = np.random.default_rng(seed), 0
        self._rewire()
        obs, info = self.env.reset(seed=seed, options=options)
        return self._seen(obs), info

    def step(self, actions: np.ndarray) -> Any:
        """Acts through the wiring of the phase; the observation after its last step is already that of the next."""
        obs, *rest = self.env.step(np.abs(actions - self._swapped))
        self._step += 1
        if self._step % self._phase_steps == 0:
            self._rewire()
        return self._seen(obs), *rest

    def _rewire(self) -> None:
        self._order = self._generator.permutation(4)
        self._signs = self._generator.choice(np.array([-1, 1], dtype=np.float32), 4)
        self._swapped = int(self._generator.integers(2))

    def _seen(self, obs: np.ndarray) -> np.ndarray:
        return (obs / SCALE)[:, self._order] * self._signs


def make(num_envs: int, phase_steps: int) -> RewiredCartPole:
    """The factory that `popgraft.train` is given."""
    return RewiredCartPole(num_envs, phase_steps)
