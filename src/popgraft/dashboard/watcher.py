"""The runs below a folder as a live page, and whether it has changed."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

from popgraft.dashboard.data import Limits, RunData, read
from popgraft.dashboard.figures import figures
from popgraft.dashboard.page import Account, page
from popgraft.dashboard.section import MakeSection
from popgraft.dashboard.status import Status, listing, status_of
from popgraft.dashboard.summary import summary
from popgraft.errors import PopgraftError
from popgraft.store import RunFolder
from popgraft.store.boundary import reading
from popgraft.store.lock import holder
from popgraft.train import Run
from popgraft.train.replay import FILE, FOLDER

PAUSE = 0.75
"""Seconds from one look at the disk to the next, at least."""

LOOKING, DRAWING = 0.003, 0.004
"""Shares of a core's time that the list of runs and the figures may take; where they need more, the pauses grow."""

UNREADABLE = "This run cannot be read: {}."
"""What is told of a run in place of everything else."""

SHOWN, LISTED = 16, 4096
"""Runs whose figures are remembered though nobody asks for them, and whose statuses are."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """What can be seen of a run from outside; another one whenever there is something new to tell.

    Attributes:
        folder: where it lies.
        holder: who trains it, if anybody does.
        stamps: when each of its files was written, in nanoseconds since 1970, and its bytes; its configuration first.
    """

    folder: RunFolder
    holder: str | None
    stamps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, folder: RunFolder) -> "Mark":
        """The mark as it is now."""
        log = folder.database.with_name(f"{folder.database.name}-wal")
        files = folder.config, folder.database, log, folder.snapshots, folder.path / FOLDER / FILE
        return cls(folder, holder(folder), tuple(map(_stamp, files)))


@dataclasses.dataclass
class Shown:
    """A run whose figures have been drawn.

    Attributes:
        mark: what it looked like then.
        data: what was read; where it could not be, why.
        own: functions of the user's that make sections.
        waits_until: when it may be read again, on the clock of time.monotonic.
    """

    mark: Mark
    data: RunData | str
    own: Sequence[MakeSection] = ()
    waits_until: float = 0.0

    def __post_init__(self) -> None:
        self.account = lru_cache(1)(self._account)

    def _account(self, name: str, limits: Limits | None) -> Account:
        """What there is to tell of it."""
        if isinstance(self.data, str):
            return Account(name, [self.data], [])
        try:
            with reading(self.data.path):
                return Account(name, summary(self.data), figures(self.data, limits=limits, own=self.own))
        except PopgraftError as error:
            return Account(name, [UNREADABLE.format(error)], [])


class Watcher:
    """Looks at runs when it is asked, and not too often. Threads may share it.

    While nobody asks it does nothing, and of a run that has not changed it reads nothing again. The list of runs, which
    costs little, is kept up to date even where figures have to wait until they may be drawn again.

    Args:
        root: the folder of a run, or one above several.
        own: functions of the user's that make sections.
    """

    def __init__(self, root: Path, own: Sequence[MakeSection] = ()) -> None:
        self._root, self._own = root, own
        self._lock = threading.Lock()
        self._marks: dict[str, Mark] = {}
        self._version = 0
        self._rests_until = 0.0  # on the clock of time.monotonic, before which nobody looks at the disk
        self._spent = 0.0  # seconds of work since the last look
        self._shown: dict[str, Shown] = {}
        self._told: set[str] = set()  # runs of which it has been told that they may be drawn again
        self._run = lru_cache(2 * SHOWN)(
            lambda folder, _: Run(folder.path)
        )  # it keeps the configuration that it has read
        self._status = lru_cache(LISTED)(self._status_of)

    def version(self) -> int:
        """A number that grows whenever a run has appeared, changed or vanished, or figures may be drawn again."""
        with self._lock:
            self._look()
            return self._version

    def page(self, asked: Iterable[str]) -> str:
        """The live page of some runs.

        Args:
            asked: names of runs, or several in one, with commas between them; without any, the run written last.
        """
        with self._lock:
            self._look()
            chosen = self._chosen(asked)
            first = not self._shown.keys() >= set(chosen)
            accounts = self._accounts(chosen)
            began = time.thread_time()
            statuses = {name: self._status(mark) for name, mark in self._marks.items()}
            title = chosen[0] if len(chosen) == 1 else f"{len(chosen)} runs in {self._root}"
            text = page(title, accounts, listing(self._root, statuses, chosen))
            if not first:  # what a person waits for is not rationed
                self._spent += time.thread_time() - began
            return text

    def _accounts(self, chosen: Sequence[str]) -> list[Account]:
        """What there is to tell of some runs; of those that have to wait, what has been told before."""
        began = time.thread_time()
        due = self._due().intersection(chosen)
        there = [name for name in chosen if name in self._marks]
        for name in there:
            if name in due or name not in self._shown:
                self._shown[name] = Shown(self._marks[name], self._read(self._marks[name]), self._own)
        limits = _limits(self._shown[name].data for name in there) if len(chosen) > 1 else None
        accounts = {name: self._shown[name].account(name, limits) for name in there}
        until = time.monotonic() + (time.thread_time() - began) / DRAWING
        for name in due:  # but those that are shown for the first time have not to wait: a person has asked for them
            self._shown[name].waits_until = until
        for name in [*(self._shown.keys() - chosen)][SHOWN:]:
            del self._shown[name]
        return [
            accounts.get(name) or Account(name, ["There is no such run here, or no longer."], []) for name in chosen
        ]

    def _due(self) -> set[str]:
        """Runs that have changed since their figures were drawn, and whose figures may be drawn again.

        Nobody has to be spared where nobody trains: the end of a run is drawn at once.
        """
        now, marks = time.monotonic(), {name: self._marks.get(name, shown.mark) for name, shown in self._shown.items()}
        return {
            name
            for name, shown in self._shown.items()
            if marks[name] != shown.mark and (now >= shown.waits_until or marks[name].holder is None)
        }

    def _chosen(self, asked: Iterable[str]) -> list[str]:
        names = (name for text in asked for name in ([text] if text in self._marks else text.split(",")) if name)
        newest = max(self._marks, key=lambda name: max(self._marks[name].stamps), default="")
        return list(dict.fromkeys(names)) or [newest][: len(self._marks)]

    def _read(self, mark: Mark) -> RunData | str:
        """A run; where it cannot be read, why."""
        try:
            return read(self._run(mark.folder, mark.stamps[0]))
        except PopgraftError as error:
            return UNREADABLE.format(error)

    def _status_of(self, mark: Mark) -> Status:
        """How far a run has come."""
        try:
            return status_of(self._run(mark.folder, mark.stamps[0]))
        except PopgraftError as error:
            return Status("damaged", fault=str(error))

    def _look(self) -> None:
        """Takes the marks of all runs, unless that was done a moment ago."""
        if time.monotonic() < self._rests_until:
            return
        began = time.thread_time()
        with contextlib.suppress(OSError):  # a folder that vanished while it was searched
            marks = {self._name(folder): Mark.of(folder) for folder in RunFolder.find(self._root)}
            self._marks, before = marks, self._marks
            self._told, told = self._due(), self._told
            self._version += marks != before or not self._told <= told
        spent, self._spent = self._spent + time.thread_time() - began, 0.0
        self._rests_until = time.monotonic() + max(PAUSE, spent / LOOKING)

    def _name(self, folder: RunFolder) -> str:
        """How a run is called: its path below the root."""
        return str(folder.path.relative_to(self._root)) if folder.path != self._root else self._root.resolve().name


def _limits(runs: Iterable[RunData | str]) -> Limits | None:
    """The least and the highest score of several runs; None where none is known."""
    known = [run.limits for run in runs if isinstance(run, RunData) and run.limits]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _stamp(path: Path) -> tuple[int, int]:
    """Zeros for a file that is missing or empty: a reader may leave the database an empty log."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return (found.st_mtime_ns, found.st_size) if found.st_size else (0, 0)
