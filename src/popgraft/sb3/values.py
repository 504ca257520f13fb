"""Arguments as JSON and back; of objects only those that are known here by name."""

import dataclasses
import logging
import math
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.utils import ConstantSchedule, FloatSchedule, LinearSchedule

from popgraft.errors import ConfigError, StoreError
from popgraft.foreign.live import Constant
from popgraft.sb3.arguments import OPTIMIZERS
from popgraft.sb3.network import ACTIVATIONS, ENCODERS
from popgraft.sb3.plausible import LARGEST_SPACE

log = logging.getLogger(__name__)

CLASSES: dict[str, type] = {cls.__name__: cls for known in (ACTIVATIONS, ENCODERS, OPTIMIZERS) for cls in known}
"""Classes that a file names."""

MARK = "popgraft:"
"""Begins the only key of what is no plain JSON."""


@dataclasses.dataclass
class Missing:
    """What a file could not hold, found while it is decoded."""

    names: list[str] = dataclasses.field(default_factory=list)

    def check(self, path: str) -> None:
        """Says what must be given to `load`.

        Raises:
            ConfigError: something is missing.
        """
        if self.names:
            top = sorted({name.split("=")[0].split(".")[0] for name in self.names})
            raise ConfigError(
                f"{path} was saved with {', '.join(self.names)}, which a file cannot hold without code; "
                "give it again in Python: DistributionalPPO.load(path, "
                f"custom_objects={{{', '.join(f'{name!r}: ...' for name in top)}}})"
            )


def encode(value: Any) -> Any:
    """A value as JSON; of a schedule that is a function, the value that it begins with."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): encode(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(part) for part in value]
    if isinstance(value, gym.Space):
        return {f"{MARK}space": _encode_space(value)}
    if isinstance(value, type) and value in CLASSES.values():
        return {f"{MARK}class": value.__name__}
    if isinstance(value, FloatSchedule):
        return encode(value.value_schedule)
    if isinstance(value, (ConstantSchedule, Constant)):
        return float(value(1.0))
    if isinstance(value, LinearSchedule):
        return {f"{MARK}linear": [float(value.start), float(value.end), float(value.end_fraction)]}
    name = getattr(value, "__qualname__", type(value).__qualname__)
    if callable(value) and not isinstance(value, type):
        return {f"{MARK}schedule": [name, float(value(1.0))]}
    return {f"{MARK}missing": name}


def decode(value: Any, name: str, missing: Missing) -> Any:
    """The inverse of `encode`.

    Args:
        value: JSON.
        name: what it belongs to, for messages.
        missing: is told of what the file could not hold.
    """
    if isinstance(value, list):
        return [decode(part, name, missing) for part in value]
    if not isinstance(value, dict):
        return value
    key = next(iter(value), "")
    if len(value) != 1 or not key.startswith(MARK):
        return {key: decode(part, f"{name}.{key}", missing) for key, part in value.items()}
    content = value[key]
    match key.removeprefix(MARK):
        case "space":
            return _decode_space(content)
        case "class":
            return CLASSES[content]
        case "linear":
            return LinearSchedule(*content)
        case "schedule":
            log.warning("%s was the function %s, which a file cannot hold: it is %g from now on", name, *content)
            return content[1]
        case _:
            missing.names.append(f"{name}={content}")
            return None


def _encode_space(space: gym.Space[Any]) -> dict[str, Any]:
    if isinstance(space, gym.spaces.Dict):
        return {"Dict": {key: _encode_space(child) for key, child in space.spaces.items()}}
    if isinstance(space, gym.spaces.Discrete):
        return {"Discrete": [int(space.n), int(space.start), str(space.dtype)]}
    if isinstance(space, gym.spaces.MultiDiscrete):
        return {"MultiDiscrete": [space.nvec.tolist(), str(space.dtype), space.start.tolist()]}
    if isinstance(space, gym.spaces.MultiBinary):
        return {"MultiBinary": list(space.shape) if len(space.shape) > 1 else int(space.shape[0])}
    if isinstance(space, gym.spaces.Box):
        return {"Box": [_bounds(space.low), _bounds(space.high), list(space.shape), str(space.dtype)]}
    raise ConfigError(f"the space {space} cannot be saved")


def _bounds(values: np.ndarray) -> Any:
    """One number where all bounds are the same."""
    return values.flat[0].item() if values.size and (values == values.flat[0]).all() else values.tolist()


def _decode_space(content: dict[str, Any]) -> gym.Space[Any]:
    ((kind, arguments),) = content.items()
    match kind:
        case "Dict":
            return gym.spaces.Dict({key: _decode_space(child) for key, child in arguments.items()})
        case "Discrete":
            n, start, dtype = (*arguments, "int64")[:3]  # files of earlier versions have two
            typed = {} if dtype == "int64" else {"dtype": np.dtype(dtype).type}
            return gym.spaces.Discrete(n, start=start, **typed)
        case "MultiDiscrete":
            nvec, dtype, start = arguments
            return gym.spaces.MultiDiscrete(np.array(nvec), dtype=np.dtype(dtype).type, start=np.array(start))
        case "MultiBinary":
            _check_shape(np.atleast_1d(arguments).tolist())
            return gym.spaces.MultiBinary(arguments)
        case _:
            low, high, shape, dtype = arguments
            _check_shape(shape)
            low, high = (np.broadcast_to(np.array(bound, dtype), shape) for bound in (low, high))
            return gym.spaces.Box(low, high, tuple(shape), np.dtype(dtype).type)


def _check_shape(shape: list[int]) -> None:
    if math.prod(shape) > LARGEST_SPACE:
        raise StoreError(f"a space of shape {shape} is refused; the largest has {LARGEST_SPACE:,} numbers")
