"""Stable-Baselines3's observation and reward normalisation, found and written by its attributes alone.

What moves at a graft is `obs_rms`, `ret_rms`, `clip_obs` and `epsilon`, into the object that the recipient has; running
returns, `training`, and every wrapper stay.
"""

import logging
import zipfile
from collections.abc import Callable, Mapping
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
from popgraft.foreign.step import Step
from popgraft.untrusted import load_plain

logger = logging.getLogger(__name__)

STATE = "vecnormalize_state"
MOMENTS = ("mean", "var", "count")
SCALARS = ("clip_obs", "epsilon")
LARGEST = 2**30
"""Bytes of a file of statistics at most."""
DEEPEST = 100
"""Wrappers that are looked through."""


def find(model: Any, env: Any = None) -> Any:
    """The `VecNormalize` in the wrapper stack of an environment; None where there is none.

    Args:
        model: its `env` is searched.
        env: the environment to search instead.
    """
    layer = getattr(model, "env", None) if env is None else env
    for _ in range(DEEPEST):
        own = getattr(layer, "__dict__", {})
        if "ret_rms" in own and callable(getattr(layer, "normalize_obs", None)):
            return layer
        if "venv" not in own:
            return None
        layer = own["venv"]
    return None


def statistics(normalizer: Any) -> dict[str, Any]:
    """What is inherited of a `VecNormalize`, as tensors and numbers."""
    state = {name: float(getattr(normalizer, name)) for name in SCALARS}
    return {**state, **{name: _moments(running) for name, running in _running(normalizer).items()}}


def write_statistics(path: Path, normalizer: Any) -> None:
    """Writes `statistics` to a file, atomically."""
    buffer = BytesIO()
    torch.save({STATE: statistics(normalizer)}, buffer)
    checkpoint.write(path, buffer.getvalue())


def read_statistics(path: Path) -> dict[str, Any]:
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
    if isinstance(found, dict) and isinstance(found.get(STATE), dict):
        return dict(found[STATE])
    raise StoreError(
        f"{path} holds no VecNormalize statistics that can be read without running code; pass what "
        "save_member_checkpoint wrote, not a pickle of VecNormalize.save"
    )


def synchronize(model: Any, normalizer: Any, state: Any, message: str) -> Step:
    """Overwrites the statistics in place, and normalises the model's last observation anew.

    Args:
        model: whose `_last_obs` is the input of its next action.
        normalizer: its `VecNormalize`.
        state: the donor's `statistics`.
        message: logged once that is done.

    Raises:
        ConfigError: the statistics are of other observations.
    """
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
    scalars = {name: state[name] for name in SCALARS}
    for name, value in scalars.items():
        if not isinstance(value, Real) or not float(value) > 0:
            raise ConfigError(f"VecNormalize statistics: {name}={value!r} must be a positive number")

    def remember() -> Callable[[], None]:
        moments = [(own, [getattr(own, part) for part in MOMENTS]) for _, own, _ in pairs]
        before = {name: getattr(normalizer, name) for name in SCALARS}
        last = getattr(model, "_last_obs", None)

        def restore() -> None:
            for own, values in moments:
                for part, value in zip(MOMENTS, values, strict=True):
                    setattr(own, part, value)
            for name, value in before.items():
                setattr(normalizer, name, value)
            if last is not None:
                model._last_obs = last

        return restore

    def apply() -> None:
        last, original = getattr(model, "_last_obs", None), getattr(normalizer, "old_obs", None)
        seen = last is not None and original is not None
        passed_through = seen and _same(last, normalizer.normalize_obs(original))
        for _, own, new in pairs:
            own.mean, own.var, own.count = _array(new["mean"]), _array(new["var"]), float(new["count"])
        for name, value in scalars.items():
            setattr(normalizer, name, float(value))
        if passed_through:
            model._last_obs = normalizer.normalize_obs(original)
        elif seen:
            logger.warning(
                "The last observation was changed after VecNormalize, by a wrapper above it, so it stays normalised by "
                "the old statistics for one step of every environment; put VecNormalize outermost"
            )
        logger.info(message)

    return Step(remember, apply)


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
