"""Stable-Baselines3's observation and reward normalisation, found and written by its attributes alone.

What moves at a graft is `obs_rms`, `ret_rms`, `clip_obs` and `epsilon` of every `VecNormalize`, into the objects that
the recipient has; running returns, `training`, and every wrapper stay. Gymnasium's wrappers normalise each environment
by statistics of its own, which nobody else can take over: they are refused.
"""

import logging
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from io import BytesIO
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popgraft.disk import read_file, reason
from popgraft.errors import ConfigError, StoreError
from popgraft.foreign import checkpoint
from popgraft.foreign.change import Change
from popgraft.untrusted import load_plain

logger = logging.getLogger(__name__)

STATE = "vecnormalize_state"
MOMENTS = ("mean", "var", "count")
SCALARS = ("clip_obs", "epsilon")
LARGEST = 2**30
"""Bytes of a file of statistics at most."""
DEEPEST = 100
"""Wrappers that are looked through."""
GYMNASIUM = ("NormalizeObservation", "NormalizeReward")
"""Wrappers of Gymnasium that keep statistics, around an environment or around a vector of them."""


def layers(model: Any, env: Any = None) -> list[Any]:
    """Every `VecNormalize` in the wrapper stack of an environment, from the outermost inwards.

    Args:
        model: its `env` is searched.
        env: the environment to search instead.
    """
    return [layer for layer in _stack(model, env) if _normalizes(layer)]


def refuse_inner(model: Any, env: Any = None) -> None:
    """Refuses statistics inside the environments, which cannot be inherited.

    Raises:
        ConfigError: an environment is wrapped in Gymnasium's normalisation.
    """
    name = _inner(_stack(model, env))
    if name is not None:
        raise ConfigError(
            f"the environments are wrapped in {name}, whose statistics no other member can inherit; "
            "remove it, and wrap the vector of environments in Stable-Baselines3's VecNormalize"
        )


def statistics(normalizers: Sequence[Any]) -> dict[str, Any] | list[dict[str, Any]]:
    """What is inherited of each `VecNormalize`, as tensors and numbers; of a single one without a list around it."""
    states = [
        {name: float(getattr(each, name)) for name in SCALARS}
        | {name: _moments(running) for name, running in _running(each).items()}
        for each in normalizers
    ]
    return states[0] if len(states) == 1 else states


def write_statistics(path: Path, normalizers: Sequence[Any]) -> None:
    """Writes `statistics` to a file, atomically."""
    buffer = BytesIO()
    torch.save({STATE: statistics(normalizers)}, buffer)
    checkpoint.write(path, buffer.getvalue())


def read_statistics(path: Path) -> Any:
    """Reads what `write_statistics` wrote.

    Raises:
        StoreError: the file is missing, damaged or foreign; nothing of it is executed. `VecNormalize.save` writes a
            pickle, which is never read.
    """
    try:
        blob = read_file(path, LARGEST)
    except OSError as error:
        raise StoreError(f"cannot read the VecNormalize statistics {path}: {reason(error)}") from None
    found = load_plain(path, blob) if zipfile.is_zipfile(BytesIO(blob)) else None
    if isinstance(found, dict) and isinstance(found.get(STATE), (dict, list)):
        return found[STATE]
    raise StoreError(
        f"{path} holds no VecNormalize statistics that can be read without running code; pass what "
        "save_member_checkpoint wrote, not a pickle of VecNormalize.save"
    )


def synchronize(model: Any, normalizers: Sequence[Any], state: Any, message: str) -> Change:
    """Overwrites the statistics in place, and normalises the model's last observation anew.

    Args:
        model: whose `_last_obs` is the input of its next action.
        normalizers: its `layers`.
        state: the donor's `statistics`.
        message: logged once that is done.

    Raises:
        ConfigError: the statistics are of other observations, or of another number of `VecNormalize`.
    """
    states = state if isinstance(state, list) else [state]
    if len(states) != len(normalizers):
        raise ConfigError(
            f"the donor has {len(states)} VecNormalize in its stack, but the recipient has {len(normalizers)}; "
            "give all members the same wrappers"
        )
    pairs = [pair for own, theirs in zip(normalizers, states, strict=True) for pair in _checked(own, theirs)]

    def remember() -> Callable[[], None]:
        moments = [(own, part, getattr(own, part)) for own, _ in pairs for part in MOMENTS]
        scalars = [(each, name, getattr(each, name)) for each in normalizers for name in SCALARS]
        seen = [(each, "old_obs", each.old_obs) for each in normalizers if hasattr(each, "old_obs")]
        last = [(model, "_last_obs", model._last_obs)] if getattr(model, "_last_obs", None) is not None else []

        def restore() -> None:
            for owner, name, value in (*moments, *scalars, *seen, *last):
                setattr(owner, name, value)

        return restore

    def apply() -> None:
        last = getattr(model, "_last_obs", None)
        seen = last is not None and getattr(normalizers[-1], "old_obs", None) is not None
        passed_through = seen and _same(last, _normalized(normalizers))
        for own, new in pairs:
            own.mean, own.var, own.count = _array(new["mean"]), _array(new["var"]), float(new["count"])
        for each, theirs in zip(normalizers, states, strict=True):
            for name in SCALARS:
                setattr(each, name, float(theirs[name]))
        if passed_through:
            model._last_obs = _normalized(normalizers, renew=True)
        elif seen:
            logger.warning(
                "The last observation was changed after VecNormalize, by a wrapper above it, so it stays normalised by "
                "the old statistics for one step of every environment; put VecNormalize outermost"
            )
        logger.info(message)

    return Change(remember, apply)


def _stack(model: Any, env: Any) -> Iterator[Any]:
    """The wrappers of an environment, from the outermost inwards, and what they wrap."""
    layer = getattr(model, "env", None) if env is None else env
    for _ in range(DEEPEST):
        yield layer
        own = getattr(layer, "__dict__", {})
        inner = own.get("venv", own.get("env"))
        if inner is None:
            return
        layer = inner


def _normalizes(layer: Any) -> bool:
    return "ret_rms" in getattr(layer, "__dict__", {}) and callable(getattr(layer, "normalize_obs", None))


def _inner(stack: Iterable[Any]) -> str | None:
    """Name of a wrapper of Gymnasium among the layers, or inside the environments of the last one."""
    for layer in stack:
        names = {kind.__name__ for kind in type(layer).__mro__}
        found = next((name for name in GYMNASIUM if name in names), None)
        envs = getattr(layer, "__dict__", {}).get("envs")
        for env in envs if isinstance(envs, (list, tuple)) else ():
            found = found or _inner(_stack(None, env))
        if found is None and "remotes" in getattr(layer, "__dict__", {}):
            found = _in_processes(layer)
        if found is not None:
            return found
    return None


def _in_processes(vector: Any) -> str | None:
    """The same of environments in other processes, unless these are busy, or do not answer."""
    if getattr(vector, "waiting", False) or getattr(vector, "closed", False):
        return None
    import gymnasium

    try:
        return next((name for name in GYMNASIUM if any(vector.env_is_wrapped(getattr(gymnasium.wrappers, name)))), None)
    except (AttributeError, NotImplementedError, EOFError, OSError):
        return None


def _normalized(normalizers: Sequence[Any], renew: bool = False) -> Any:
    """The latest observation as it leaves the outermost of them, if nothing between them changes it.

    Args:
        normalizers: from the outermost inwards.
        renew: whether each of them takes what the next inner one makes of it for its own latest observation.
    """
    shown = normalizers[-1].old_obs
    for each in reversed(normalizers):
        if renew:
            each.old_obs = shown
        shown = each.normalize_obs(shown)
    return shown


def _checked(normalizer: Any, state: Any) -> list[tuple[Any, Any]]:
    """Own and new moments of one `VecNormalize`, which fit."""
    running = _running(normalizer)
    if not isinstance(state, Mapping) or set(state) != {*SCALARS, *running}:
        have = sorted(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise ConfigError(
            f"VecNormalize statistics have {have}, but the recipient's need {sorted({*SCALARS, *running})}; "
            "give all members the same VecNormalize"
        )
    pairs = [pair for name, own in running.items() for pair in _pairs(name, own, state[name])]
    for name, own, new in pairs:
        _check(name, own, new)
    for name in SCALARS:
        value = state[name]
        if not isinstance(value, Real) or not float(value) > 0:
            raise ConfigError(f"VecNormalize statistics: {name}={value!r} must be a positive number")
    return [(own, new) for _, own, new in pairs]


def _running(normalizer: Any) -> dict[str, Any]:
    """Running statistics by name: an object with mean, variance and count, or a dict of them."""
    return {name: getattr(normalizer, name) for name in ("obs_rms", "ret_rms") if hasattr(normalizer, name)}


def _moments(running: Any) -> dict[str, Any]:
    if isinstance(running, dict):
        return {key: _moments(part) for key, part in running.items()}
    mean, var = (torch.from_numpy(np.array(getattr(running, part), dtype=np.float64)) for part in ("mean", "var"))
    return {"mean": mean, "var": var, "count": float(running.count)}


def _pairs(name: str, own: Any, new: Any) -> list[tuple[str, Any, Any]]:
    if not isinstance(new, Mapping) or (isinstance(own, dict) and set(own) != set(new)):
        raise ConfigError(f"VecNormalize statistics: {name} is not of the recipient's observations")
    if not isinstance(own, dict):
        return [(name, own, new)]
    return [pair for key, part in own.items() for pair in _pairs(f"{name}.{key}", part, new[key])]


def _check(name: str, own: Any, new: Mapping[str, Any]) -> None:
    if set(new) != set(MOMENTS):
        raise ConfigError(f"VecNormalize statistics: {name} has {sorted(new)}, not {sorted(MOMENTS)}")
    mean, var, count = (_array(new[part]) for part in MOMENTS)
    shape = np.shape(own.mean)
    if mean.shape != shape or var.shape != shape:
        raise ConfigError(f"VecNormalize statistics: {name} has shape {mean.shape}, but the recipient's has {shape}")
    if not (np.isfinite(mean).all() and np.isfinite(var).all() and (var >= 0).all() and np.isfinite(count)):
        raise ConfigError(f"VecNormalize statistics: {name} holds numbers that no observations lead to")


def _array(value: Any) -> np.ndarray:
    return np.array(value.numpy() if isinstance(value, Tensor) else value, dtype=np.float64)


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return set(one) == set(other) and all(_same(one[key], other[key]) for key in one)
    return bool(np.array_equal(one, other))
