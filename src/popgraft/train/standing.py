"""How a run stands, in the terms of those who decide over it."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from popgraft.config import Config
from popgraft.pbt import Past, Standing, everybody
from popgraft.state import Scores
from popgraft.store import RunDatabase
from popgraft.train.run_state import RunState

ALIKE = ("generation", "member", "score", "stderr", "episodes", "steps", "hyperparams")
"""What the database says of a generation as a strategy sees it."""


def standing_of(config: Config, state: RunState, number: int, database: RunDatabase, **known: Any) -> Standing:
    """What a strategy sees after some members have trained for a generation: copies, which it may keep and change.

    Args:
        config: the run.
        state: what it knows.
        number: number of the decision.
        database: what it has recorded of earlier ones.
        known: further attributes of the standing, where not everybody decides at once.
    """
    standing = everybody(
        number,
        Scores(state.known.mean.clone(), state.known.stderr.clone(), state.known.episodes.clone()),
        state.hyperparams,
        config.pbt,
        config.seed,
        state.record,
        ages=state.age.clone(),
        steps=state.place_steps.clone(),
        spent=torch.full_like(state.place_steps, config.steps_of_a_member),
        training=state.training.clone(),
        seconds=state.seconds.clone(),
        recall=lambda: history(database),
        **known,
    )
    best, record = standing.best, state.record
    if best is None or record is None or record.generation < int(state.rounds[record.place]):
        return standing
    return dataclasses.replace(standing, best=dataclasses.replace(best, member=record.place))


def of_those_left(standing: Standing, members: Int[Tensor, "left"]) -> Standing:
    """The same for some members as if they were the whole population: their places become 0, 1, … in their order, and
    in the history those of all others come after them.
    """
    if len(members) == standing.pop:
        return standing
    others = [member for member in range(standing.pop) if member not in members]
    places = {member: place for place, member in enumerate([*members.tolist(), *others])}

    def recall() -> Sequence[Past]:
        found = [
            dataclasses.replace(
                past,
                member=places[past.member],
                parent=places[past.parent],
                hyperparameter_parent=places[past.hyperparameter_parent],
            )
            for past in standing.history
        ]
        return sorted(found, key=lambda past: (past.generation, past.member))

    return dataclasses.replace(standing.among(members), recall=recall)


def history(database: RunDatabase) -> Sequence[Past]:
    """Everybody's generations that have been decided on, by generation and member."""
    grafts = {(graft.generation, graft.member): graft for graft in database.lineage()}
    adopted = {(each.generation, each.member): each.parent for each in database.adoptions()}
    found = []
    for own in database.scores():
        place = own.generation, own.member
        graft = grafts.get(place)
        parent, when = (graft.parent, graft.parent_generation) if graft else (own.member, own.generation)
        found.append(
            Past(
                **{name: getattr(own, name) for name in ALIKE},
                parent=parent,
                parent_generation=when,
                hyperparameter_parent=adopted.get(place, parent),
            )
        )
    return found
