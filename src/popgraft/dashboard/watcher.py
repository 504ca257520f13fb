"""The runs below a folder as a live page, and whether it has changed."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

from popgraft.dashboard.data import read
from popgraft.dashboard.figures import figures
from popgraft.dashboard.page import Account, page
from popgraft.dashboard.standing import listing, standing
from popgraft.dashboard.summary import summary
from popgraft.errors import PopgraftError
from popgraft.store import RunFolder
from popgraft.store.lock import holder

PAUSE = 0.5
"""Seconds from one look at the disk to the next, at least."""

SHARE = 0.1
"""Share of a core's time that looking and drawing may take; where they need more, the pauses grow."""

SHOWN, LISTED = 16, 4096
"""Runs whose figures, and whose standings, are remembered."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """What can be seen of a run from outside; another one whenever there is something new to tell.

    Attributes:
        folder: where it lies.
        holder: who trains it, if anybody does.
        stamps: when each of its files was written, in nanoseconds since 1970, and its bytes.
    """

    folder: RunFolder
    holder: str | None
    stamps: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, folder: RunFolder) -> "Mark":
        """The mark as it is now."""
        log = folder.database.with_name(f"{folder.database.name}-wal")
        return cls(folder, holder(folder), tuple(map(_stamp, (folder.database, log, folder.config, folder.snapshots))))


class Watcher:
    """Looks at runs when it is asked, and not too often. Threads may share it.

    While nobody asks it does nothing, and of a run that has not changed it reads nothing again.

    Args:
        root: the folder of a run, or one above several.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        self._lock = threading.Lock()
        self._marks: dict[str, Mark] = {}
        self._version = 0
        self._rests_until = 0.0  # on the clock of time.monotonic
        self._account = lru_cache(SHOWN)(_account)
        self._standing = lru_cache(LISTED)(lambda mark: standing(mark.folder.path))

    def version(self) -> int:
        """A number that grows whenever a run has appeared, changed or vanished."""
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
            with self._working():
                chosen = self._chosen(asked)
                accounts = [self._account(name, self._marks.get(name)) for name in chosen]
                standings = {name: self._standing(mark) for name, mark in self._marks.items()}
                title = chosen[0] if len(chosen) == 1 else f"{len(chosen)} runs in {self._root}"
                return page(title, accounts, listing(self._root, standings, chosen))

    def _chosen(self, asked: Iterable[str]) -> list[str]:
        names = (name for text in asked for name in ([text] if text in self._marks else text.split(",")) if name)
        newest = max(self._marks, key=lambda name: max(self._marks[name].stamps), default="")
        return list(dict.fromkeys(names)) or [newest][: len(self._marks)]

    def _look(self) -> None:
        """Takes the marks of all runs, unless that was done a moment ago."""
        if time.monotonic() < self._rests_until:
            return
        with self._working(), contextlib.suppress(FileNotFoundError):  # a folder that vanished while it was searched
            marks = {self._name(folder): Mark.of(folder) for folder in RunFolder.find(self._root)}
            self._version += marks != self._marks
            self._marks = marks

    def _name(self, folder: RunFolder) -> str:
        """How a run is called: its path below the root."""
        return str(folder.path.relative_to(self._root)) if folder.path != self._root else self._root.resolve().name

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        """Lets a pause follow some work, which is long enough for `PAUSE` and `SHARE`."""
        began = time.thread_time()
        try:
            yield
        finally:
            pause = max(PAUSE, (time.thread_time() - began) / SHARE)
            self._rests_until = max(self._rests_until, time.monotonic() + pause)


def _account(name: str, mark: Mark | None) -> Account:
    """What there is to tell of a run; where it cannot be read, why."""
    if mark is None:
        return Account(name, ["There is no such run here, or no longer."], [])
    try:
        data = read(mark.folder.path)
    except PopgraftError as error:
        return Account(name, [f"This run cannot be read: {error}."], [])
    return Account(name, summary(data), figures(data))


def _stamp(path: Path) -> tuple[int, int]:
    """Zeros for a file that is missing or empty: a reader may leave the database an empty log."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return (found.st_mtime_ns, found.st_size) if found.st_size else (0, 0)
