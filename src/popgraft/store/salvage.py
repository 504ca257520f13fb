"""A database that is damaged or missing: what can be read goes on in a new one, and the old one is kept beside it.

run.sqlite              the new one, with every row that could be read, and an event that says what happened
run.sqlite.damaged-1    the old one as it was found, and its log as run.sqlite.damaged-1-wal
"""

import contextlib
import itertools
import os
import shutil
import sqlite3
import time
from pathlib import Path
from typing import Any

from popgraft.disk import reason, sync_directory
from popgraft.errors import Damaged, StoreError
from popgraft.store import connection as connections
from popgraft.store.connection import INDEX, LOG, in_words, with_end
from popgraft.store.database import RunDatabase
from popgraft.store.folder import RunFolder
from popgraft.store.integrity import COLUMNS, can_seal, found, is_plain, seal

HEADER, FORMATS = b"SQLite format 3\x00", (1, 2)
"""How a database begins, and then, after two bytes, for whom it can be written and read."""


def salvage(folder: RunFolder) -> str | None:
    """Puts a new database in the place of one that is damaged.

    Args:
        folder: a run that is locked.

    Returns:
        What was done, which is recorded as an event too; None where the database is sound.

    Raises:
        StoreError: it is of another version of popgraft, it cannot be read for a reason that may pass, or a new one
            cannot be written. Nothing has been changed then.
    """
    with contextlib.ExitStack() as stack:
        if folder.database.is_file():
            stack.enter_context(connections.undisturbed(folder.database))
        damage = _damage(folder.database)
        if damage is None:
            return None
        try:
            return _replace(folder.database, damage)
        except OSError as error:
            why = reason(error, folder.path)
            raise StoreError(f"{damage}; a new database cannot be written in {folder.path}: {why}") from None


def _damage(path: Path) -> str | None:
    """What is wrong with a database, if anything: its pages, its tables or a row."""
    try:
        connections.check_file(path)
        with path.open("rb") as file:
            begin = file.read(len(HEADER) + 4)
        if begin[: len(HEADER)] != HEADER:  # SQLite would take an empty file for a new one, and drop its log
            return f"the database {path} is damaged: it is empty or not a database"
        if not {*begin[-2:]} <= {*FORMATS}:
            return f"the database {path} is damaged: its first page is not what a run has written"
        with RunDatabase(path, read_only=True) as database:
            database.check()
    except OSError as error:
        raise StoreError(f"the database {path} cannot be read: {reason(error)}") from None
    except Damaged as error:
        return str(error)
    return None


def _replace(path: Path, damage: str) -> str:
    log, index, new = (with_end(path, end) for end in (LOG, INDEX, ".new"))
    kept = next(name for name in (with_end(path, f".damaged-{n}") for n in itertools.count(1)) if not name.exists())
    for file, end in ((log, LOG), (path, "")):  # the log first: a copy that has its last file is whole
        if file.is_file():
            _keep(file, f"{kept}{end}")
    rows = _readable(path)
    new.unlink(missing_ok=True)
    RunDatabase.create(new)
    with in_words(new), contextlib.closing(sqlite3.connect(new)) as connection, connection:
        can_seal(connection)
        saved = sum(_insert(connection, table, own) for table, own in rows.items())
        text = f"{damage}. A new one holds the {saved} rows that could be read"
        text += f"; the old one is kept as {kept.name}" if kept.exists() else ""
        connection.execute("INSERT INTO events VALUES (?, NULL, 'damaged', ?)", (time.time(), text))
        for table in rows:
            seal(connection, table, "TRUE")
    for file in (log, index):  # SQLite would apply the old log to the new file
        file.unlink(missing_ok=True)
    os.replace(new, path)
    sync_directory(path.parent)
    return text


def _keep(file: Path, name: str) -> None:
    """Gives a file a second name, which it has when the first one is another's; copies it where it can have but one."""
    try:
        os.link(file, name)
    except OSError:
        shutil.copy2(file, name)


def _readable(path: Path) -> dict[str, dict[int, tuple[Any, ...]]]:
    """Every sound row by table and number.

    Tables are read from both ends, as far as their pages can be read; where the checksums cannot be, without them.
    """
    rows: dict[str, dict[int, tuple[Any, ...]]] = {table: {} for table in COLUMNS}
    unsound: dict[str, set[int]] = {table: set() for table in COLUMNS}
    ways = itertools.product((True, False), COLUMNS, ("rowid", "rowid DESC"))
    for summed, table, order in ways if path.is_file() else ():
        with contextlib.suppress(Damaged), in_words(path), contextlib.closing(connections.reader(path)) as connection:
            if is_plain(connection, table):
                for number, cells, values in found(connection, table, order, connections.size(path), summed):
                    if isinstance(values, str):
                        unsound[table].add(number)
                    elif number not in unsound[table]:
                        rows[table][number] = cells
    return rows


def _insert(connection: sqlite3.Connection, table: str, rows: dict[int, tuple[Any, ...]]) -> int:
    """Writes rows with their numbers; returns how many there were."""
    names = ", ".join(("rowid", *COLUMNS[table]))
    marks = ", ".join("?" * (1 + len(COLUMNS[table])))
    written = 0
    for number, cells in sorted(rows.items()):
        texts = (cell.decode() if isinstance(cell, bytes) else cell for cell in cells)
        with contextlib.suppress(sqlite3.IntegrityError):  # of two rows of one member, the first
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", (number, *texts))
            written += 1
    return written
