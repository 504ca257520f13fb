"""Translates Gymnasium spaces: observations become float32 arrays and uint8 images, stored actions become real ones."""

import dataclasses
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces

from popgraft.errors import ConfigError
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

Write = Callable[[np.ndarray, np.ndarray], None]
"""Writes a batch of raw observations [env, *raw shape] into an array [env, *shape]."""

Encode = Callable[[np.ndarray], np.ndarray]
"""Turns stored actions [*batch, dims] into the environment's own [*batch, *action shape], in a new array."""

OBSERVATIONS = "Box, Discrete, MultiDiscrete, MultiBinary and a flat Dict of these"
ACTIONS = "Discrete, one-dimensional MultiDiscrete, MultiBinary and Box"


@dataclasses.dataclass(frozen=True)
class Field:
    """One key of an observation.

    Attributes:
        key: its name in the environment's Dict space; None where the space is not a Dict.
        spec: what is delivered.
        space: the same as a Gymnasium space: an image has its channels first.
        raw_space: what the environment gives.
        write: how a raw batch is delivered.
        holds: whether a delivered batch [env, *shape] is of choices that the space has; None: it has no choices.
    """

    key: str | None
    spec: ObsSpec
    space: gym.Space[Any]
    raw_space: gym.Space[Any]
    write: Write
    holds: Callable[[np.ndarray], bool] | None = None


def fields_of(space: gym.Space[Any]) -> dict[str, Field]:
    """Every key of an observation space; a space that is not a Dict has the single key "obs".

    Raises:
        ConfigError: a space of another kind.
    """
    if not isinstance(space, spaces.Dict):
        return {"obs": _field(None, space, f"the observation space {space}")}
    if not space.spaces:
        raise ConfigError("the observation space Dict() has no keys; an agent needs something to see")
    for key in space.spaces:
        if not isinstance(key, str):
            raise ConfigError(f"the observation space has the key {key!r}; keys must be strings")
    return {key: _field(key, child, f"the observation space {child} of key {key!r}") for key, child in space.items()}


def spaces_of(observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> Spaces:
    """What an agent sees and does in an environment with these spaces.

    Args:
        observation_space: of one environment.
        action_space: of one environment.

    Raises:
        ConfigError: a space of a kind that is not supported.
    """
    fields = fields_of(observation_space)
    if isinstance(observation_space, spaces.Dict):
        seen: gym.Space[Any] = spaces.Dict({name: field.space for name, field in fields.items()})
    else:
        seen = fields["obs"].space
    specs = {name: field.spec for name, field in fields.items()}
    return Spaces(specs, action_spec_of(action_space), seen, observation_space)


def action_spec_of(space: gym.Space[Any]) -> ActionSpec:
    """The shape of an action.

    Raises:
        ConfigError: a space of a kind that is not supported.
    """
    if isinstance(space, spaces.Discrete):
        return ActionSpec("discrete", sizes=(int(space.n),), start=(int(space.start),), dtype=str(space.dtype))
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        sizes, start = _integers(space.nvec), _integers(space.start)
        return ActionSpec("multi_discrete", sizes=sizes, start=start, shape=space.shape, dtype=str(space.dtype))
    if isinstance(space, spaces.MultiBinary):
        dims = int(np.prod(space.shape))
        return ActionSpec("multi_binary", sizes=(2,) * dims, start=(0,) * dims, shape=space.shape)
    if isinstance(space, spaces.Box):
        low, high = (tuple(float(value) for value in bound.ravel()) for bound in (space.low, space.high))
        return ActionSpec("box", shape=space.shape, low=low, high=high, dtype=str(space.dtype))
    raise ConfigError(f"the action space {space} is not supported; supported are {ACTIONS}: wrap the environment")


def gym_action_space(spec: ActionSpec) -> gym.Space[Any]:
    """The Gymnasium space of an action, so that `action_spec_of` gives the action back."""
    sizes, start = np.array(spec.sizes, dtype=np.int64), np.array(spec.start or [0] * len(spec.sizes), dtype=np.int64)
    match spec.kind:
        case "discrete":
            return spaces.Discrete(int(sizes[0]), start=int(start[0]), **_typed(spec))
        case "multi_discrete":
            return spaces.MultiDiscrete(sizes, start=start, **_typed(spec))
        case "multi_binary":
            return spaces.MultiBinary(spec.shape)
        case "box":
            dtype = np.dtype(spec.dtype or np.float32)
            low, high = (_within(bound, dtype).reshape(spec.shape) for bound in (spec.low, spec.high))
            return spaces.Box(low, high, dtype=dtype.type)


def action_encoder(space: gym.Space[Any]) -> Encode:
    """How stored actions become the environment's own: shifted, shaped, clipped to the bounds, NaN as 0.

    Raises:
        ConfigError: a space of a kind that is not supported.
    """
    spec = action_spec_of(space)
    dtype, shape, start = space.dtype, spec.shape, np.array(spec.start, dtype=np.int64)

    def shift(actions: np.ndarray) -> np.ndarray:
        shifted: np.ndarray = (actions + start).astype(dtype, copy=False)
        return shifted.reshape((*actions.shape[:-1], *shape))

    if not isinstance(space, spaces.Box):
        return shift
    low, high, integral = space.low, space.high, np.issubdtype(space.dtype, np.integer)
    working = np.float64 if integral else dtype

    def clip(actions: np.ndarray) -> np.ndarray:
        finite = np.nan_to_num(actions.reshape(*actions.shape[:-1], *shape)).astype(working, copy=False)
        bounded: np.ndarray = np.clip(finite, low, high)
        if integral:
            bounded = np.rint(bounded).astype(dtype)
        return bounded

    return clip


def _typed(spec: ActionSpec) -> dict[str, Any]:
    """Argument of a space of choices that are no int64; the earliest Gymnasium knows no other in a Discrete."""
    return {} if spec.dtype in ("", "int64") else {"dtype": np.dtype(spec.dtype).type}


def _within(bound: tuple[float, ...], dtype: np.dtype[Any]) -> np.ndarray:
    """Bounds in a box's own type, which may hold whole numbers up to a little less than a float says."""
    if not np.issubdtype(dtype, np.integer):
        return np.array(bound, dtype)
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    return np.array([max(least, min(most, int(value))) for value in bound], dtype)


def _integers(values: np.ndarray) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _field(key: str | None, space: gym.Space[Any], what: str) -> Field:
    if isinstance(space, spaces.Box):
        return _box_field(key, space)
    if isinstance(space, spaces.MultiBinary):
        return Field(key, ObsSpec(space.shape), space, space, write_values, _are_bits)
    if isinstance(space, spaces.Discrete):
        return _one_hot_field(key, space, np.array([space.n]), np.array([space.start]))
    if isinstance(space, spaces.MultiDiscrete):
        return _one_hot_field(key, space, space.nvec.ravel(), space.start.ravel())
    raise ConfigError(
        f"{what} is not supported; supported are {OBSERVATIONS}: "
        "wrap the environment, for example with gymnasium.wrappers:FlattenObservation"
    )


def _box_field(key: str | None, space: spaces.Box) -> Field:
    """A uint8 array of 3 axes over 0…255 is an image, whose shorter outer axis is its channels; all else is numbers."""
    is_image = space.dtype == np.uint8 and len(space.shape) == 3 and not space.low.any() and (space.high == 255).all()
    if not is_image:
        if space.shape == ():
            vector = spaces.Box(space.low[None], space.high[None], dtype=space.dtype.type)
            return Field(key, ObsSpec((1,)), vector, space, _write_scalars)
        return Field(key, ObsSpec(space.shape), space, space, write_values)
    if space.shape[0] < space.shape[2]:
        return Field(key, ObsSpec(space.shape, image=True), space, space, write_values)
    height, width, channels = space.shape
    first = spaces.Box(0, 255, (channels, height, width), np.uint8)
    return Field(key, ObsSpec(first.shape, image=True), first, space, _write_channels_first)


def _one_hot_field(key: str | None, space: gym.Space[Any], sizes: np.ndarray, starts: np.ndarray) -> Field:
    """One indicator per choice: choice j of sub-observation i is on where raw[i] == starts[i] + j."""
    # Broadcasting a single column is cheaper than repeating it.
    owner = np.repeat(np.arange(len(sizes)), sizes) if len(sizes) > 1 else slice(None)
    choices = np.concatenate([start + np.arange(size) for start, size in zip(starts, sizes, strict=True)])

    def write(raw: np.ndarray, out: np.ndarray) -> None:
        np.equal(raw.reshape(len(out), -1)[:, owner], choices, out=out)

    def holds(out: np.ndarray) -> bool:
        return bool(np.count_nonzero(out) == len(out) * len(sizes))

    return Field(key, ObsSpec((len(choices),)), space, space, write, holds)


def _are_bits(out: np.ndarray) -> bool:
    return not np.count_nonzero(out * out != out)


def write_values(raw: np.ndarray, out: np.ndarray) -> None:
    """Delivers what agents see as it is."""
    out[...] = raw


def _write_scalars(raw: np.ndarray, out: np.ndarray) -> None:
    out[:, 0] = raw


def _write_channels_first(raw: np.ndarray, out: np.ndarray) -> None:
    out[...] = raw.transpose(0, 3, 1, 2)
