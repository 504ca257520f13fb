"""Observation wrappers that act on a whole population at once, and the lookup of those that Gymnasium brings."""

import abc
import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from popgraft import rng
from popgraft.config import WrapperConfig
from popgraft.errors import ConfigError
from popgraft.names import import_name
from popgraft.spaces import ObsSpec, Spaces

Observations = dict[str, np.ndarray]
"""Every observation key as [rows, env, *shape]."""


class ObservationWrapper(abc.ABC):
    """Changes what the members see, without touching the environments.

    Attributes:
        spaces: what an agent sees behind the wrapper, and does.
    """

    spaces: Spaces

    def reset(self, row: int, seed: int) -> None:  # noqa: B027 - only wrappers that draw numbers need it
        """Starts the member's random stream anew."""

    @abc.abstractmethod
    def __call__(self, observations: Observations, rows: Sequence[int]) -> Observations:
        """The wrapped observations of the members `rows`, in new arrays."""


class Hide(ObservationWrapper):
    """Drops components of a vector observation, for example velocities, so that they have to be remembered.

    Args:
        spaces: what is seen without it.
        indices: list of the components that are dropped, as read from a file; negative ones count from the end.
        key: the observation key; may be left out where there is only one.

    Raises:
        ConfigError: no such key, an observation that is not a vector, or an index outside it.
    """

    def __init__(self, spaces: Spaces, indices: Any, key: str | None = None) -> None:
        if key is None and len(spaces.obs) > 1:
            raise ConfigError(f"wrapper hide needs a key, one of {', '.join(spaces.obs)}: the observation has several")
        self._key = next(iter(spaces.obs)) if key is None else key
        if self._key not in spaces.obs:
            raise ConfigError(f"wrapper hide: no observation key {key!r}; the keys are {', '.join(spaces.obs)}")
        shape = spaces.obs[self._key].shape
        if len(shape) != 1:
            raise ConfigError(f"wrapper hide drops components of a vector, but {self._key!r} has shape {shape}")
        if not isinstance(indices, list) or not indices:
            raise ConfigError(f"wrapper hide: indices={indices!r} must list the components to drop, such as [1, 3]")
        for index in indices:
            if type(index) is not int or not -shape[0] <= index < shape[0]:
                raise ConfigError(
                    f"wrapper hide: index {index!r} is no component of {self._key!r}, which has {shape[0]}; "
                    f"valid are 0 to {shape[0] - 1} (and -{shape[0]} to -1)"
                )
        self._keep = np.delete(np.arange(shape[0]), indices)
        if not len(self._keep):
            raise ConfigError(f"wrapper hide: indices={indices} leave nothing of {self._key!r} to see")
        self.spaces = self._narrowed(spaces)

    def __call__(self, observations: Observations, rows: Sequence[int]) -> Observations:
        """Keeps the remaining components."""
        return observations | {self._key: observations[self._key].take(self._keep, axis=-1)}

    def _narrowed(self, before: Spaces) -> Spaces:
        spec = ObsSpec((len(self._keep),))
        own = before.observation_space
        whole = own[self._key] if isinstance(own, spaces.Dict) else own
        if isinstance(whole, spaces.Box):
            seen = spaces.Box(whole.low[self._keep], whole.high[self._keep], dtype=whole.dtype.type)
        else:  # indicators of a discrete observation
            seen = spaces.Box(0.0, 1.0, spec.shape)

        def within(space: gym.Space[Any]) -> gym.Space[Any]:
            return spaces.Dict({**space.spaces, self._key: seen}) if isinstance(space, spaces.Dict) else seen

        return dataclasses.replace(
            before,
            obs=before.obs | {self._key: spec},
            observation_space=within(before.observation_space),
            raw_space=within(before.raw_space),
        )


class Flicker(ObservationWrapper):
    """Shows zeros instead of the whole observation with a given probability, independently at every step.

    Hausknecht & Stone 2015, arXiv:1507.06527, §5 ("Flickering Atari").

    Args:
        spaces: what is seen without it.
        probability: share of observations that are zeroed, as read from a file.

    Raises:
        ConfigError: a probability outside [0, 1].
    """

    def __init__(self, spaces: Spaces, probability: Any) -> None:
        if not isinstance(probability, (int, float)) or not 0 <= probability <= 1:
            raise ConfigError(f"wrapper flicker: probability={probability!r} must lie in [0, 1]")
        self.spaces = spaces
        self._probability = probability
        self._generators: dict[int, np.random.Generator] = {}

    def reset(self, row: int, seed: int) -> None:
        """Starts the member's random stream anew."""
        self._generators[row] = rng.numpy_generator(seed, "flicker")

    def __call__(self, observations: Observations, rows: Sequence[int]) -> Observations:
        """Blanks some environments of every member."""
        envs = next(iter(observations.values())).shape[1]
        blank = np.stack([self._generators[row].random(envs) for row in rows]) < self._probability
        return {
            key: np.where(blank.reshape(*blank.shape, *(1,) * (value.ndim - 2)), value.dtype.type(0), value)
            for key, value in observations.items()
        }


BUILT_IN: dict[str, Callable[..., ObservationWrapper]] = {"hide": Hide, "flicker": Flicker}
"""Wrappers that are known by a plain name."""


def built_in_wrappers(configs: Sequence[WrapperConfig], spaces: Spaces) -> tuple[list[ObservationWrapper], Spaces]:
    """The wrappers with a plain name, and what is seen behind them.

    Args:
        configs: all wrappers of the configuration, in order.
        spaces: what the environments show.

    Raises:
        ConfigError: arguments that a wrapper does not take or cannot work with.
    """
    wrappers = []
    for config in configs:
        if ":" in config.name:
            continue
        try:
            wrapper = BUILT_IN[config.name](spaces, **config.kwargs)
        except TypeError as error:
            raise ConfigError(f"wrapper {config.name} does not take kwargs={config.kwargs}: {error}") from None
        spaces = wrapper.spaces
        wrappers.append(wrapper)
    return wrappers, spaces


def gymnasium_wrappers(configs: Sequence[WrapperConfig]) -> list[Callable[[Any], Any]]:
    """The wrappers that are named `module:Class`, each as a function from an environment to the wrapped one.

    Raises:
        ConfigError: an unknown name, a name that is not a Gymnasium wrapper, or one that follows a built-in wrapper.
    """
    wrappers = []
    previous = None
    for config in configs:
        if ":" not in config.name:
            if config.name not in BUILT_IN:
                raise ConfigError(_unknown(config.name))
            previous = config.name
            continue
        if previous is not None:
            raise ConfigError(
                f"wrapper {config.name!r} acts inside the environment, so it cannot follow the built-in wrapper "
                f"{previous!r}; list it first"
            )
        wrappers.append(_per_environment(config))
    return wrappers


def _per_environment(config: WrapperConfig) -> Callable[[Any], Any]:
    cls = import_name(config.name, "env.wrappers")
    if not (isinstance(cls, type) and issubclass(cls, gym.Wrapper)):
        raise ConfigError(f"env.wrappers: {config.name!r} is {cls!r}, not a subclass of gymnasium.Wrapper")

    def wrap(env: Any) -> Any:
        try:
            return cls(env, **config.kwargs)
        except TypeError as error:
            raise ConfigError(f"wrapper {config.name} does not take kwargs={config.kwargs}: {error}") from None

    return wrap


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, BUILT_IN, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"built-in ones are {', '.join(BUILT_IN)}."
    return f"unknown wrapper {name!r}; {hint} A Gymnasium wrapper is named as module:Class."
