"""What is given by hand to a scheduler and a coordinator, refused in words where it would fail late, or not at all."""

import contextlib
import operator
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from popgraft.config.population import EvolutionConfig
from popgraft.errors import ConfigError
from popgraft.foreign.member import PopulationMember, number
from popgraft.foreign.optimizer import inherited_state
from popgraft.foreign.renewal import drawer_of
from popgraft.foreign.trained import optimizers
from popgraft.hyperparams import Value
from popgraft.inheritance import Fate


def root(seed: Any) -> int:
    """A seed.

    Raises:
        ConfigError: it is no whole number from 0.
    """
    found = number("seed", operator.index, seed)
    if found < 0:
        raise ConfigError(f"seed={found} is below 0; give a whole number from 0, or None")
    return found


def values_of(initial: Any, size: int) -> list[Mapping[str, Value]]:
    """Initial hyperparameters of every member.

    Args:
        initial: values by name for everybody, one such mapping for each of the first members, or None.
        size: members.

    Raises:
        ConfigError: something else, or more mappings than members.
    """
    if initial is None or isinstance(initial, Mapping):
        given: list[Any] = [initial or {}] * size
    elif isinstance(initial, Sequence) and not isinstance(initial, str):
        given = [*initial, *[{}] * (size - len(initial))]
    else:
        given = [initial]
    for each in given:
        if not isinstance(each, Mapping) or not all(isinstance(name, str) for name in each):
            raise ConfigError(
                f"initial_hyperparams={initial!r} must be values by name, such as {{'learning_rate': 1e-3}}, or a list "
                "of such dicts"
            )
    if len(given) > size:
        raise ConfigError(
            f"initial_hyperparams has {len(given)} entries for a population of {size}; "
            "remove some or raise population_size"
        )
    return given


def check_state(state: Any) -> None:
    """Raises a ConfigError for what no `state_dict` has returned."""
    if not isinstance(state, Mapping) or not {"seed", "decisions", "population", "best", "exploits"} <= set(state):
        raise ConfigError(f"state={_short(state)} is not what state_dict returned; pass that")


def paired(members: list[PopulationMember], models: Any) -> Iterator[tuple[PopulationMember, Any]]:
    """Every member with its model.

    Raises:
        ConfigError: not one model for each member.
    """
    if isinstance(models, str) or not isinstance(models, Sequence):
        raise ConfigError(
            f"models={_short(models)} must be a list of the members' models, in the order of the population"
        )
    if len(models) != len(members):
        raise ConfigError(f"there are {len(models)} models for {len(members)} members; give one for each, in order")
    return zip(members, models, strict=True)


def check_builder(factory: Any) -> None:
    """Raises a ConfigError for what builds no model."""
    if not callable(factory):
        raise ConfigError(f"base_model_factory={factory!r} must build a model, such as a class of models")


def place(folder: Any) -> Path:
    """A folder.

    Raises:
        ConfigError: it is none.
    """
    try:
        return Path(folder)
    except TypeError:
        raise ConfigError(f"folder={folder!r} must be a path") from None


def check_strategy(config: EvolutionConfig, model: Any) -> None:
    """Whether a model can draw weights where some are renewed, and its optimizers have what is to be inherited of them,
    seen by a step of another one of the kind.

    Raises:
        ConfigError: they do not; one that cannot be made, or cannot step so, is left to its first exploit.
    """
    if config.renews:
        drawer_of(model)
    fates: dict[str, Fate] = {"partial": config.optimizer_partial, "relative": "relative"}
    fate = fates.get(config.optimizer_exploit_strategy)
    if fate is None:
        return
    for optimizer in optimizers(model).values():
        state = None
        with contextlib.suppress(Exception), torch.random.fork_rng(devices=[]):
            parameter = torch.nn.Parameter(torch.zeros(1))
            parameter.grad = torch.zeros(1)
            settings = {name: value for name, value in optimizer.param_groups[0].items() if name != "params"}
            probe = type(optimizer)([{**settings, "params": [parameter]}])
            probe.step()
            state = probe.state_dict()
        if state is not None:
            inherited_state(state, fate)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"
