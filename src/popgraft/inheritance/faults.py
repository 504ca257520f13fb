"""What can be done wrong in a graft on purpose: rules behind the right one, for whoever studies what it costs."""

import dataclasses
from collections.abc import Callable, Iterable

import torch

from popgraft import tree
from popgraft.names import import_name
from popgraft.state import Member

GraftRule = Callable[[Member, Member, Member], Member]
"""From some recipients as they were, the donor of each, and each as it should go on, to each as it does go on."""

KEEPS = {
    "forget_return_scale": "returns",
    "forget_kl_penalty": "kl",
    "forget_vgs": "vgs",
    "forget_normalizer": "normalizer",
    "keep_optimizer": "optimizer",
}
"""Mistakes after which a recipient has kept a part of its own, and the part."""


def kept(faults: Iterable[str]) -> set[str]:
    """Names of the parts that are not inherited because of faults."""
    return {KEEPS[fault] for fault in faults if fault in KEEPS}


def _keeping(part: str) -> GraftRule:
    return lambda own, donor, heir: dataclasses.replace(heir, **{part: getattr(own, part)})


def _clear_vgs(own: Member, donor: Member, heir: Member) -> Member:
    return dataclasses.replace(heir, vgs=tree.map(torch.zeros_like, donor.vgs))


def _overwrite_learning_rate(own: Member, donor: Member, heir: Member) -> Member:
    rate = donor.hyperparams["learning_rate"]
    return dataclasses.replace(heir, hyperparams={**heir.hyperparams, "learning_rate": rate})


RULES: dict[str, GraftRule] = {
    **{fault: _keeping(part) for fault, part in KEEPS.items()},
    "clear_vgs": _clear_vgs,
    "overwrite_learning_rate": _overwrite_learning_rate,
}
"""The engine's named mistakes."""


def rule_of(name: str) -> GraftRule:
    """The rule of an entry of `pbt.graft_faults`: one of `RULES`, or what `module:function` names.

    Raises:
        ConfigError: there is no such function.
    """
    rule: GraftRule = RULES[name] if name in RULES else import_name(name, "pbt.graft_faults")
    return rule
