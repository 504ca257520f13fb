"""How far a model has come, which no copy inherits: its replay buffer, its schedulers, and the rates these have set."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from torch.optim.lr_scheduler import LRScheduler

from popgraft.errors import ConfigError
from popgraft.foreign.change import Change
from popgraft.foreign.optimizer import set_rate
from popgraft.foreign.trained import optimizers

Arrays = dict[str, np.ndarray]


def course_of(model: Any) -> dict[str, Any]:
    """The state of all of it.

    Raises:
        ConfigError: a replay buffer that holds something else than arrays.
    """
    buffer = getattr(model, "replay_buffer", None)
    return {
        "replay": None if buffer is None else _recorded(buffer),
        "schedulers": {name: scheduler.state_dict() for name, scheduler in attributes_of(model, LRScheduler)},
        "rates": {name: [group.get("lr") for group in each.param_groups] for name, each in optimizers(model).items()},
    }


def going_on(model: Any, course: Mapping[str, Any]) -> list[Change]:
    """Changes after which another model of the same kind is where that one was.

    Raises:
        ConfigError: it has another replay buffer, or other schedulers.
    """
    own, buffer = dict(attributes_of(model, LRScheduler)), getattr(model, "replay_buffer", None)
    if set(own) != set(course["schedulers"]) or (buffer is None) != (course["replay"] is None):
        raise ConfigError(
            f"a {type(model).__name__} was saved with other schedulers, or another replay buffer, than it has; "
            "build it as it was built then"
        )
    changes = [] if buffer is None else [_refilled(buffer, course["replay"])]
    changes += [_scheduled(own[name], state) for name, state in course["schedulers"].items()]
    for name, optimizer in optimizers(model).items():
        for group, rate in zip(optimizer.param_groups, course["rates"].get(name, []), strict=False):
            changes += [] if rate is None else [set_rate([group], float(rate))]
    return changes


def attributes_of(model: Any, kind: type) -> Iterator[tuple[str, Any]]:
    """What a model or its policy has of a kind, as attributes or in lists that are."""
    for owner, prefix in ((model, ""), (getattr(model, "policy", None), "policy.")):
        for name, value in getattr(owner, "__dict__", {}).items():
            for place, part in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(part, kind):
                    yield f"{prefix}{name}.{place}", part


def _recorded(buffer: Any) -> dict[str, Any]:
    """What a buffer holds, up to where it is filled."""
    arrays, kind = _arrays(buffer), type(buffer).__name__
    for name, value in vars(buffer).items():
        if isinstance(value, (list, deque)) or (isinstance(value, np.ndarray) and value.dtype == object):
            raise ConfigError(
                f"{kind}.{name} is a {type(value).__name__}, which cannot be kept without code, and without it the "
                "model would not go on exactly; keep the model by other means"
            )
    if not arrays or not all(hasattr(buffer, name) for name in ("pos", "full", "buffer_size")):
        raise ConfigError(f"a {kind} is no replay buffer like Stable-Baselines3's; keep the model by other means")
    filled = buffer.buffer_size if buffer.full else buffer.pos + 1  # one more: a next observation
    rows = min(buffer.buffer_size, filled)
    return {
        "pos": int(buffer.pos),
        "full": bool(buffer.full),
        "size": int(buffer.buffer_size),
        "arrays": {name: array[:rows] for name, array in arrays.items()},
    }


def _arrays(buffer: Any) -> Arrays:
    found: Arrays = {}
    for name, value in vars(buffer).items():
        parts = {f"{name}.{key}": part for key, part in value.items()} if isinstance(value, dict) else {name: value}
        found |= {path: part for path, part in parts.items() if isinstance(part, np.ndarray) and part.ndim}
    return found


def _refilled(buffer: Any, record: Mapping[str, Any]) -> Change:
    own, new = _arrays(buffer), {name: part.numpy() for name, part in record["arrays"].items()}
    known = {name: (array.shape[1:], array.dtype) for name, array in own.items()}
    given = {name: (array.shape[1:], array.dtype) for name, array in new.items()}
    if known != given or buffer.buffer_size != record["size"]:
        raise ConfigError(
            f"a replay buffer of {record['size']} steps was saved, which does not fit this {type(buffer).__name__} of "
            f"{buffer.buffer_size}; build the model as it was built then"
        )

    def put(arrays: Arrays, pos: int, full: bool) -> None:
        for name, array in arrays.items():
            own[name][: len(array)] = array
        buffer.pos, buffer.full = pos, full

    def remember() -> Callable[[], None]:
        before = {name: own[name][: len(array)].copy() for name, array in new.items()}, buffer.pos, buffer.full
        return lambda: put(*before)

    return Change(remember, lambda: put(new, record["pos"], record["full"]))


def _scheduled(scheduler: LRScheduler, state: Mapping[str, Any]) -> Change:
    def remember() -> Callable[[], None]:
        before = scheduler.state_dict()
        return lambda: scheduler.load_state_dict(before)

    return Change(remember, lambda: scheduler.load_state_dict(dict(state)))
