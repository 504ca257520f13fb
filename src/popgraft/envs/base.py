"""What a tensor environment is."""

import abc
from typing import Any

from jaxtyping import Bool, Float, Real, Shaped
from torch import Tensor

from popgraft.spaces import ActionSpec, ObsSpec

Stepped = tuple[Any, Float[Tensor, "pop env"], Bool[Tensor, "pop env"]]
"""State after a step, its reward, and whether the task ended the episode with it."""


class TensorEnv(abc.ABC):
    """A task as three pure functions over [pop, env, ...].

    The state of all environments is a tree of tensors: one tensor, a dict, or a dataclass of them. Truncation, new
    episodes and random numbers are the caller's business. A function must not look at the numbers on the host, as an
    `if`, `.item()` and indexing with a mask do: resets and ends are masks (`torch.where`).

    Attributes:
        observation: what an agent sees of one environment.
        action: what it does.
        noise_dims: random numbers that a reset or a step takes.
        time_limit: steps after which an episode is truncated; None: never.
    """

    observation: ObsSpec
    action: ActionSpec
    noise_dims: int = 0
    time_limit: int | None = None

    @abc.abstractmethod
    def reset(self, noise: Float[Tensor, "pop env dims"]) -> Any:
        """The state of a new episode in every environment.

        Args:
            noise: uniform on [0, 1).
        """

    @abc.abstractmethod
    def step(
        self, state: Any, action: Real[Tensor, "pop env *action"], noise: Float[Tensor, "pop env dims"]
    ) -> Stepped:
        """Takes one action in every environment.

        Args:
            state: before the step; not to be changed.
            action: as the environment counts it: a choice [pop, env], or numbers within the bounds of a box.
            noise: uniform on [0, 1).
        """

    @abc.abstractmethod
    def observe(self, state: Any) -> Shaped[Tensor, "pop env *shape"]:
        """What the agents see of a state: float32, or uint8 for an image."""
