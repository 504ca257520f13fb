"""How a run stands, in the terms of those who decide over it."""

from collections.abc import Sequence
from typing import Any

import torch

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
    return everybody(
        number,
        Scores(state.known.mean.clone(), state.known.stderr.clone(), state.known.episodes.clone()),
        state.hyperparams,
        config.pbt,
        config.seed,
        state.record,
        ages=state.age.clone(),
        steps=state.place_steps.clone(),
        spent=torch.full_like(state.place_steps, config.steps_per_generation // state.pop),
        training=state.training.clone(),
        seconds=state.seconds.clone(),
        recall=lambda: history(database),
        **known,
    )


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
