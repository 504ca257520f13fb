"""What a run saves: points from which it can be resumed, its best member, and the population as it is left.

A point is a snapshot of everything, at a generation from which everybody goes on from the members alone.
"""

import copy
import re
from collections.abc import Callable
from typing import Any

import torch

from popgraft import tree
from popgraft.config import Config
from popgraft.errors import Damaged, StoreError
from popgraft.pbt import Strategy
from popgraft.state import Member
from popgraft.store import RunDatabase, RunFolder, snapshot
from popgraft.store.boundary import reading
from popgraft.train.background import Background
from popgraft.train.plausible import Point, checked, members_of
from popgraft.train.run import BEST, LAST
from popgraft.train.run_state import RunState
from popgraft.train.tensorboard import TensorBoard

NAME = re.compile(r"generation_(\d+)")
LASTING = ("stopped", "resumed", "damaged", "changed", "lost")
"""Events of processes rather than of training: they stay in the record when training is repeated."""

Found = tuple[str, dict[str, Any]]
"""Name and metadata of a point."""


class Points:
    """Saves a run, and takes it back to what was saved.

    Files are written while training goes on, from tensors that training does not touch any more.

    Args:
        config: the run.
        folder: where it is saved.
        state: what is saved besides the members.
        strategy: likewise.
        database: is taken back too.
        board: likewise.
    """

    def __init__(
        self,
        config: Config,
        folder: RunFolder,
        state: RunState,
        strategy: Strategy,
        database: RunDatabase,
        board: TensorBoard,
    ) -> None:
        self._config, self._folder, self._state, self._strategy = config, folder, state, strategy
        self._database, self._board = database, board
        self._background = Background()

    def save(self, member: Member) -> None:
        """Saves a point at the beginning of the next generation, and then removes those that are too old to keep."""
        folder, state = self._folder, self._state
        metadata = {
            **state.metadata(),
            "strategy": self._strategy.saved(),
            "events": self._database.events_written(),
            "tensorboard": self._board.sizes(),
        }
        name, metadata = f"generation_{state.generation:06d}", copy.deepcopy(metadata)
        tensors = state.tensors(member, None if state.record is None else state.record.state)

        def write() -> None:
            snapshot.save(folder, name, tensors, metadata)
            self._remove_old()

        self._background.start(write)

    def save_best(self, member: Member, found: dict[str, Any]) -> None:
        """Saves the best member there ever was, a population of one."""
        self._background.start(lambda: snapshot.save(self._folder, BEST, member, found))

    def save_population(self, member: Member, members: list[int], finished: bool) -> None:
        """Saves the population as the run leaves it, which may be in the middle of a generation.

        Args:
            member: its members.
            members: which they are.
            finished: whether the run has come to its end.
        """
        metadata = {
            "generation": self._state.generation,
            "steps": self._state.steps,
            "evaluation_steps": self._state.evaluation_steps,
            "members": members,
            "finished": finished,
            "strategy": self._strategy.saved(),
        }
        snapshot.save(self._folder, LAST, member, metadata)

    def wait(self) -> None:
        """Waits until all is written.

        Raises:
            Exception: what went wrong in it.
        """
        self._background.wait()

    def newest(self, report: Callable[[str], None]) -> Found | None:
        """The newest point that is whole; None where there has never been one.

        Args:
            report: is told of every newer one, why it cannot be used.

        Raises:
            StoreError: there are some, but none is whole.
        """
        self.wait()
        return newest_point(self._folder, report)

    def read(self, point: Found, like: Member) -> dict[str, Any]:
        """The tensors of a point, whose members have the structure of those of `like`."""
        name, metadata = point
        record = tree.gather(like, torch.arange(1)) if metadata["found"] is not None else None
        members = tree.repeat(like, len(members_of(metadata, self._state.pop)))
        tensors, _ = snapshot.load(self._folder, name, self._state.tensors(members, record))
        return tensors

    def load(self, point: Found, like: Member) -> Member:
        """Takes state and strategy back to a point.

        Args:
            point: which.
            like: members of the right structure.

        Returns:
            The members as they were then: those that `state.members` names.
        """
        state, (name, metadata) = self._state, point
        with reading(self._folder.snapshots / name):
            tensors = self.read(point, like)
            state.restore(tensors, metadata)
            earlier = metadata.get("schedule", {})  # its name once
            self._strategy.restore(metadata.get("strategy") or earlier)
            told = metadata["steps"], metadata["generation"], metadata.get("members", state.members.tolist())
            true = int(state.place_steps.sum()), state.generation, state.members.tolist()
            found = metadata["found"] or {"generation": 0, "member": 0}
            if told != true or found["generation"] > max(0, state.begun - 1) or found["member"] >= state.pop:
                raise ValueError("its numbers are not those of its members")
        member: Member = tensors["member"]
        return member

    def rewind(self, point: Found | None) -> list[str]:
        """Makes the folder what it was at the point that has been loaded; whenever this is cut short, doing it again
        completes it.

        Args:
            point: which; None stands for the beginning.

        Returns:
            What the database has lost of the time before.
        """
        state, folder, metadata = self._state, self._folder, point[1] if point else None
        for generation, name in sorted(points(folder).items(), reverse=True):
            if generation > state.generation:
                snapshot.remove(folder, name)
        self._remove_old()  # where it was killed before it had
        known = state.follower.known()
        lost = self._database.rewind(state.rounds.tolist(), metadata["events"] if metadata else 0, known, LASTING)
        self._board.cut(metadata["tensorboard"] if metadata else {})
        if state.record is not None and state.found is not None:
            snapshot.save(folder, BEST, state.record.state, state.found)
        else:
            snapshot.remove(folder, BEST)
        snapshot.remove(folder, LAST)
        return lost

    def _remove_old(self) -> None:
        for _, name in sorted(points(self._folder).items())[: -self._config.snapshots.keep]:
            snapshot.remove(self._folder, name)


def newest_point(folder: RunFolder, report: Callable[[str], None]) -> Found | None:
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


def points(folder: RunFolder) -> dict[int, str]:
    """Names of all points by generation, whole or not."""
    with reading(folder.snapshots):
        found = [NAME.fullmatch(path.name) for path in folder.snapshots.iterdir()]
    return {int(match[1]): match[0] for match in found if match}
