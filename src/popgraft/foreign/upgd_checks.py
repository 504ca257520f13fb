"""What UPGD, AdaptiveUPGD and UPGDW refuse: settings outside their ranges, and states of another kind of optimizer."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.optim.optimizer import Optimizer

from popgraft.errors import ConfigError
from popgraft.optim.upgd import UPGDRule, initial_upgd_state

SCALINGS = ("rms", "l2")
NOISE_STATE, SKIPPED = "noise_generator", "skipped_steps"
"""Keys of the state dictionary, beside those of torch."""
KIND = {"beta_utility", "beta1", "beta2", "betas", "eps"}
"""Settings that tell the kinds apart."""


def check_settings(group: Mapping[str, Any]) -> None:
    """Whether the settings of a group lie in their ranges.

    Raises:
        ConfigError: one that does not.
    """
    for name in ("lr", "sigma", "weight_decay", "min_noise_std", "utility_gain", "eps"):
        if name in group and not (math.isfinite(group[name]) and group[name] >= 0):
            raise ConfigError(
                f"{name}={group[name]} must be a finite number of at least 0; give for example {name}=0.001"
            )
    rates: dict[str, float] = {
        name: group[name] for name in ("beta_utility", "beta1", "beta2", "noise_beta") if name in group
    }
    rates |= {f"betas[{i}]": rate for i, rate in enumerate(group.get("betas", ()))}
    for name, rate in rates.items():
        if not 0 <= rate < 1:
            raise ConfigError(f"{name}={rate} must lie in [0, 1), as every decay rate; give for example 0.999")
    if group["noise_scaling"] not in SCALINGS:
        raise ConfigError(f"noise_scaling={group['noise_scaling']!r} must be one of {', '.join(SCALINGS)}")


def check_state_dict(
    optimizer: Optimizer, state_dict: Mapping[str, Any], rule: Callable[[dict[str, Any]], UPGDRule]
) -> None:
    """Whether a state dictionary is of an optimizer's kind; groups may have further entries, such as `initial_lr`.

    Args:
        optimizer: what the state is for.
        state_dict: the state.
        rule: the constants that a group's settings amount to.

    Raises:
        ConfigError: what tells them apart.
    """
    kind, advice = type(optimizer).__name__, "load one that its state_dict() returned"
    missing = {NOISE_STATE, SKIPPED} - set(state_dict)
    if missing:
        raise ConfigError(f"the state dictionary lacks {', '.join(sorted(missing))}, so it is not of {kind}; {advice}")
    own = set(optimizer.defaults) - {"differentiable"}  # which torch adds when it loads a state
    for group in state_dict["param_groups"]:
        other = (own - set(group)) | ((KIND - own) & set(group))
        if other:
            raise ConfigError(
                f"the state dictionary is not of {kind}: only one of the two has {', '.join(sorted(other))}; {advice}"
            )
        for index in group["params"]:
            check_state(state_dict["state"].get(index), rule(group))


def check_state(state: Mapping[str, Any] | None, rule: UPGDRule) -> None:
    """Whether a parameter's state fits its rule; one that has not begun does, and an average of norms may be idle.

    Raises:
        ConfigError: names that are missing, or left over.
    """
    if not state:
        return
    missing, extra = _names(rule) - set(state), set(state) - _names(rule) - {"grad_norm"}
    if missing == {"grad_norm"}:
        raise ConfigError(
            "adaptive_noise with instant_noise_scale=False needs the average of all gradient norms, but the state of a "
            "parameter that has taken steps has no grad_norm; set instant_noise_scale=True, or begin anew with "
            "optimizer.state.clear()"
        )
    if missing or extra:
        raise ConfigError(
            f"the state of a parameter lacks {', '.join(sorted(missing)) or 'nothing'} and has beyond its rule "
            f"{', '.join(sorted(extra)) or 'nothing'}; load what state_dict() of the same kind of optimizer returned"
        )


@functools.cache
def _names(rule: UPGDRule) -> frozenset[str]:
    """What a parameter's state holds once it has taken a step."""
    return frozenset({"step", *initial_upgd_state(torch.zeros(1, 1), [1], rule).averages})
