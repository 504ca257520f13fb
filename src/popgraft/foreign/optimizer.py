"""The optimizers of models that are trained elsewhere: the donor's state as its heir gets it, and how it is put there.

What becomes of averages and counts is said in `inheritance`; here is where PyTorch keeps them.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor

from popgraft.config.population import EvolutionConfig
from popgraft.errors import ConfigError
from popgraft.foreign.change import Change
from popgraft.foreign.checkpoint import OPTIMIZER, V1, Checkpoint, optimizer_parts, weights_of
from popgraft.hyperparams import Value
from popgraft.inheritance import TORCH, Fate, fate_of, inherit_, velocity_ratio

logger = logging.getLogger(__name__)

MAIN = (OPTIMIZER, "policy.optimizer")
"""Entries of a checkpoint for the optimizer that the model's learning rate is for in any case."""
OUTSIDE = {"params", "initial_lr"}
"""Entries of a group that do not tell optimizers apart."""


def optimizer_of(model: Any) -> Any:
    """`model.policy.optimizer`, else `model.optimizer`; None where neither has parameter groups."""
    for owner in (getattr(model, "policy", None), model):
        optimizer = getattr(owner, "optimizer", None)
        if isinstance(getattr(optimizer, "param_groups", None), list):
            return optimizer
    return None


def by_strategy(
    config: EvolutionConfig,
    found: Checkpoint,
    donor: Any,
    inherited: Mapping[str, Value],
    explored: Mapping[str, Value],
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
        weights = weights_of(data)
        return data if weights is data else {"policy": weights}
    optimizers, fate = optimizer_parts(data), fate_of(config, inherited, explored)
    if fate == "reset":
        if optimizers:
            logger.info("Optimizer state REMOVED (strategy=%s)", strategy)
        return {name: part for name, part in data.items() if name not in optimizers}
    if optimizers:
        logger.info("Optimizer state INCLUDED (strategy=%s)", strategy)
    else:
        logger.warning(
            "Optimizer state NOT FOUND (strategy=%s): the checkpoint of member %s has none; report it as "
            "optimizer_state in model_parameters", strategy, donor,
        )  # fmt: skip
    ratio = velocity_ratio(config, inherited, explored)
    if fate == "copy" and ratio == 1:
        return data
    rate = inherited.get("learning_rate")
    following = {name: None if name in MAIN else rate for name in optimizers}
    return {**data, **{name: inherited_state(data[name], fate, ratio, following[name]) for name in optimizers}}


def inherited_state(state: Any, fate: Fate, ratio: float = 1.0, rate: Any = None) -> dict[str, Any]:
    """A donor's state as its heir gets it.

    Args:
        state: an optimizer's `state_dict()`, which is left as it is.
        fate: what happens to it, other than "reset".
        ratio: factor of the momentum.
        rate: learning rate of the groups that it is for; None: of all.

    Raises:
        ConfigError: `state` is not a torch optimizer's, or has no such part.
    """
    new = _copy_of(state)
    for group in new["param_groups"]:
        factor = ratio if rate is None or math.isclose(float(group.get("lr", rate)), rate, rel_tol=1e-6) else 1.0
        betas = (group["beta1"], group["beta2"]) if "beta1" in group else group.get("betas")
        for index in group["params"]:
            own = new["state"].get(index, {})
            averages = {name: value for name, value in own.items() if isinstance(value, Tensor) and name != "step"}
            step = None if "step" not in own else torch.as_tensor(own["step"])
            inherit_(averages, step, fate, TORCH, betas, factor)
            if step is not None and not isinstance(own["step"], Tensor):
                own["step"] = step.item()
    return new


def inherit(optimizer: Any, state: Any) -> Change:
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

    return Change(lambda: _remember(optimizer), apply)


def reset(optimizer: Any) -> Change:
    """Empties the state in place; groups and schedulers stay as they are."""
    return Change(lambda: _remember(optimizer), optimizer.state.clear)


def set_rate(groups: Sequence[dict[str, Any]], rate: float) -> Change:
    """Sets the learning rate of parameter groups."""

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

    return Change(remember, apply)


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
    defaults = copy.copy(getattr(optimizer, "defaults", None))

    def restore() -> None:
        if whole is not None:  # what lies outside of `state`, such as a generator of noise or an engine's own averages
            optimizer.load_state_dict(whole)
            optimizer.defaults = defaults  # which torch adds to
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
