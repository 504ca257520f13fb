"""One member's environments behind one interface, and what any answer of theirs must be."""

import abc
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np

from popgraft.errors import ConfigError
from popgraft.rollout.answers import flags, rewards, share_memory
from popgraft.rollout.monitor import EpisodeMonitor

Finals = Any
"""Terminal observations that were replaced already: by environment, as array or dict, or such arrays by key."""

Outcome = tuple[Any, np.ndarray, np.ndarray, np.ndarray, Finals]
"""Observations as they were given, rewards, terminations, truncations [env], and `Finals` (None in next-step mode)."""


class MemberEnv(abc.ABC):
    """The environments of one member; a factory may return a subclass for a library of its own.

    A step is split in two, so that members whose environments live in other processes or threads run at the same time.

    Attributes:
        observation_space: of one environment.
        action_space: of one environment.
        next_step: whether a finished environment shows its terminal observation and spends the next step on its reset;
            otherwise it shows the new episode's first observation at once.
        in_process: whether the environments run in this process, where nothing can interrupt them.
        metadata: what the environments say of themselves, `render_fps` for one.
        monitor: what it says of whole episodes, beneath wrappers that cut them or change rewards; None: nothing.
    """

    observation_space: gym.Space[Any]
    action_space: gym.Space[Any]
    next_step: bool
    in_process: bool = True
    metadata: Mapping[str, Any] = {}
    monitor: EpisodeMonitor | None = None

    @abc.abstractmethod
    def reset(self, seed: int) -> Any:
        """Starts fresh episodes everywhere, all of whose randomness comes from the seed.

        Returns:
            The first observations, [env, *shape], of a Dict space a mapping to such arrays.
        """

    @abc.abstractmethod
    def send(self, actions: np.ndarray) -> None:
        """Begins a step.

        Args:
            actions: [env, *action shape], as the action space counts them, within its bounds.
        """

    @abc.abstractmethod
    def receive(self) -> Outcome:
        """Completes the step.

        Returns:
            Observations, rewards, terminations and truncations [env], and the terminal observations that were replaced:
            indexed by environment, asked for where an episode was truncated; None with `next_step`.

        Raises:
            ConfigError: rewards or flags of another shape or type than one for every environment.
            UnusableNumber: a flag that is not finite.
        """

    def render(self) -> Any:
        """The first environment's image, if it was made to have one; None: it cannot have one."""
        return None

    @abc.abstractmethod
    def close(self) -> None:
        """Releases processes and memory, also of environments that have failed."""


def outcome(reward: Any, terminated: Any, truncated: Any, num_envs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rewards and flags as arrays, one for every environment."""
    ends = flags(terminated, num_envs, "terminated"), flags(truncated, num_envs, "truncated")
    return rewards(reward, num_envs), *ends


def kept(finals: Finals, obs: Any, truncated: np.ndarray) -> Finals:
    """The terminal observations, once it is known that the new ones have not been written over them.

    Args:
        finals: of a step that replaced them.
        obs: the new observations [env].
        truncated: where the terminal ones are needed.

    Raises:
        ConfigError: they lie in the same memory.
    """
    for env in np.flatnonzero(truncated).tolist():
        if share_memory(final_observation(finals, env), obs):
            raise ConfigError(
                "the environments' terminal observation lies in the array of the new episode's first, which has "
                "overwritten it; copy it before the reset"
            )
    return finals


def final_observation(finals: Finals, env: int) -> Any:
    """The terminal observation of one environment, as the environment returned it.

    Raises:
        ConfigError: the vector environment did not hand it over, and it cannot be had in any other way.
    """
    final = None
    if isinstance(finals, Mapping):
        of_keys = finals and all(isinstance(key, str) for key in finals)  # environments are numbers
        final = {key: values[env] for key, values in finals.items()} if of_keys else finals.get(env)
    elif finals is not None:
        final = finals[env]
    if final is None:
        raise ConfigError(
            "an episode was truncated and reset in the same step without its terminal observation, which a vector "
            "environment hands over as info['final_obs'] (a VecEnv as infos[i]['terminal_observation'])"
        )
    return final
