"""What environments answer, taken for what it says and nothing else: never broadcast, cut, or shared with them."""

import copy
import math
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces

from popgraft.errors import ConfigError, UnusableNumber
from popgraft.messages import told
from popgraft.rollout.spaces_of import Field, write_values
from popgraft.rollout.usable import LIMIT, fault_in, named

NUMBERS = "biuf"
"""NumPy's kinds of booleans and real numbers."""


def rewards(value: Any, num_envs: int) -> np.ndarray:
    """Rewards as an array [env].

    Raises:
        ConfigError: another shape, or no real numbers.
    """
    if type(value) is np.ndarray and value.shape == (num_envs,) and value.dtype.kind in NUMBERS:
        return value
    return _numbers(value, (num_envs,), "rewards")


def flags(value: Any, num_envs: int, name: str) -> np.ndarray:
    """Flags as a boolean array [env]; numbers that are all 0 or 1 are flags too.

    Args:
        value: as the environment gave it.
        num_envs: environments that it is said of.
        name: what it is called, for errors.

    Raises:
        ConfigError: another shape, or something else than flags.
        UnusableNumber: a number that is not finite.
    """
    if type(value) is np.ndarray and value.shape == (num_envs,) and value.dtype == np.bool_:
        return value
    array = _numbers(value, (num_envs,), name)
    for env in np.flatnonzero(~np.isin(array, (0, 1))).tolist():
        raise _no_flag(float(array[env]), name, env)
    return array.astype(np.bool_)


def flag(value: Any, name: str, number: int | None = None) -> bool:
    """A flag of one environment.

    Args:
        value: as the environment gave it.
        name: what it is called, for errors.
        number: which environment it is of several, for errors.

    Raises:
        ConfigError: something else than a flag.
        UnusableNumber: a number that is not finite.
    """
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    if (found := _single(value, name)) not in (0, 1):
        raise _no_flag(float(found), name, number)
    return bool(found)


def _no_flag(found: float, name: str, number: int | None) -> Exception:
    """What is wrong with the environment in every episode, or with this number of it alone."""
    kind = ConfigError if math.isfinite(found) else UnusableNumber
    return kind(f"{_who(number)} gave {name}={found:g}, which is no flag; give true or false for every environment")


def _who(number: int | None) -> str:
    return "an environment" if number is None else f"environment {number}"


def deliver(fields: Mapping[str, Field], raw: Any, out: Mapping[str, np.ndarray], first: int = 0) -> None:
    """Copies observations into the agents' arrays.

    Args:
        fields: every key of the observation space.
        raw: a batch of observations [env, *raw shape], of a Dict space a mapping to such arrays.
        out: [env, *shape] of every key.
        first: number of the first of these environments, for messages.

    Raises:
        ConfigError: other keys, shapes or types than the space says.
        UnusableNumber: what a space of whole numbers cannot hold because it is not finite, or far too large, and a
            choice that a space does not have.
    """
    for name, field in fields.items():
        given = raw if field.key is None else _entry(raw, field.key)
        shape = (len(out[name]), *(field.raw_space.shape or ()))
        _put(field, _numbers_of(field, given, shape, first), out[name], first)


def delivered(fields: Mapping[str, Field], observation: Any) -> dict[str, np.ndarray]:
    """Observations that an agent is asked about, as it sees them, [env, *shape] in new arrays.

    Args:
        fields: every key of the observation space.
        observation: [env, *raw shape], of a Dict space a mapping to such arrays; or what agents see of them.

    Raises:
        ConfigError: other keys, shapes or types.
        UnusableNumber: a number that is not finite, or far too large, or a choice that a space does not have.
    """
    given = observation if isinstance(observation, Mapping) else {"obs": observation}
    if set(given) != set(fields):
        raise ConfigError(f"the observation has the keys {sorted(given)}; the agent knows {sorted(fields)}")
    arrays = {}
    for name, field in fields.items():
        array, shape, seen = _array(given[name]), field.raw_space.shape or (), field.spec.shape
        found = (1, *shape) if array is None else array.shape
        if not found or found[1:] not in (shape, seen):
            also = "" if shape == seen else f", or {('env', *seen)} as the network sees it"
            raise ConfigError(f"observation {name!r} has shape {found}; the agent expects {('env', *shape)}{also}")
        arrays[name] = np.zeros((found[0], *seen), np.uint8 if field.spec.image else np.float32)
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite, and found to be
            numbers = _numbers_of(field, given[name], found)
            if found[1:] == shape:
                _put(field, numbers, arrays[name])
            else:
                write_values(numbers, arrays[name])
    if len({len(array) for array in arrays.values()}) > 1:
        sizes = ", ".join(f"{name!r} {len(array)}" for name, array in arrays.items())
        raise ConfigError(f"the observation's keys are of different numbers of environments: {sizes}; give one of each")
    if fault := fault_in(named(arrays)):
        raise fault
    return arrays


def starts_of(given: Any, envs: int) -> np.ndarray:
    """Where an agent is told that an episode begins, as a boolean array [env].

    Raises:
        ConfigError: other than one flag for every environment.
    """
    starts = np.asarray(given)
    if starts.size != envs or starts.dtype.kind not in NUMBERS:
        raise ConfigError(f"episode_start={_shown(given)} must be one flag for each of {envs} environments")
    return starts.reshape(envs).astype(np.bool_)


def _put(field: Field, numbers: np.ndarray, out: np.ndarray, first: int = 0) -> None:
    """Writes one key of observations, and looks whether its space has such a choice."""
    field.write(numbers, out)
    if field.holds is not None and not field.holds(out):
        env = next(env for env in range(len(out)) if not field.holds(out[env : env + 1]))
        raise UnusableNumber(
            f"environment {first + env} gave {_shown(numbers[env].tolist())} as observation {field.key or 'obs'!r}, "
            f"which is not in {field.raw_space}; give what the space holds, or declare a larger one"
        )


def _numbers_of(field: Field, given: Any, shape: tuple[int, ...], first: int = 0) -> np.ndarray:
    """One key of observations, of the shape that it must have and of numbers that its space can hold."""
    fits = type(given) is np.ndarray and given.shape == shape and given.dtype.kind in NUMBERS
    array = given if fits else _numbers(given, shape, _called(field.key))
    dtype = np.dtype(field.raw_space.dtype)
    if (field.spec.image and array.dtype != dtype) or (array.dtype.kind == "f" and dtype.kind in "iu"):
        return _exactly(array, dtype, field.key, first)
    return array


def one(obs: Any) -> Any:
    """The observation of one environment as a batch of one."""
    if isinstance(obs, Mapping):
        return {key: one(value) for key, value in obs.items()}
    return obs[None] if isinstance(obs, (np.ndarray, torch.Tensor)) else [obs]


def share_memory(a: Any, b: Any) -> bool:
    """Whether observations lie in the same memory."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return any(share_memory(a[key], b[key]) for key in a.keys() & b.keys())
    return isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and np.shares_memory(a, b)


def own(env: gym.Env[Any, Any], number: int | None = None) -> gym.Env[Any, Any]:
    """Lets an environment's `step` and `reset` answer with copies, so that it may write into its arrays again.

    A vector environment keeps the terminal observation by reference while the reset of the same step overwrites it.

    Args:
        env: a single environment.
        number: which one it is of several, for messages.
    """
    if not isinstance(vars(env).get("step"), _Step):
        vars(env).update(step=_Step(env), reset=_Reset(env))
    layer: Any = env
    while number is not None and isinstance(layer, gym.Env):  # some lie beneath wrappers
        for method in (vars(layer).get(name) for name in ("step", "reset")):
            if isinstance(method, (_Step, _Reset)):
                method.number = number
        layer = vars(layer).get("env")
    return env


class _Step:
    """`step` of an environment whose answers are the caller's own.

    Raises:
        ConfigError: an answer of another shape or type than it should have.
        UnusableNumber: a flag that is not finite, what a space of whole numbers cannot hold because it is not finite or
            far too large, and what is too large for any number.
    """

    number: int | None = None

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._step, self._space = env.step, env.observation_space

    def __call__(self, action: Any) -> tuple[Any, Any, Any, Any, Any]:
        try:
            answer: Any = self._step(action)
        except OverflowError as error:  # of a wrapper that adds up rewards, for one
            raise UnusableNumber(
                f"{_who(self.number)} gave a number that is too large: {told(error)}; numbers must be no larger than "
                f"{LIMIT:g}"
            ) from error
        obs, reward, terminated, truncated, info = answer
        if not isinstance(reward, (float, np.floating, np.integer)):
            reward = reward if isinstance(reward, int) and abs(reward) <= LIMIT else _single(reward, "the reward")
        if type(terminated) is not bool:
            terminated = flag(terminated, "terminated", self.number)
        if type(truncated) is not bool:
            truncated = flag(truncated, "truncated", self.number)
        return _copied(obs, self._space, self.number), reward, terminated, truncated, {**info}


class _Reset:
    """`reset` of an environment whose answers are the caller's own; raises what `_Step` does."""

    number: int | None = None

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        self._reset, self._space = env.reset, env.observation_space

    def __call__(self, *arguments: Any, **named: Any) -> tuple[Any, Any]:
        obs, info = self._reset(*arguments, **named)
        return _copied(obs, self._space, self.number), {**info}


def _copied(obs: Any, space: gym.Space[Any], number: int | None, key: str | None = None) -> Any:
    """A copy of one observation, checked."""
    if isinstance(space, spaces.Dict):
        return {name: _copied(_entry(obs, name), child, number, name) for name, child in space.spaces.items()}
    if not isinstance(space, (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)):
        return copy.deepcopy(obs)
    if type(obs) is np.ndarray and obs.shape == space.shape and obs.dtype == space.dtype:
        return obs.copy()
    shape = space.shape or ()
    single = np.prod(shape) == 1 and np.size(obs) == 1  # () and (1,) say the same
    array = np.reshape(_single(obs, _called(key)), shape) if single else _numbers(obs, shape, _called(key))
    if not np.can_cast(array.dtype, space.dtype, "same_kind"):
        array = _exactly(array[None], np.dtype(space.dtype), key, number)[0]
    return array[()].copy()


def _entry(obs: Any, key: str) -> Any:
    if not isinstance(obs, Mapping) or key not in obs:
        found = f"has the keys {sorted(map(str, obs))}" if isinstance(obs, Mapping) else f"is {_shown(obs)}"
        raise ConfigError(f"the observation {found}, but the observation space has the key {key!r}; give every key")
    return obs[key]


def _single(value: Any, name: str) -> Any:
    """The only number in an array, a list or a tensor."""
    array = _array(value)
    return _numbers(value, () if array is None or array.size != 1 else array.shape, name).item()


def _exactly(array: np.ndarray, dtype: np.dtype[Any], key: str | None, first: int | None = 0) -> np.ndarray:
    """The same numbers [env, *shape] in another type; the first environment has the number `first`."""
    if fault := fault_in({f"observation {key or 'obs'!r}": array}, first):
        raise fault
    with np.errstate(invalid="ignore"):
        cast = array.astype(dtype)
    if not np.array_equal(cast, array):
        raise ConfigError(
            f"{_called(key)} has numbers of type {array.dtype} that the observation space's {dtype} cannot hold, such "
            f"as {array[cast != array][0]:g}; give {dtype}, or declare a space of type {array.dtype}"
        )
    return cast


def _numbers(value: Any, shape: tuple[int, ...], name: str) -> np.ndarray:
    """A value as an array of real numbers of the shape that it must have."""
    array = _array(value)
    if array is None or array.dtype.kind not in NUMBERS:
        raise ConfigError(f"the environment gave {name}={_shown(value)}, which are no numbers; give an array of them")
    if array.shape != shape:
        axes, wanted = ([size for size in axes if size != 1] for axes in (array.shape, shape))
        if axes == wanted:
            fix = f"reshape it to {shape}"
        elif array.ndim < len(shape):
            fix = "give one for every environment" if len(shape) == 1 else "leave out no axis"
        else:
            fix = "give what the observation space declares" if shape else "give a single one"
        raise ConfigError(f"the environment gave {name} of shape {array.shape}, not {shape}: {_shown(value)}; {fix}")
    return array


def _array(value: Any) -> np.ndarray | None:
    """What a tensor, a list or a number says; None: nothing that an array can hold."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu()
        value = (value.double() if value.is_floating_point() else value).numpy()
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):  # lists of unlike length, arrays of another device
        return None
    if array.dtype == object and all(isinstance(x, (int, float)) for x in array.flat):  # some are longer than 64 bits
        return np.array([_double(x) for x in array.flat]).reshape(array.shape)
    return array


def _double(number: int | float) -> float:
    try:
        return float(number)
    except OverflowError:
        return math.inf if number > 0 else -math.inf


def _called(key: str | None) -> str:
    return "observations" if key is None else f"observations of key {key!r}"


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:60]}…"
