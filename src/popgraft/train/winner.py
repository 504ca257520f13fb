"""Where the best agent of a run comes from: the generations that its weights were trained in, one after the other."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from popgraft.errors import Damaged, StoreError
from popgraft.hyperparams import shortest
from popgraft.store import GraftRecord, MemberRecord
from popgraft.train.run import Run


@dataclasses.dataclass(frozen=True)
class Stretch:
    """One generation in the life of an agent.

    Attributes:
        record: the place at which it trained, with its hyperparameters.
        begin: environment steps that it had taken before.
        end: environment steps that it had taken afterwards.
        graft: what brought it to this place; None where it was there before.
    """

    record: MemberRecord
    begin: int
    end: int
    graft: GraftRecord | None


def ancestry(run: Run) -> list[Stretch]:
    """The life of the best agent, from the first generation to the one in which it was found.

    An agent that went back to the best state there ever was has not lived the generations in between.

    Raises:
        StoreError: no generation has been scored yet, or the database lacks one of those.
    """
    found, scores = run.summary, run.scores
    records = {(record.generation, record.member): record for record in scores}
    grafts = {(graft.generation, graft.member): graft for graft in run.lineage}
    taken = {record.generation: record.steps for record in scores}  # by every member since the run began
    backwards, place = [], (int(found["generation"]), int(found["member"]))
    seen = set()
    while True:
        if place in seen:
            raise Damaged(f"{run.path} is damaged: its best agent descends from itself")
        seen.add(place)
        generation, member = place
        if place not in records or (generation and generation - 1 not in taken):
            raise StoreError(
                f"{run.path} has lost the records of generation {generation}, which the best agent lived in"
            )
        graft = grafts.get((generation - 1, member))
        backwards.append((records[place], taken[generation] - taken.get(generation - 1, 0), graft))
        if not generation:
            break
        place = (graft.parent_generation, graft.parent) if graft else (generation - 1, member)
    line, steps = [], 0
    for record, own, graft in reversed(backwards):
        line.append(Stretch(record, steps, steps + own, graft))
        steps += own
    return line


def schedule_of(line: Sequence[Stretch], names: Sequence[str], grafts: bool) -> list[dict[str, Any]]:
    """What an agent was trained with, as the setting `pbt.schedule`.

    Args:
        line: its life.
        names: the hyperparameters that vary.
        grafts: whether the grafts that it went through are part of it.
    """
    entries: list[dict[str, Any]] = []
    for stretch in line:
        values = {name: _exact(stretch.record.hyperparams[name]) for name in names}
        grafted = grafts and stretch.graft is not None
        if grafted or not entries or values != entries[-1]["hyperparams"]:
            entries.append({"steps": stretch.begin, "hyperparams": values, "graft": grafted})
    return entries


def _exact(value: float) -> float:
    """What runs record; those of earlier versions have recorded what it is in single precision."""
    return shortest(value) if value == float(np.float32(value)) else value
