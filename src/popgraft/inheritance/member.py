"""The graft of the engine: `member[parents]`, and what is not the donor's after it."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.config import Config, PopulationConfig
from popgraft.inheritance.faults import rule_of
from popgraft.inheritance.optimizer import Fate, fate_of, inherit_, velocity_ratio
from popgraft.state import Decision, Member, Normalizer, OptimizerState, Record, ReturnScale

Values = dict[str, Float[Tensor, "rows"]]
Units = tuple[Normalizer, ReturnScale]
"""In what some members see the world and predict returns: what a graft may fail to bring along with the weights."""


def overwrite_(
    member: Member, members: Sequence[int], decision: Decision, donors: Member, config: Config
) -> tuple[list[int], Units | None]:
    """Carries out a decision on some rows of the population, in place.

    Args:
        member: the rows.
        members: index in the population of every row, in ascending order.
        decision: who inherits from whom, over the whole population.
        donors: the donor of every heir among `members`, in their order.
        config: what is inherited.

    Returns:
        Rows of heirs, whose weights are yet to be renewed where the decision says so, and the units of the donor of
        each where a fault may have lost them.
    """
    own = torch.tensor(list(members))
    for name, column in member.hyperparams.items():
        column.copy_(decision.hyperparams[name][own])
    rows = torch.isin(own, decision.heirs).nonzero().flatten()
    donor = tree.map(lambda leaf, there: leaf.to(there.device), donors, member)
    heir = inherit(tree.gather(member, rows), donor, config)
    tree.put_(member, rows, heir)
    return rows.tolist(), (donor.normalizer, donor.returns) if config.pbt.graft_faults else None


def inherit(own: Member, donor: Member, config: Config) -> Member:
    """The recipients as they go on: each its donor, but for its new hyperparameters and what follows from them.

    Args:
        own: the recipients as they were, with the hyperparameters that they are to train with.
        donor: the donor of each.
        config: what is inherited; the donor's everything unless it says otherwise.
    """
    heir = dataclasses.replace(donor, optimizer=_optimizer(own, donor, config), hyperparams=own.hyperparams)
    for fault in config.pbt.graft_faults:
        heir = rule_of(fault)(own, donor, heir)
    return heir


def inherited_values(parents: Int[Tensor, "pop"], before: Values, record: Record | None = None) -> Values:
    """Hyperparameters of everybody's parent, [pop] each.

    Args:
        parents: who that is; the population's size stands for the best state there ever was.
        before: hyperparameters that everybody has trained with.
        record: that state, if there is one yet.
    """
    known = before
    if record is not None:
        known = {name: torch.cat([column, record.state.hyperparams[name]]) for name, column in before.items()}
    return {name: column[parents] for name, column in known.items()}


def strategies(
    decision: Decision, before: Values, config: PopulationConfig, record: Record | None = None
) -> dict[int, str]:
    """What becomes of every recipient's optimizer state: "copy", "reset", "partial" or "relative".

    Args:
        decision: who inherits from whom, and the new values; an optimizer's state goes with the weights, so that it is
            the weights' donor's values that they differ from.
        before: hyperparameters that everybody has trained with, [pop] each.
        config: the strategy.
        record: the best state there ever was, where somebody returns to it.
    """
    donors, heirs = _rows(inherited_values(decision.parents, before, record)), _rows(decision.hyperparams)
    fates: dict[int, Fate] = {
        member: fate_of(config, donors[member], heirs[member]) for member in decision.recipients.tolist()
    }
    return {member: "partial" if fate in ("momentum", "scale") else fate for member, fate in fates.items()}


def _optimizer(own: Member, donor: Member, config: Config) -> OptimizerState:
    """The donors' states, each as its heir's fate is."""
    state, rule = tree.map(torch.clone, donor.optimizer), config.model.update_rule([donor.params.shape[1]])
    for row, (before, after) in enumerate(zip(_rows(donor.hyperparams), _rows(own.hyperparams), strict=True)):
        averages = {name: average[row] for name, average in state.averages.items()}
        fate, ratio = fate_of(config.pbt, before, after), velocity_ratio(config.pbt, before, after)
        inherit_(averages, state.step[row], fate, rule, rule.corrections, ratio)
        if fate == "reset":
            state.skipped[row] = 0
    return state


def _rows(values: Values) -> list[dict[str, float]]:
    """The values of each row by name; every column is fetched from its device once."""
    columns = [column.tolist() for column in values.values()]
    return [dict(zip(values, row, strict=True)) for row in zip(*columns, strict=True)]
