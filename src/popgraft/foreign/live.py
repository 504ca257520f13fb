"""Puts a member's hyperparameters where its model reads them, so that the next update runs with them."""

import dataclasses
import logging
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from popgraft.foreign.change import Change, attributes
from popgraft.foreign.normalization import layers
from popgraft.foreign.optimizer import set_rate
from popgraft.foreign.trained import rate_groups

logger = logging.getLogger(__name__)

NAMES = {
    "learning_rate": "learning_rate",
    "entropy_coef": "ent_coef",
    "ent_coef": "ent_coef",
    "clip_range": "clip_range",
    "clip_range_vf": "clip_range_vf",
    "vf_coef": "vf_coef",
    "gamma": "gamma",
    "gae_lambda": "gae_lambda",
    "max_grad_norm": "max_grad_norm",
    "target_kl": "target_kl",
}
"""Hyperparameters that a model can be given, and the keyword and attribute of each."""

ADVERSARIAL = ("adversarial_epsilon", "adversarial_ratio", "robust_kl_coef")
"""Hyperparameters of state-adversarial training."""


@dataclasses.dataclass(frozen=True)
class Constant:
    """A schedule with one value.

    Args:
        value: the value, whatever the progress.
    """

    value: float

    def __call__(self, _progress_remaining: float) -> float:
        """The value."""
        return self.value


def keywords(hyperparams: Mapping[str, Any]) -> dict[str, Any]:
    """The hyperparameters as keyword arguments of a model."""
    return {NAMES[name]: value for name, value in hyperparams.items() if name in NAMES}


def make_live(model: Any, hyperparams: Mapping[str, Any], member_id: int, adversary: Any = None) -> list[Change]:
    """Steps after which the model's next update uses the hyperparameters.

    A schedule, such as Stable-Baselines3's `lr_schedule` and `clip_range`, becomes a constant one. What the model has
    no place for is left out, with a warning.

    Args:
        model: has the hyperparameters as attributes; `gamma` and `gae_lambda` are also read by its buffer, and `gamma`
            by every `VecNormalize` of its environments.
        hyperparams: by the names of `NAMES`; what is not a real number is not used.
        member_id: for the warning.
        adversary: state-adversarial training of the model, which has `ADVERSARIAL` as attributes; None: there is none.
    """
    changes = []
    for name, value in hyperparams.items():
        found = []
        if name in ADVERSARIAL and adversary is not None and is_number(value):
            found = [attributes([(adversary, name, float(value))])]
        elif name in NAMES and is_number(value):
            found = _places(model, name, value)
        if not found:
            logger.warning("Member %s: %s=%r is not used, the model has no place for it", member_id, name, value)
        changes += found
    return changes


def _places(model: Any, name: str, value: Any) -> list[Change]:
    attribute = NAMES[name]
    if attribute == "ent_coef" and getattr(model, "log_ent_coef", None) is not None:  # learned by gradients
        return []
    owners = [model, *(getattr(model, buffer, None) for buffer in ("rollout_buffer", "replay_buffer"))]
    if name == "gamma":
        owners += layers(model)
    places = [(owner, attribute) for owner in owners]
    if name == "learning_rate":
        places.append((model, "lr_schedule"))
    assignments = [
        (owner, place, Constant(float(value)) if _is_schedule(owner, place) else value)
        for owner, place in places
        if hasattr(owner, place)
    ]
    constant = getattr(model, "ent_coef_tensor", None)
    if attribute == "ent_coef" and isinstance(constant, Tensor):  # what Stable-Baselines3's SAC reads
        assignments.append((model, "ent_coef_tensor", torch.full_like(constant, float(value))))
    changes = [attributes([assignment]) for assignment in assignments]
    groups = rate_groups(model) if name == "learning_rate" else []
    return [*changes, set_rate(groups, float(value))] if groups else changes


def is_number(value: Any) -> bool:
    """Whether `value` is a real number, and neither a truth value nor a stand-in."""
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_schedule(owner: Any, attribute: str) -> bool:
    """Whether the attribute holds a function of the remaining progress, or will be called as one."""
    if attribute == "clip_range_vf":  # of the same kind as clip_range, or None
        attribute = "clip_range"
    current = getattr(owner, attribute, None)
    return attribute != "learning_rate" and callable(current) and is_number(current(1.0))
