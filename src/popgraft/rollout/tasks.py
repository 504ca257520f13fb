"""A memory task that nothing but memory solves, registered as `popgraft/RepeatPrevious-v0`."""

from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.spaces import Discrete
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

from popgraft.errors import ConfigError


class RepeatPreviousVectorEnv(gym.vector.VectorEnv[Any, Any, Any]):
    """At every step a card is shown; the agent names the suit of the card shown `delay` steps ago.

    With suits s₀ … s_{T−1}, drawn independently and uniformly, and k = delay, the answer aₜ given on seeing sₜ earns

        rₜ = ±1 / (T − k) for t ≥ k, positive where aₜ = s_{t−k};  rₜ = 0 before,

    so a perfect episode scores 1. An agent without memory answers from sₜ alone, which is independent of s_{t−k}: it is
    right with probability 1/suits whatever it answers and scores 2/suits − 1 on average, −½ with four suits. After T
    answers the episode terminates. (Cf. RepeatPrevious in POPGym, Morad et al. 2023, ICLR, arXiv:2303.01859.)

    Args:
        num_envs: environments, which run in step.
        delay: k ≥ 1, steps between a card and its answer.
        suits: number of suits, at least 2.
        length: T > k, answers in an episode.

    Raises:
        ConfigError: an argument outside its range.
    """

    def __init__(
        self, num_envs: int = 1, delay: int = 4, suits: int = 4, length: int = 52, render_mode: str | None = None
    ) -> None:
        if delay < 1 or suits < 2 or length <= delay:
            raise ConfigError(
                f"RepeatPrevious cannot be played with delay={delay}, suits={suits}, length={length}; "
                "choose delay >= 1, suits >= 2 and length > delay"
            )
        self.metadata = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}
        self.num_envs, self.delay, self.length, self.render_mode = num_envs, delay, length, render_mode
        self.single_observation_space = self.single_action_space = Discrete(suits)
        self.observation_space = self.action_space = batch_space(Discrete(suits), num_envs)
        self._choices = suits
        self._suits = np.zeros((length + 1, num_envs), dtype=np.int64)
        self._time = length

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Deals new cards to all environments and shows the first."""
        super().reset(seed=seed)
        return self._deal(), {}

    def step(self, actions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]:
        """Takes the answers to the cards in view and shows the next ones; after the last answer, only deals again."""
        reward = np.zeros(self.num_envs)
        if self._time == self.length:
            return self._deal(), reward, self._flags(False), self._flags(False), {}
        if self._time >= self.delay:
            right = actions == self._suits[self._time - self.delay]
            reward = np.where(right, 1.0, -1.0) / (self.length - self.delay)
        self._time += 1
        return self._shown(), reward, self._flags(self._time == self.length), self._flags(False), {}

    def _deal(self) -> np.ndarray:
        """Draws T answered cards and one more, which is in view when the episode ends."""
        self._suits = self.np_random.integers(self._choices, size=self._suits.shape)
        self._time = 0
        return self._shown()

    def _shown(self) -> np.ndarray:
        """The card in view."""
        suits: np.ndarray = self._suits[self._time]
        return suits

    def _flags(self, value: bool) -> np.ndarray:
        return np.full(self.num_envs, value)


class RepeatPreviousEnv(gym.Env[Any, Any]):
    """`RepeatPreviousVectorEnv` with a single environment, and with the same arguments."""

    def __init__(self, **kwargs: Any) -> None:
        self._cards = RepeatPreviousVectorEnv(1, **kwargs)
        self.render_mode = self._cards.render_mode
        self.observation_space = self._cards.single_observation_space
        self.action_space = self._cards.single_action_space

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Deals new cards and shows the first."""
        super().reset(seed=seed)
        shown, info = self._cards.reset(seed=seed)
        return shown[0], info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Takes the answer to the card shown last and shows the next one."""
        shown, reward, terminated, truncated, info = self._cards.step(np.array([action]))
        return shown[0], float(reward[0]), bool(terminated[0]), bool(truncated[0]), info


gym.register(
    "popgraft/RepeatPrevious-v0",
    entry_point="popgraft.rollout.tasks:RepeatPreviousEnv",
    vector_entry_point="popgraft.rollout.tasks:RepeatPreviousVectorEnv",
)
