"""What a recipient gets of its donor: everything, but for what a rule names."""

import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft import tree
from popgraft.config import PopulationConfig
from popgraft.state import MOMENTUM, Decision, Member, Normalizer, OptimizerState, Record, ReturnScale

Values = dict[str, Float[Tensor, "rows"]]
Units = tuple[Normalizer, ReturnScale]
"""In what some members see the world and predict returns: what a graft may fail to bring along with the weights."""


def overwrite_(
    member: Member,
    members: Sequence[int],
    decision: Decision,
    donors: dict[int, int],
    incoming: Member,
    config: PopulationConfig,
) -> tuple[list[int], Units | None]:
    """Carries out a decision on some rows of the population, in place.

    Args:
        member: the rows.
        members: index in the population of every row.
        decision: who inherits from whom, over the whole population.
        donors: row in `incoming` of every donor.
        incoming: the donors.
        config: what is inherited.

    Returns:
        Rows that are somebody else now, and the units of the donor of each where a fault may have lost them.
    """
    parents = decision.parents.tolist()
    places = [place for place, own in enumerate(members) if parents[own] != own]
    values = {name: column[torch.tensor(list(members))] for name, column in decision.hyperparams.items()}
    for name, column in member.hyperparams.items():
        column.copy_(values[name])
    rows = torch.tensor(places, dtype=torch.long)
    sources = torch.tensor([donors[parents[members[place]]] for place in places], dtype=torch.long)
    donor = tree.gather(incoming, sources, member.params.device)
    own = tree.gather(member, rows) if config.graft_faults else donor  # nothing else keeps anything of its own
    tree.put_(member, rows, inherit(own, donor, {name: column[rows] for name, column in values.items()}, config))
    return places, (donor.normalizer, donor.returns) if config.graft_faults else None


def inherit(own: Member, donor: Member, values: Values, config: PopulationConfig) -> Member:
    """The recipients as they go on.

    Args:
        own: the recipients as they were.
        donor: the donor of each.
        values: hyperparameters that each is to train with.
        config: what is inherited; the donor's everything unless it says otherwise.
    """
    heir = dataclasses.replace(
        donor,
        optimizer=_optimizer(donor, values, config),
        hyperparams={name: column.to(donor.params.device) for name, column in values.items()},
    )
    for fault in config.graft_faults:
        match fault:
            case "forget_vgs":
                heir.vgs = own.vgs
            case "clear_vgs":
                heir.vgs = tree.map(torch.zeros_like, donor.vgs)
            case "forget_normalizer":
                heir.normalizer = own.normalizer
            case "forget_return_scale":
                heir.returns = own.returns
            case "keep_optimizer":
                heir.optimizer = own.optimizer
            case "overwrite_learning_rate":
                heir.hyperparams["learning_rate"] = donor.hyperparams["learning_rate"]
    return heir


def copies_optimizer(donor: Values, values: Values, config: PopulationConfig) -> Bool[Tensor, "rows"]:
    """Whether the optimizer state goes along: decided by strategy, and by distance where that is `adaptive`.

    Args:
        donor: hyperparameters that each donor trained with.
        values: hyperparameters that each recipient is to train with.
        config: strategy, and the spaces in which distance is measured.
    """
    rows = len(values["learning_rate"])
    if config.optimizer_exploit_strategy != "adaptive":
        return torch.full((rows,), config.optimizer_exploit_strategy != "reset")
    farthest = torch.zeros(rows)
    for space in config.hyperparams:
        pairs = zip(donor[space.name].tolist(), values[space.name].tolist(), strict=True)
        farthest = farthest.maximum(torch.tensor([space.distance(old, new) for old, new in pairs]))
    return farthest <= config.optimizer_adaptive_distance


def inherited_values(decision: Decision, before: Values, record: Record | None = None) -> Values:
    """Hyperparameters of everybody's parent, [pop] each.

    Args:
        decision: who inherits from whom.
        before: hyperparameters that everybody has trained with.
        record: the best state there ever was, where somebody returns to it.
    """
    known = before
    if record is not None:
        known = {name: torch.cat([column, record.state.hyperparams[name]]) for name, column in before.items()}
    return {name: column[decision.parents] for name, column in known.items()}


def strategies(
    decision: Decision, before: Values, config: PopulationConfig, record: Record | None = None
) -> dict[int, str]:
    """What becomes of every recipient's optimizer state: "copy", "reset" or "partial".

    Args:
        decision: who inherits from whom, and the new values.
        before: hyperparameters that everybody has trained with, [pop] each.
        config: the strategy.
        record: the best state there ever was, where somebody returns to it.
    """
    recipients = decision.recipients.tolist()
    if config.optimizer_exploit_strategy == "partial":
        return dict.fromkeys(recipients, "partial")
    donors = inherited_values(decision, before, record)
    copied = copies_optimizer(donors, decision.hyperparams, config).tolist()
    return {member: "copy" if copied[member] else "reset" for member in recipients}


def _optimizer(donor: Member, values: Values, config: PopulationConfig) -> OptimizerState:
    state = donor.optimizer
    dropped = copies_optimizer(donor.hyperparams, values, config).logical_not().nonzero().flatten()
    tree.map(lambda leaf: leaf.index_fill_(0, dropped.to(leaf.device), 0), state)
    if config.optimizer_exploit_strategy == "partial":
        if config.optimizer_partial == "momentum":
            forgotten = [name for name in state.averages if name != MOMENTUM]
            state.square_step.zero_()
        else:
            forgotten = [name for name in state.averages if name == MOMENTUM]
            state.step.zero_()  # its bias is corrected as at a first step
        for name in forgotten:
            state.averages[name].zero_()
    if config.optimizer_rescale and MOMENTUM in state.averages:
        old, new = donor.hyperparams["learning_rate"], values["learning_rate"].to(donor.params.device)
        state.averages[MOMENTUM] *= torch.where((old > 0) & (new > 0), old / new, 1).unsqueeze(1)
    return state
