"""Finds wrappers that average what they have seen: statistics that no graft, snapshot or evaluation would carry."""

from collections.abc import Iterator
from typing import Any

from gymnasium import wrappers
from gymnasium.vector import AsyncVectorEnv

ATTRIBUTES = ("obs_rms", "return_rms")
"""Where Gymnasium's wrappers keep their statistics."""


def running_statistics(env: Any) -> list[str]:
    """Names of the wrappers of a vector environment, or of the environments in it, whose running statistics go on.

    One that is frozen (`update_running_mean`, of a VecNormalize `training`, is False) is a transformation like others.

    Args:
        env: a Gymnasium VectorEnv, a Stable-Baselines3 VecEnv, or what a factory has made instead.
    """
    base = getattr(env, "unwrapped", env)
    layers = [*_layers(env), *(layer for single in getattr(base, "envs", ()) for layer in _layers(single))]
    return list(dict.fromkeys([*(type(layer).__name__ for layer in layers if _averages(layer)), *_in_processes(base)]))


def _layers(env: Any) -> Iterator[Any]:
    """The wrappers around an environment."""
    while inner := vars(env).get("env", vars(env).get("venv")):
        yield env
        env = inner


def _averages(wrapper: Any) -> bool:
    held = [
        part for value in vars(wrapper).values() for part in (value.values() if isinstance(value, dict) else [value])
    ]
    if all(base.__name__ != "RunningMeanStd" for part in held for base in type(part).__mro__):
        return False
    return bool(getattr(wrapper, "update_running_mean", getattr(wrapper, "training", True)))


def _in_processes(base: Any) -> Iterator[str]:
    """What environments in other processes say of themselves."""
    if isinstance(base, AsyncVectorEnv):
        for name in ATTRIBUTES:
            if any(base.call("has_wrapper_attr", name)) and any(base.get_attr("update_running_mean")):
                yield f"a wrapper with {name}"
    elif hasattr(base, "remotes"):
        for kind in (wrappers.NormalizeObservation, wrappers.NormalizeReward):
            if any(base.env_is_wrapped(kind)) and any(base.get_attr("update_running_mean")):
                yield kind.__name__
