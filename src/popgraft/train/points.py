"""Points from which a run can be resumed: snapshots of everything, at generations that begin with fresh seats."""

import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from popgraft import tree
from popgraft.errors import Damaged, StoreError
from popgraft.state import Member
from popgraft.store import RunFolder, snapshot
from popgraft.store.boundary import reading
from popgraft.train.plausible import Point, checked
from popgraft.train.run import LAST

if TYPE_CHECKING:
    from popgraft.train.loop import Training

NAME = re.compile(r"generation_(\d+)")


def save_point(training: "Training") -> None:
    """Saves a point at the beginning of the next generation, and then removes those that are too old to keep.

    Files are written while training goes on, from tensors that training does not touch any more.
    """
    folder, state = training.run.folder, training.state
    everyone = torch.arange(training.config.pbt.population_size)
    record = None if state.record is None else state.record.state
    metadata = {
        **state.metadata(),
        "strategy": training.strategy.state_dict(),
        "events": training.database.events_written(),
        "tensorboard": training.tensorboard.sizes(),
    }
    name, metadata = f"generation_{state.generation:06d}", copy.deepcopy(metadata)
    tensors = state.tensors(training.executor.export(everyone), record)

    def write() -> None:
        snapshot.save(folder, name, tensors, metadata)
        remove_old_points(folder, training.config.snapshots.keep)

    training.background.start(write)


def save_population(training: "Training", finished: bool) -> None:
    """Saves the population as the run leaves it, which may be in the middle of a generation."""
    state, everyone = training.state, torch.arange(training.config.pbt.population_size)
    metadata = {
        "generation": state.generation,
        "steps": state.steps,
        "finished": finished,
        "strategy": training.strategy.state_dict(),
    }
    snapshot.save(training.run.folder, LAST, training.executor.export(everyone), metadata)


def load_point(training: "Training", name: str, metadata: dict[str, Any]) -> None:
    """Puts members, state and strategy of a run that has not begun back to a point; its seats are for the caller."""
    executor, state = training.executor, training.state
    like = executor.export(torch.arange(training.config.pbt.population_size))
    with reading(training.run.folder.snapshots / name):
        tensors = read_point(training, name, metadata, like)
        state.restore(tensors, metadata)
        training.strategy.load_state_dict(metadata.get("strategy", metadata.get("schedule", {})))  # its earlier name
        told = metadata["steps"], metadata["generation"], max(0, state.begun - 1), state.pop - 1
        true = int(state.place_steps.sum()), state.generation
        found = metadata["found"] or {"generation": 0, "member": 0}
        if told[:2] != true or found["generation"] > told[2] or found["member"] > told[3]:
            raise ValueError("its numbers are not those of its members")
    executor.restore(tensors["member"])


def read_point(training: "Training", name: str, metadata: dict[str, Any], like: Member) -> dict[str, Any]:
    """The tensors of a point, for a population of the structure of `like`."""
    record = tree.gather(like, torch.arange(1)) if metadata["found"] is not None else None
    tensors, _ = snapshot.load(training.run.folder, name, training.state.tensors(like, record))
    return tensors


def newest_point(folder: RunFolder, report: Callable[[str], None]) -> tuple[str, dict[str, Any]] | None:
    """Name and metadata of the newest point that is whole; None where there has never been one.

    Args:
        folder: the run.
        report: is told of every newer one, why it cannot be used.

    Raises:
        StoreError: there are some, but none is whole.
    """
    damage, written = "", snapshot.names(folder)
    for number, name in sorted(points(folder).items(), reverse=True):
        if name not in written:  # the process was killed while it wrote this one, or removed it
            continue
        place = folder.snapshots / name
        try:
            with reading(place):
                metadata = checked(Point, snapshot.verified(folder, name), place)
            if metadata["generation"] != number:
                raise Damaged(f"snapshot {place} is damaged: it is that of generation {metadata['generation']}")
            return name, metadata
        except StoreError as error:
            damage = str(error)
            report(f"{damage}; going on from an earlier one")
    if damage:
        raise StoreError(
            f"{folder.path} has no snapshot from which it can go on: {damage}. Train again with another run_dir, or "
            f"delete {folder.snapshots}/generation_* to have the same run repeated from its beginning"
        )
    return None


def remove_old_points(folder: RunFolder, keep: int) -> None:
    """Removes all points but the newest ones."""
    for _, name in sorted(points(folder).items())[:-keep]:
        snapshot.remove(folder, name)


def points(folder: RunFolder) -> dict[int, str]:
    """Names of all points by generation, whole or not."""
    with reading(folder.snapshots):
        found = [NAME.fullmatch(path.name) for path in folder.snapshots.iterdir()]
    return {int(match[1]): match[0] for match in found if match}
