"""What a network computes beside its weights: two of the same shapes may still be different functions.

A description is text by name: every module's type, its `extra_repr`, and its public attributes that are truth values,
fractions, strings, functions or classes, and what its `describe_function()` adds. Whole numbers may be counters; those
of torch's own modules are settings. A setting that a file of an earlier version does not know was what
`describe_usual()` says.
"""

import types
from collections.abc import Mapping
from typing import Any

from torch import nn

from popgraft.errors import ConfigError

ENTRY = "function"
"""Entry of a checkpoint for the description of its network."""
IDLE = {"training", "inplace"}
"""Attributes of a module that do not change what it computes from a state dict."""


def describe(network: Any) -> dict[str, str]:
    """The function of a network, by the names of its modules; empty where it is no module.

    Args:
        network: `model.policy`, else the model.
    """
    if not isinstance(network, nn.Module):
        return {}
    found = {}
    for path, module in network.named_modules():
        name = path or "policy"
        found[name] = f"{type(module).__name__}({module.extra_repr()})"
        found.update({f"{name}.{key}": text for key, text in _attributes(module).items()})
    return {**found, **_told(network, "describe_function")}


def check(network: Any, theirs: Any) -> None:
    """Compares a donor's description with the recipient's network; where there is none nothing is known.

    Raises:
        ConfigError: they are different functions.
    """
    own = describe(network)
    if not isinstance(theirs, Mapping) or not theirs or not own:
        return
    theirs = {**_told(network, "describe_usual"), **theirs}
    names = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
    if names:
        shown = "; ".join(
            f"{name} is {theirs.get(name, 'absent')} at the donor, {own.get(name, 'absent')} here" for name in names[:3]
        )
        raise ConfigError(
            f"the donor's network is another function: {shown}; give all members the same network, and keep numbers "
            "that training changes in buffers, which are inherited"
        )


def _told(network: nn.Module, method: str) -> dict[str, str]:
    """What the modules that have the method say of themselves."""
    said = {path or "policy": getattr(module, method, None) for path, module in network.named_modules()}
    return {f"{name}.{key}": str(value) for name, own in said.items() if callable(own) for key, value in own().items()}


def _attributes(module: nn.Module) -> dict[str, str]:
    """The module's own settings, as text."""
    held = {name: value for name, value in vars(module).items() if not name.startswith("_") and name not in IDLE}
    if hasattr(module, "squash_output"):  # of Stable-Baselines3
        held["squash_output"] = module.squash_output
    if hasattr(module, "action_dist"):
        held["action_dist"] = type(module.action_dist)
    ours = type(module).__module__.startswith("torch.nn.")  # whose whole numbers are settings, such as num_heads
    return {
        name: text
        for name, value in held.items()
        if "optimizer" not in name and not name.endswith("_init") and (text := _text(value, ours)) is not None
    }


def _text(value: Any, whole: bool) -> str | None:
    if isinstance(value, (bool, float, str)) or (whole and isinstance(value, int)):
        return repr(value)
    if isinstance(value, (type, types.FunctionType, types.BuiltinFunctionType)):
        return value.__qualname__
    return None
