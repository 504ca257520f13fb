"""What becomes of an optimizer's state when its model turns into another one's copy.

    reset      empty, as at birth
    copy       the donor's
    partial    the donor's momentum alone, or its second moment and utility alone
    adaptive   the donor's where the explored hyperparameters are near the donor's, else empty

Jaderberg et al. 2017 (arXiv:1711.09846) prescribe none of them.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Literal

import torch
from torch import Tensor

from popgraft.errors import ConfigError
from popgraft.foreign.checkpoint import V1, Checkpoint, optimizer_parts
from popgraft.foreign.config import PBTConfig
from popgraft.foreign.step import Step
from popgraft.hyperparams import HyperparamConfig, Value

logger = logging.getLogger(__name__)

Keeps = Literal["momentum", "scale"]

MOMENTUM = ("exp_avg", "momentum_buffer")
SECOND_MOMENT = ("exp_avg_sq", "max_exp_avg_sq")
OUTSIDE = {"params", "initial_lr"}
"""Entries of a group that do not tell optimizers apart."""


def optimizer_of(model: Any) -> Any:
    """`model.policy.optimizer`, else `model.optimizer`; None where neither has parameter groups."""
    for owner in (getattr(model, "policy", None), model):
        optimizer = getattr(owner, "optimizer", None)
        if isinstance(getattr(optimizer, "param_groups", None), list):
            return optimizer
    return None


def near(
    spaces: list[HyperparamConfig], explored: Mapping[str, Value], donor: Mapping[str, Value], distance: float
) -> bool:
    """Whether every explored value is near the donor's.

    Args:
        spaces: the hyperparameters that are explored.
        explored: the recipient's values.
        donor: the donor's values.
        distance: largest change that counts as near, as a share of the range.
    """
    return all(space.distance(donor[space.name], explored[space.name]) <= distance for space in spaces)


def by_strategy(
    config: PBTConfig, found: Checkpoint, donor: int, inherited: Mapping[str, Value], explored: Mapping[str, Value]
) -> dict[Any, Any]:
    """What a recipient gets of its donor's checkpoint, by `optimizer_exploit_strategy`.

    Args:
        config: the strategy and the spaces.
        found: the donor's checkpoint.
        donor: whose it is.
        inherited: the donor's hyperparameters.
        explored: the recipient's.
    """
    data, strategy = found.data, config.optimizer_exploit_strategy
    if found.format == V1:
        logger.warning("Checkpoint of member %s is %s: VGS and optimizer state are not transferred", donor, V1)
        return data
    optimizer, distance = optimizer_parts(data), config.optimizer_adaptive_distance
    far = strategy == "adaptive" and not near(config.hyperparams, explored, inherited, distance)
    if strategy == "reset" or far:
        if optimizer:
            logger.info("Optimizer state REMOVED (strategy=%s)", strategy)
        return {name: part for name, part in data.items() if name not in optimizer}
    if optimizer:
        logger.info("Optimizer state INCLUDED (strategy=%s)", strategy)
    else:
        logger.warning(
            "Optimizer state NOT FOUND (strategy=%s): the checkpoint of member %s has none; report it as "
            "optimizer_state in model_parameters", strategy, donor,
        )  # fmt: skip
    if strategy == "partial":
        data = {**data, **{name: partial(data[name], config.optimizer_partial) for name in optimizer}}
    old, new = inherited.get("learning_rate"), explored.get("learning_rate")
    if config.optimizer_rescale and old and new:
        data = {**data, **{name: rescale(data[name], old / new) for name in optimizer}}
    return data


def partial(state: Any, keeps: Keeps) -> dict[str, Any]:
    """A donor's state of which only a part is kept.

    `momentum`: as after one step whose gradient g was the donor's mean gradient m/(1 − β₁ᵗ): step 1, m = (1 − β₁)g,
    v = (1 − β₂)g². A second moment of 0 would make the next step √(1/(1 − β₂)) times too long. Without a second moment
    (SGD) the momentum stays as it is. `scale`: the momentum alone becomes 0, so that the next steps are short.

    Args:
        state: an optimizer's `state_dict()`.
        keeps: the part.

    Returns:
        Another state of the same structure; `state` is left as it is.

    Raises:
        ConfigError: `state` is not a torch optimizer's.
    """
    new = _copy_of(state)
    for group in new["param_groups"]:
        betas = group.get("betas") or (group.get("beta1"), group.get("beta2"))
        for index in group["params"]:
            own = new["state"].get(index, {})
            if keeps == "momentum":
                _keep_momentum(own, betas)
            else:
                _drop_momentum(own)
    return new


def rescale(state: Any, ratio: float) -> dict[str, Any]:
    """Multiplies the momentum, so that at another learning rate it carries the parameters as far as before.

    Args:
        state: an optimizer's `state_dict()`.
        ratio: donor's learning rate ÷ the recipient's.

    Returns:
        Another state of the same structure; `state` is left as it is.

    Raises:
        ConfigError: `state` is not a torch optimizer's.
    """
    new = _copy_of(state)
    for own in new["state"].values():
        for name in MOMENTUM:
            if isinstance(own.get(name), Tensor):
                own[name].mul_(ratio)
    return new


def inherit(optimizer: Any, state: Any) -> Step:
    """Loads a donor's state; the optimizer and its groups stay the same objects, so that schedulers stay bound.

    Raises:
        ConfigError: the state is of another optimizer or of other parameters.
    """
    if isinstance(optimizer, torch.optim.Optimizer):
        check(optimizer, state)

    def apply() -> None:
        groups = optimizer.param_groups
        optimizer.load_state_dict(copy.deepcopy(dict(state)))  # torch keeps the tensors that it is given
        for group, loaded in zip(groups, optimizer.param_groups, strict=True):
            group.update(loaded)
        optimizer.param_groups = groups

    return Step(lambda: _remember(optimizer), apply)


def reset(optimizer: Any) -> Step:
    """Empties the state in place; groups and schedulers stay as they are."""
    return Step(lambda: _remember(optimizer), optimizer.state.clear)


def set_rate(optimizer: Any, rate: float) -> Step:
    """Sets the learning rate of every group."""
    groups = optimizer.param_groups

    def remember() -> Callable[[], None]:
        before = [group.get("lr") for group in groups]

        def restore() -> None:
            for group, old in zip(groups, before, strict=True):
                group["lr"] = old

        return restore

    def apply() -> None:
        for group in groups:
            old = group.get("lr")
            group["lr"] = old.new_tensor(rate) if isinstance(old, Tensor) else rate

    return Step(remember, apply)


def check(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Whether a state fits an optimizer, group by group and tensor by tensor.

    Raises:
        ConfigError: what does not fit.
    """
    groups = _copy_of(state)["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    own = [len(group["params"]) for group in optimizer.param_groups]
    if sizes != own:
        raise ConfigError(f"optimizer_state has groups of {sizes} parameters, but the model's optimizer of {own}")
    for theirs, ours in zip(groups, optimizer.param_groups, strict=True):
        other = (set(theirs) ^ set(ours)) - OUTSIDE
        if other:
            raise ConfigError(
                f"optimizer_state is of another kind of optimizer: only one of the two has {', '.join(sorted(other))}; "
                "give all members the same optimizer"
            )
        for index, param in zip(theirs["params"], ours["params"], strict=True):
            _check_tensors(state["state"].get(index, {}), param, optimizer.state.get(param, {}))


def _copy_of(state: Any) -> dict[str, Any]:
    """A deep copy of a state with the structure that torch gives it."""
    if isinstance(state, Mapping) and isinstance(state.get("state"), Mapping):
        groups = state.get("param_groups")
        if isinstance(groups, list) and all(isinstance(group, Mapping) and "params" in group for group in groups):
            return copy.deepcopy(dict(state))
    raise ConfigError("optimizer_state is not what a torch optimizer's state_dict() returns; report that")


def _check_tensors(theirs: Mapping[str, Any], param: Tensor, ours: Mapping[str, Any]) -> None:
    for name, value in theirs.items():
        if not isinstance(value, Tensor):
            continue
        known = ours.get(name)
        if isinstance(known, Tensor):
            fits = known.shape == value.shape
        else:  # factored moments have sides of 1
            sides = zip(value.shape, param.shape, strict=False)
            fits = value.numel() == 1 or (value.dim() == param.dim() and all(a in (1, b) for a, b in sides))
        if not fits:
            raise ConfigError(
                f"optimizer_state: {name} of shape {tuple(value.shape)} does not fit a parameter of shape "
                f"{tuple(param.shape)}; the state belongs to another network"
            )


def _remember(optimizer: Any) -> Callable[[], None]:
    groups, state = optimizer.param_groups, optimizer.state
    contents = [copy.copy(group) for group in groups]
    saved = {param: _clone(own) for param, own in state.items()} if isinstance(state, Mapping) else {}
    whole = copy.deepcopy(optimizer.state_dict()) if isinstance(optimizer, torch.optim.Optimizer) else None

    def restore() -> None:
        if whole is not None:  # what lies outside of `state`, such as a generator of noise or an engine's own averages
            optimizer.load_state_dict(whole)
        if isinstance(state, MutableMapping):
            state.clear()
            state.update(saved)
        for group, content in zip(groups, contents, strict=True):
            group.clear()
            group.update(content)
        optimizer.state, optimizer.param_groups = state, groups

    return restore


def _clone(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    return {name: _clone(part) for name, part in value.items()} if isinstance(value, Mapping) else copy.deepcopy(value)


def _keep_momentum(own: MutableMapping[str, Any], betas: tuple[Any, Any]) -> None:
    steps, m = own.get("step"), own.get("exp_avg")
    if steps is None or m is None or None in betas:
        return
    if float(steps) > 0:
        m.div_(1 - math.pow(betas[0], float(steps)))
    for name, value in own.items():
        if name in SECOND_MOMENT:
            value.copy_(m.square().mul_(1 - betas[1]))
        elif isinstance(value, Tensor) and name not in ("step", "exp_avg"):
            value.zero_()
    m.mul_(1 - betas[0])
    own["step"] = steps.new_ones(steps.shape) if isinstance(steps, Tensor) else 1


def _drop_momentum(own: MutableMapping[str, Any]) -> None:
    for name in MOMENTUM:
        if isinstance(own.get(name), Tensor):
            own[name].zero_()
