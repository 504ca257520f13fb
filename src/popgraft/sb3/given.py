"""Arguments that other libraries would refuse in words of their own, late, or not at all."""

import operator
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gymnasium as gym
import torch
from stable_baselines3.common.base_class import maybe_make_env
from stable_baselines3.common.utils import FloatSchedule, get_device

from popgraft.errors import ArgumentError


def environment(env: Any, verbose: int) -> Any:
    """An environment, made if it is a registered id.

    Raises:
        ArgumentError: there is no such id.
    """
    with _naming("env", env, "register it, or pass an environment", gym.error.Error, ImportError):
        return None if env is None else maybe_make_env(env, verbose)


def argument(name: str, value: Any) -> Any:
    """An argument of `READ` as the algorithm takes it.

    Raises:
        ArgumentError: it cannot work; also of the kind of error that its use would have raised.
    """
    read, fix = READ[name]
    with _naming(name, value, fix, TypeError, ValueError, AssertionError, RuntimeError, NotImplementedError):
        return read(value)


def _seed(value: Any) -> int | None:
    number = None if value is None else operator.index(value)
    if number is not None and number < 0:
        raise ValueError("it is negative")
    return number


def _device(value: Any) -> torch.device:
    device = get_device(value)
    torch.zeros(1, device=device).item()
    return device


def _schedule(value: Any) -> Any:
    """A number, or a function of the remaining progress that begins with one."""
    if isinstance(value, bool):
        raise TypeError("it is no number")
    FloatSchedule(value)(1.0)
    return value


def _optional(use: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """None, or what can be used so."""

    def read(value: Any) -> Any:
        if value is not None:
            use(value)
        return value

    return read


def _verbosity(value: Any) -> Any:
    operator.ge(value, 1)
    return value


_SCHEDULE = "give a number, or a function of the remaining progress that returns one"

READ: dict[str, tuple[Callable[[Any], Any], str]] = {
    "learning_rate": (_optional(_schedule), _SCHEDULE),
    "clip_range": (_schedule, _SCHEDULE),
    "clip_range_vf": (_optional(_schedule), f"{_SCHEDULE}, or None"),
    "stats_window_size": (_optional(lambda size: deque(maxlen=size)), "give a whole number of episodes"),
    "tensorboard_log": (lambda folder: None if folder is None else os.fspath(folder), "give a folder, or None"),
    "verbose": (_verbosity, "give 0, 1 or 2"),
    "seed": (_seed, "give a whole number from 0, or None"),
    "device": (_device, "name one such as auto, cpu or cuda"),
}
"""How an argument is read, which fails as its use would, and what to give instead."""


@contextmanager
def _naming(name: str, value: Any, fix: str, *kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except kinds as error:
        raise kind_of(type(error))(f"{name}={value!r} cannot work: {error}; {fix}") from error


def kind_of(kind: Any) -> type[ArgumentError]:
    """ArgumentError that is caught as an error of another kind too."""
    if issubclass(ArgumentError, kind):
        return ArgumentError
    return type("ArgumentError", (ArgumentError, kind), {"__reduce__": lambda self: (_remade, (kind, *self.args))})


def _remade(kind: type[Exception], *args: Any) -> ArgumentError:
    return kind_of(kind)(*args)
