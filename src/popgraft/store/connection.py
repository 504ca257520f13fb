"""How the database of a run is opened, and what SQLite's errors mean: the machine's, or the file's."""

import contextlib
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from shutil import copyfile

from popgraft.disk import room
from popgraft.errors import Damaged, StoreError

LONGEST = 2**24
"""Bytes of a row: what claims to be longer is damaged, and takes no memory."""

PATIENCE, GLANCE = 60.0, 2.0
"""Seconds for which a writer waits for others that hold the database, and a reader."""

STRIDE, STEPS, PER_BYTE = 10_000, 1_000_000, 4
"""Steps of SQLite's machine between two looks at how many it has taken; what a reader may take, and for every byte."""

LOG, INDEX = "-wal", "-shm"
"""What SQLite adds to the name of a database for its log, and for the index of that."""

HELD = sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED
MACHINE = {
    sqlite3.SQLITE_FULL: "{room}: make room, or use another disk",
    sqlite3.SQLITE_IOERR: "{room}: make room, or see whether the disk is sound",
    sqlite3.SQLITE_CANTOPEN: "see that the folder is there, and that it can be read and written",
    sqlite3.SQLITE_READONLY: "see that the folder can be written",
    sqlite3.SQLITE_PERM: "see that the folder can be read and written",
    sqlite3.SQLITE_AUTH: "see that the folder can be read and written",
    sqlite3.SQLITE_PROTOCOL: "keep runs on a file system that can lock files",
    sqlite3.SQLITE_NOLFS: "keep runs on a file system that can hold large files",
    sqlite3.SQLITE_NOMEM: "close other programs",
}
"""Errors that say nothing about what the file holds, and what to do about them."""


@contextlib.contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Says what is wrong with a database.

    Raises:
        Damaged: it holds what no run has written.
        StoreError: another process holds it, or the machine does not let it be used; it may be sound.
    """
    try:
        yield
    except (sqlite3.Error, ValueError, OverflowError, RecursionError) as error:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code in HELD:
            raise StoreError(
                f"the database {path} is held by another process ({error}); end that, or try again later"
            ) from None
        if code in MACHINE:
            advice = MACHINE[code].format(room=room(path))
            raise StoreError(f"the database {path} cannot be used: {error}; {advice}") from None
        what = "it leads nowhere, however long it is read" if code == sqlite3.SQLITE_INTERRUPT else str(error)
        raise Damaged(f"the database {path} cannot be used: {what}") from None


def check_file(path: Path) -> None:
    """Looks whether a database can be there.

    Raises:
        Damaged: there is none.
        StoreError: something else has its name, or cannot be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise Damaged(f"the database {path} is missing") from None
    except OSError as error:
        raise StoreError(f"the database {path} cannot be read: {(error.strerror or str(error)).lower()}") from None
    if not stat.S_ISREG(mode):
        raise StoreError(f"the database {path} cannot be read: it is not a regular file")


def size(path: Path) -> int:
    """Bytes of a database with its log."""
    return sum(file.stat().st_size for file in (path, with_end(path, LOG)) if file.is_file())


def with_end(path: Path, end: str) -> Path:
    """The file beside a database with `LOG` or `INDEX` after its name."""
    return path.with_name(f"{path.name}{end}")


def writer(path: Path) -> sqlite3.Connection:
    """Opens a file that exists, to be written in transactions that are begun by hand."""
    return _opened(sqlite3.Connection, path, "mode=rw", PATIENCE)


def reader(path: Path) -> sqlite3.Connection:
    """Opens a file that exists, and leaves it, its log and its folder as they are.

    SQLite reads a log by an index beside it, which it would make. Where there is none nobody has the database open, and
    it holds still: without a log it is read by itself, and with one as a copy.
    """
    log, index = (with_end(path, end) for end in (LOG, INDEX))
    if index.exists():
        connection = _opened(sqlite3.Connection, path, "mode=ro", GLANCE)
    elif log.is_file() and log.stat().st_size:
        connection = _copied(path, log)
    else:
        connection = _opened(sqlite3.Connection, path, "immutable=1", GLANCE)
    budget, taken = PER_BYTE * size(path) + STEPS, 0

    def goes_on_for_ever() -> bool:
        nonlocal taken
        taken += STRIDE
        return taken > budget

    connection.set_progress_handler(goes_on_for_ever, STRIDE)
    return connection


@contextlib.contextmanager
def undisturbed(path: Path) -> Iterator[None]:
    """Waits until nobody has a database for himself, and sees to it that nobody takes it meanwhile.

    Raises:
        StoreError: somebody keeps it, or the machine does not let it be read; never that it is damaged.
    """
    with contextlib.closing(_opened(sqlite3.Connection, path, "mode=ro", PATIENCE)) as connection:
        with contextlib.suppress(Damaged), in_words(path):
            connection.execute("BEGIN")
            connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()
        yield


class _Copy(sqlite3.Connection):
    """A connection to files that are removed with it."""

    folder: tempfile.TemporaryDirectory[str]

    def close(self) -> None:
        super().close()
        self.folder.cleanup()


def _copied(path: Path, log: Path) -> sqlite3.Connection:
    folder = tempfile.TemporaryDirectory(prefix="popgraft-")
    copy = Path(folder.name) / path.name
    try:
        copyfile(path, copy)
        copyfile(log, with_end(copy, LOG))
        connection = _opened(_Copy, copy, "mode=rw", GLANCE)
    except OSError as error:
        folder.cleanup()
        raise StoreError(f"the database {path} and its log cannot be copied to be read: {error}") from None
    assert isinstance(connection, _Copy)
    connection.folder = folder
    return connection


def _opened(kind: type[sqlite3.Connection], path: Path, how: str, seconds: float) -> sqlite3.Connection:
    name = f"{path.absolute().as_uri()}?{how}"
    connection = sqlite3.connect(name, uri=True, timeout=seconds, isolation_level=None, factory=kind)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
    connection.text_factory = bytes  # whether they are texts is for `integrity` to say
    return connection
