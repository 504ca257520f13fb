"""What a model trains: each of its optimizers, and each parameter that is not in its policy's state dict.

Both are searched in the model's attributes and its policy's, in modules, and in lists and dicts of these; whatever is
reachable by several paths counts once, under the shortest.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from popgraft.errors import ConfigError
from popgraft.foreign.checkpoint import OPTIMIZER
from popgraft.foreign.optimizer import optimizer_of

LONGEST = 1000
"""Entries of a list or dict that may hold parts of a model; longer ones hold data."""


def optimizers(model: Any) -> dict[str, Any]:
    """Every optimizer of a model, by its entry of a checkpoint, which ends in `optimizer` or is `OPTIMIZER`.

    Raises:
        ConfigError: there is one in an object that is not searched.
    """
    main = optimizer_of(model)
    found = {} if main is None else {OPTIMIZER: main}
    for path, part in _parts(model):
        if isinstance(part, torch.optim.Optimizer) and part is not main:
            found[path if path.endswith("optimizer") else f"{path}.optimizer"] = part
    known = {id(part) for part in found.values()}
    for name, value in getattr(model, "__dict__", {}).items():
        inside = {} if isinstance(value, (nn.Module, torch.optim.Optimizer)) else getattr(value, "__dict__", {})
        for inner, part in inside.items():
            if isinstance(part, torch.optim.Optimizer) and id(part) not in known:
                raise ConfigError(
                    f"{name}.{inner} is an optimizer in a {type(value).__name__}, which is not searched for parts of "
                    f"the model; make it and what it trains attributes of the {type(model).__name__} too"
                )
    return found


def free_parameters(model: Any, covered: Mapping[str, Any], apart: tuple[Any, ...] = ()) -> dict[str, Tensor]:
    """Parameters and buffers of a model that its policy's state dict lacks, by path: those of modules beside it, and
    tensors that gradients are taken with respect to, such as `log_ent_coef` of Stable-Baselines3's SAC.

    Args:
        model: the model.
        covered: the state dict of its policy.
        apart: parts that have an entry of their own in a checkpoint.
    """
    known = {_place(tensor) for tensor in covered.values() if isinstance(tensor, Tensor)}
    skipped = {id(part) for part in apart}
    return {
        path: part
        for path, part in _parts(model, skipped)
        if isinstance(part, Tensor) and _place(part) not in known and part.numel()
    }


def rate_groups(model: Any) -> list[dict[str, Any]]:
    """Parameter groups that train with the model's learning rate.

    Those are all of Stable-Baselines3's algorithms, which give every optimizer the rate of one schedule. Elsewhere it
    is all groups of `policy.optimizer`, else `optimizer`, and others' whose rate is that of these, or the model's
    `learning_rate`, now or before a scheduler of torch's has moved it.

    Raises:
        ConfigError: there is neither of these, and the optimizers' rates differ.
    """
    own = optimizers(model)
    groups = [group for optimizer in own.values() for group in optimizer.param_groups]
    main = [] if OPTIMIZER not in own else own[OPTIMIZER].param_groups
    rates = {rate for group in main for rate in _rates(group)} | {_number(getattr(model, "learning_rate", None))}
    if callable(getattr(model, "_update_learning_rate", None)):
        return groups
    found = [
        group
        for group in groups
        if any(group is each for each in main)
        or any(math.isclose(own_rate, rate, rel_tol=1e-6) for own_rate in _rates(group) for rate in rates)
    ]
    if found or len({_rate(group) for group in groups}) <= 1:
        return found or groups
    raise ConfigError(
        f"which of the optimizers {', '.join(own)} a member's learning_rate is for cannot be told: their rates are "
        f"{', '.join(f'{_rate(group):g}' for group in groups)}; set model.learning_rate to the rate of those it is for"
    )


def _parts(model: Any, skipped: set[int] = frozenset()) -> Iterator[tuple[str, Any]]:  # type: ignore[assignment]
    """Optimizers and trained tensors of a model with their paths, each once, those of short paths first."""
    opened = (model, getattr(model, "policy", None))
    seen, queue = {id(model), *skipped}, deque([("", model)])
    while queue:
        path, value = queue.popleft()
        for name, part in _children(value, any(value is each for each in opened)):
            inner = f"{path}.{name}" if path else name
            if id(part) in seen:
                continue
            seen.add(id(part))
            if isinstance(part, torch.optim.Optimizer) or _is_trained(value, name, part):
                yield inner, part
            elif not isinstance(part, Tensor):
                queue.append((inner, part))


def _children(value: Any, opened: bool) -> list[tuple[str, Any]]:
    """What may be a part of a model in a value, by name."""
    if isinstance(value, (list, tuple, dict)):
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return [(str(name), part) for name, part in pairs] if len(value) <= LONGEST else []
    if isinstance(value, nn.Module):
        held = {**value._parameters, **value._buffers, **value._modules}
        return [*held.items(), *((name, part) for name, part in vars(value).items() if not _is_registry(name))]
    return list(getattr(value, "__dict__", {}).items()) if opened else []


def _is_registry(name: str) -> bool:
    """Whether an attribute of a module is torch's own."""
    return name in ("_parameters", "_buffers", "_modules") or name.endswith(("_hooks", "_hooks_with_kwargs"))


def _is_trained(owner: Any, name: str, part: Any) -> bool:
    if not isinstance(part, Tensor):
        return False
    registered = isinstance(owner, nn.Module) and (
        owner._parameters.get(name) is part
        or (owner._buffers.get(name) is part and name not in owner._non_persistent_buffers_set)
    )
    return registered or isinstance(part, nn.Parameter) or (part.is_leaf and part.requires_grad)


def _place(tensor: Tensor) -> tuple[int, int]:
    """Where a tensor's numbers lie: the same for a parameter and what a state dict shows of it."""
    return tensor.data_ptr(), tensor.numel()


def _rates(group: Mapping[str, Any]) -> set[float]:
    """The rate of a group, and the one that a scheduler of torch's began with."""
    return {_number(group[name]) for name in ("lr", "initial_lr") if name in group}


def _rate(group: Mapping[str, Any]) -> float:
    return _number(group.get("lr"))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, Tensor)) and not isinstance(value, bool) else math.nan
