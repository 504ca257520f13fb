"""A rollout under the names and in the layout of Stable-Baselines3's buffer, for callbacks."""

import dataclasses
from collections.abc import Mapping

import numpy as np
from gymnasium import spaces
from torch import Tensor

from popgraft.ops import moments
from popgraft.ops.returns import gae
from popgraft.rollout.batch import Rollout
from popgraft.rollout.spaces_of import Field
from popgraft.state import Member


@dataclasses.dataclass
class RolloutBuffer(Rollout):
    """The latest rollout of a model; what has a name of Stable-Baselines3's is an array of its own, [step, env, ...].

    Attributes:
        fields: every key of the observation space.
        member: a population of one, whose discounts and statistics of rewards count.
        scales_rewards: whether the engine does.
    """

    fields: Mapping[str, Field]
    member: Member
    scales_rewards: bool

    @property
    def observations(self) -> np.ndarray | dict[str, np.ndarray]:
        """As the environment gave them, images with their channels first; of a Dict space a dict."""
        raw = {name: _shown(field, (self.obs | self.raw_obs)[name]) for name, field in self.fields.items()}
        (first, field), *_ = self.fields.items()
        return raw[first] if field.key is None else raw

    @property
    def actions(self) -> np.ndarray:
        """As they were drawn, [step, env, dims]: choices counted from 0, numbers not yet clipped."""
        return _array(self.action)

    @property
    def rewards(self) -> np.ndarray:
        """As the environment gave them, without the value that stands for what a truncation cut off."""
        return _array(self.reward)

    @property
    def episode_starts(self) -> np.ndarray:
        """1 where the observation is the first of an episode."""
        return _array(self.start.float())

    @property
    def values(self) -> np.ndarray:
        """Predicted mean returns, raw units."""
        return _array(self.value)

    @property
    def log_probs(self) -> np.ndarray:
        """Of the actions when they were taken, nats."""
        return _array(self.log_prob)

    @property
    def advantages(self) -> np.ndarray:
        """Generalised advantage estimates, before they are standardised within minibatches."""
        given, reward = self.member.hyperparams, self.reward
        if self.scales_rewards:
            reward = moments.scale(self.member.normalizer.returns, reward)
        return _array(gae(reward, self.value, self.next_value, self.end, given["gamma"], given["gae_lambda"]))

    @property
    def returns(self) -> np.ndarray:
        """λ-returns: values + advantages."""
        returns: np.ndarray = self.values + self.advantages
        return returns


def _array(x: Tensor) -> np.ndarray:
    array: np.ndarray = x[0].cpu().numpy().copy()
    return array


def _choices(space: spaces.Discrete | spaces.MultiDiscrete) -> np.ndarray:
    return np.asarray(space.n if isinstance(space, spaces.Discrete) else space.nvec)


def _shown(field: Field, x: Tensor) -> np.ndarray:
    """The inverse of what an agent is given; a choice has an axis of its own, as Stable-Baselines3 stores it."""
    space, seen = field.raw_space, _array(x)
    if isinstance(space, (spaces.Discrete, spaces.MultiDiscrete)):
        sizes, starts = (np.ravel(part) for part in (_choices(space), space.start))
        parts = np.split(seen, np.cumsum(sizes)[:-1], axis=-1)
        seen = np.stack([part.argmax(-1) + start for part, start in zip(parts, starts, strict=True)], axis=-1)
        return seen.astype(space.dtype).reshape(*seen.shape[:2], *(space.shape or (1,)))
    if field.spec.image and field.spec.shape != space.shape:
        return np.moveaxis(seen, 2, -1)
    return seen.reshape(*seen.shape[:2], *(space.shape or ())).astype(space.dtype)
