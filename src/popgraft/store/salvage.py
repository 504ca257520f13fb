"""A database that is damaged or missing: what can be read goes on in a new one, and the old one is kept beside it.

run.sqlite              the new one, with every row that could be read, and an event that says what happened
run.sqlite.damaged-1    the old one as it was found, and its log as run.sqlite.damaged-1-wal
"""

import contextlib
import dataclasses
import itertools
import json
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from popgraft.disk import reason, sync_directory
from popgraft.errors import StoreError
from popgraft.store.database import RunDatabase, connected
from popgraft.store.folder import RunFolder
from popgraft.store.records import Aftermath

HEADER = b"SQLite format 3\x00"


def salvage(folder: RunFolder) -> str | None:
    """Puts a new database in the place of one that cannot be used.

    Args:
        folder: a run that is locked.

    Returns:
        What was done, which is recorded as an event too; None where the database is sound.

    Raises:
        StoreError: it is of another version of popgraft, or a new one cannot be written.
    """
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
        if path.is_file():
            with path.open("rb") as file:
                if file.read(len(HEADER)) != HEADER:  # SQLite would take an empty file for a new one, and drop its log
                    return f"the database {path} is damaged: it is empty or not a database"
        with RunDatabase(path, read_only=True) as database:
            database.check()
        if not _readable(path)[1]:
            return f"the database {path} is damaged: it holds rows that mean nothing"
    except OSError as error:
        return f"the database {path} cannot be read: {reason(error)}"
    except StoreError as error:
        if RunDatabase.is_of_another_version(path):
            raise
        return str(error)
    return None


def _replace(path: Path, damage: str) -> str:
    log, index, new = (path.with_name(f"{path.name}{end}") for end in ("-wal", "-shm", ".new"))
    kept = next(
        name for name in (path.with_name(f"{path.name}.damaged-{n}") for n in itertools.count(1)) if not name.exists()
    )
    for file, end in ((log, "-wal"), (path, "")):  # the log first: a copy that has its last file is whole
        if file.is_file():
            shutil.copy2(file, f"{kept}{end}")
    rows, _ = _readable(path)
    new.unlink(missing_ok=True)
    RunDatabase.create(new)
    with contextlib.closing(sqlite3.connect(new)) as connection, connection:
        saved = sum(_insert(connection, table, rows[table]) for table in COLUMNS)
        text = f"{damage}. A new one holds the {saved} rows that could be read"
        text += f"; the old one is kept as {kept.name}" if kept.exists() else ""
        connection.execute("INSERT INTO events VALUES (?, NULL, 'damaged', ?)", (time.time(), text))
    for file in (log, index):  # SQLite would apply the old log to the new file
        file.unlink(missing_ok=True)
    os.replace(new, path)
    sync_directory(path.parent)
    return text


def _readable(path: Path) -> tuple[dict[str, dict[int, tuple[Any, ...]]], bool]:
    """Every sound row by table and number, and whether there are no others.

    Tables are read from both ends, as far as their pages can be read.
    """
    rows: dict[str, dict[int, tuple[Any, ...]]] = {table: {} for table in COLUMNS}
    whole = True
    for (table, columns), order in itertools.product(COLUMNS.items(), ("ASC", "DESC")):
        query = f"SELECT rowid, {', '.join(columns)} FROM {table} ORDER BY rowid {order}"
        try:
            with contextlib.closing(connected(path, read_only=True)) as connection:
                connection.text_factory = bytes
                for number, *values in connection.execute(query):
                    try:
                        cells = zip(columns.values(), values, strict=True)
                        rows[table][number] = tuple(check(value) for check, value in cells)
                    except (ValueError, RecursionError):
                        whole = False
        except (sqlite3.Error, UnicodeDecodeError):  # the latter where an error quotes what it cannot read
            whole = False
    return rows, whole


def _insert(connection: sqlite3.Connection, table: str, rows: dict[int, tuple[Any, ...]]) -> int:
    """Writes rows with their numbers; returns how many there were."""
    names = ", ".join(("rowid", *COLUMNS[table]))
    marks = ", ".join("?" * (1 + len(COLUMNS[table])))
    written = 0
    for number, values in sorted(rows.items()):
        with contextlib.suppress(sqlite3.IntegrityError):  # of two rows of one member, the first
            connection.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", (number, *values))
            written += 1
    return written


def _count(value: Any) -> int:
    if not isinstance(value, int) or value < 0:
        raise ValueError("not a count")
    return value


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _number(value: Any) -> float | None:
    if value is not None and not isinstance(value, (int, float)):
        raise ValueError("not a number")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        raise ValueError("not a text")
    return value.decode()


def _mapping(value: Any) -> str:
    text = _text(value)
    if not isinstance(json.loads(text), dict):
        raise ValueError("not a mapping")
    return text


def _numbers(value: Any) -> str:
    text = _mapping(value)
    for each in json.loads(text).values():
        _number(each)
    return text


def _lists(value: Any) -> str:
    text = _mapping(value)
    for each in json.loads(text).values():
        if not isinstance(each, list):
            raise ValueError("not a list")
        for number in each:
            _number(number)
    return text


COLUMNS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "members": {
        **dict.fromkeys(("generation", "member"), _count),
        **dict.fromkeys(("score", "stderr"), _number),
        **dict.fromkeys(("episodes", "steps"), _count),
        "hyperparams": _mapping,
    },
    "metrics": {"generation": _count, "time": _number, "members": _lists, "population": _numbers},
    "grafts": {
        **dict.fromkeys(("generation", "member", "parent", "parent_generation"), _count),
        "reason": _text,
        **dict.fromkeys(("score_before", "parent_score"), _number),
        **dict.fromkeys(("hyperparams_before", "hyperparams_after"), _mapping),
        "strategy": _text,
        **dict.fromkeys((field.name for field in dataclasses.fields(Aftermath)), _number),
    },
    "events": {"time": _number, "generation": _count_or_none, "kind": _text, "text": _text},
    "sessions": {"time": _number, "process": _count, "host": _text, "config": _text, "versions": _mapping},
}
"""What every cell must be."""
