"""What a rollout asks of environments, tensors in and tensors out, and how arrays of NumPy answer it."""

import abc
import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Real
from torch import Tensor

from popgraft.spaces import Spaces

CPU = torch.device("cpu")


@dataclasses.dataclass
class Final:
    """Terminal observations of truncated episodes that have been replaced already.

    Attributes:
        where: whether there is one.
        observations: what it is, [pop, env, *shape]; anything elsewhere.
    """

    where: Bool[Tensor, "pop env"]
    observations: dict[str, Tensor]


@dataclasses.dataclass
class Step:
    """What one step of all environments brought, on the grid's device.

    Attributes:
        reward: as the environment gave it; 0 where `valid` is false.
        terminated: whether the task ended the episode.
        truncated: whether the episode was cut off, and the task did not end it in the same step.
        valid: false where the environment ignored the action because it only reset itself (next-step autoreset), and
            of a member that has failed.
        started: whether the current observation is the first of a new episode.
        final: terminal observations that are no longer shown; None where there are none, as with next-step autoreset.
    """

    reward: Float[Tensor, "pop env"]
    terminated: Bool[Tensor, "pop env"]
    truncated: Bool[Tensor, "pop env"]
    valid: Bool[Tensor, "pop env"]
    started: Bool[Tensor, "pop env"]
    final: Final | None


class Grid(abc.ABC):
    """Members × environments, stepped together.

    Attributes:
        spaces: what an agent sees and does.
        pop: members.
        num_envs: environments per member.
    """

    spaces: Spaces
    pop: int
    num_envs: int

    @abc.abstractmethod
    def observe(self) -> dict[str, Tensor]:
        """The observations to act on, [pop, env, *shape], in memory that no later step touches: what a network hands
        on unchanged may be kept.
        """

    @abc.abstractmethod
    def act(self, actions: Real[Tensor, "pop env dims"]) -> Step:
        """Takes one action in every environment: choices counted from 0, or the numbers of a box, not yet clipped."""


class SeededGrid(Grid):
    """A grid that begins episodes when it is told to.

    A member fails whose environment raises, or gives a number that is not usable. Until its next reset it sees zeros,
    gets zeros, and none of its steps is valid; the others go on.

    Attributes:
        in_process: whether the environments run in this process.
        playing: the member whose environments are at work in this process, and since when (`time.monotonic`).
        monitored: whether `whole_episodes` and `standing` say what a score is; else an episode is what steps say it is.
    """

    in_process: bool
    playing: tuple[int, float] | None = None
    monitored: bool = False

    @property
    @abc.abstractmethod
    def failures(self) -> dict[int, str]:
        """For every member that has failed since its last reset, what went wrong."""

    @abc.abstractmethod
    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Starts fresh episodes in all environments of some members.

        Args:
            rows: the members.
            seeds: a seed for each of them.
        """

    def rest(self, rows: Sequence[int]) -> None:
        """Allows some members' environments to stand still until their next reset; what steps say of them is void."""

    def whole_episodes(self) -> tuple[Bool[Tensor, "pop env"], Float64[Tensor, "pop env"]]:
        """Where whole episodes have ended with the latest step, and what they return, of a grid that is `monitored`:
        what steps call ends may be those of single lives, and their rewards may be clipped.
        """
        raise NotImplementedError

    def standing(self) -> Float64[Tensor, "pop env"]:
        """Returns so far of whole episodes that have not ended, of a grid that is `monitored`."""
        raise NotImplementedError

    @abc.abstractmethod
    def close(self) -> None:
        """Releases the processes and memory of all environments."""


@dataclasses.dataclass
class Transition:
    """What one step of all environments brought, as arrays that are used again by the next step.

    Attributes:
        reward: as `Step`, and so on.
        final: whether the episode was truncated and its terminal observation has already been replaced.
        final_observations: terminal observations where `final`, anything elsewhere.
    """

    reward: Float32[np.ndarray, "pop env"]
    terminated: Bool[np.ndarray, "pop env"]
    truncated: Bool[np.ndarray, "pop env"]
    valid: Bool[np.ndarray, "pop env"]
    started: Bool[np.ndarray, "pop env"]
    final: Bool[np.ndarray, "pop env"]
    final_observations: dict[str, np.ndarray]


class ArrayGrid(Grid):
    """A grid whose environments speak in arrays.

    Attributes:
        device: where the agents are.
        observations: the observations to act on, [pop, env, *shape]; updated in place.
    """

    device: torch.device
    observations: dict[str, np.ndarray]

    @abc.abstractmethod
    def step(self, actions: np.ndarray) -> Transition:
        """Takes one action [pop, env, dims] in every environment."""

    def observe(self) -> dict[str, Tensor]:
        """The observations to act on, copied from the arrays, which the next step overwrites."""
        return self._tensors(self.observations)

    def act(self, actions: Real[Tensor, "pop env dims"]) -> Step:
        """Takes one action in every environment."""
        result = self.step(actions.cpu().numpy())
        final = None
        if result.final.any():
            final = Final(self._copied(result.final), self._tensors(result.final_observations))
        flags = np.array((result.terminated, result.truncated, result.valid, result.started))  # a copy of all, at once
        terminated, truncated, valid, started = torch.from_numpy(flags).to(self.device).unbind()
        return Step(self._copied(result.reward), terminated, truncated, valid, started, final)

    def _copied(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.copy()).to(self.device)

    def _tensors(self, arrays: dict[str, np.ndarray]) -> dict[str, Tensor]:
        return {key: self._copied(array) for key, array in arrays.items()}
