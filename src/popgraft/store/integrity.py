"""Whether a database is what a run has written: its tables, every cell, and a checksum for every row."""

import dataclasses
import functools
import json
import math
import sqlite3
import zlib
from collections.abc import Callable, Iterator
from typing import Any

from popgraft.store.records import Aftermath
from popgraft.store.schema import LATER, SCHEMA

Row = tuple[int, tuple[Any, ...], tuple[Any, ...]]
"""Its number, its cells as they lie there, and what they mean."""

LARGEST = 2**53
"""What nothing has been counted to."""
OVERHEAD = 8
"""Bytes that a row takes besides its texts, at least."""


def check_tables(connection: sqlite3.Connection) -> None:
    """Looks whether the tables are those of a run, and nothing hangs on them; views and tables beside them do no harm.

    Raises:
        ValueError: they are not.
    """
    found = _tables(connection)
    for name, parts in _expected().items():
        if found.get(name) != parts and not (name in LATER and name not in found):
            raise ValueError(f"its table {name} is not that of a run")


def is_plain(connection: sqlite3.Connection, table: str) -> bool:
    """Whether a table is one, with the columns of a run, none of which is computed."""
    whole = {
        name.decode(): not hidden
        for _, name, _, _, _, _, hidden in connection.execute("SELECT * FROM pragma_table_xinfo(?)", (table,))
    }
    (text,) = connection.execute("SELECT sql FROM sqlite_master WHERE name = ?", (table,)).fetchone() or (b"",)
    return bytes(text).upper().startswith(b"CREATE TABLE") and all(whole.get(name, False) for name in COLUMNS[table])


def rows(connection: sqlite3.Connection, table: str, order: str = "rowid", most: int | None = None) -> Iterator[Row]:
    """Every row of a table that `check_tables` has seen.

    Args:
        connection: the database.
        table: a key of `COLUMNS`.
        order: what follows ORDER BY.
        most: bytes that they can hold together; None: any number.

    Raises:
        ValueError: a row means nothing, or is not what was written, or there are more than the file can hold.
    """
    for number, cells, values in found(connection, table, order, most):
        if isinstance(values, str):
            raise ValueError(f"{values} (row {number} of {table})")
        yield number, cells, values


def found(
    connection: sqlite3.Connection, table: str, order: str, most: int | None = None, summed: bool = True
) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...] | str]]:
    """Likewise; where a row is not sound, why, in place of its values. `summed`: whether to look at checksums."""
    checks, value, join, tables = COLUMNS[table], "NULL", "", _tables(connection)
    if table not in tables:
        return
    if summed and "checksums" in tables:
        value = "checksums.value"
        own = f"checksums.kind = {_kind(table)} AND checksums.number = {table}.rowid"
        join = f" LEFT JOIN checksums ON {own}"
    query = f"SELECT {table}.rowid, {value}, {_names(table)} FROM {table}{join} ORDER BY {order}"
    read = 0
    for number, expected, *cells in connection.execute(query):
        read += OVERHEAD + sum(len(cell) for cell in cells if isinstance(cell, bytes))
        if most is not None and read > most:
            raise ValueError(f"its table {table} holds more than the file")
        try:
            values = tuple(check(cell) for check, cell in zip(checks.values(), cells, strict=True))
            if expected is not None and expected != checksum(*cells):
                raise ValueError("it is not what was written")
        except (ValueError, OverflowError, RecursionError) as error:
            yield number, tuple(cells), str(error)
        else:
            yield number, tuple(cells), values


def can_seal(connection: sqlite3.Connection) -> None:
    """Makes a connection one that can `seal`."""
    connection.create_function("checksum", -1, checksum, deterministic=True)


def seal(connection: sqlite3.Connection, table: str, where: str, *values: Any) -> None:
    """Writes the checksums of the rows of a table that meet a condition, as they lie there now."""
    of_rows = f"SELECT {_kind(table)}, rowid, checksum({_names(table)}) FROM {table} WHERE {where}"
    connection.execute(f"INSERT OR REPLACE INTO checksums {of_rows}", values)


def prune(connection: sqlite3.Connection) -> None:
    """Forgets the checksums of rows that are no more."""
    for table in COLUMNS:
        query = f"DELETE FROM checksums WHERE kind = {_kind(table)} AND number NOT IN (SELECT rowid FROM {table})"
        connection.execute(query)


def checksum(*cells: Any) -> int:
    """CRC-32 of a row; texts may be given as bytes."""
    parts = (cell if isinstance(cell, bytes) else str(cell).encode() for cell in cells)
    return zlib.crc32(b"\x00".join(parts))


def _kind(table: str) -> int:
    """The number by which the table of checksums calls a table."""
    return list(COLUMNS).index(table)


def _names(table: str) -> str:
    return ", ".join(f"{table}.{column}" for column in COLUMNS[table])


def _tables(connection: sqlite3.Connection) -> dict[str, set[tuple[str, str, str | None]]]:
    """By table, what a database says of it: itself, its indices and triggers."""
    tables: dict[str, set[tuple[str, str, str | None]]] = {}
    for table, *parts in connection.execute("SELECT tbl_name, type, name, sql FROM sqlite_master"):
        table, *parts = (part.decode() if isinstance(part, bytes) else part for part in (table, *parts))
        tables.setdefault(str(table), set()).add((str(parts[0]), str(parts[1]), parts[2]))
    return tables


@functools.cache
def _expected() -> dict[str, set[tuple[str, str, str | None]]]:
    connection = sqlite3.connect(":memory:")
    connection.executescript(SCHEMA)
    for text in LATER.values():
        connection.execute(text)
    tables = _tables(connection)
    connection.close()
    return tables


def _count(value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < LARGEST:
        raise ValueError(f"{_shown(value)} is not a count")
    return value


def _count_or_none(value: Any) -> int | None:
    return None if value is None else _count(value)


def _number(value: Any) -> float:
    """SQLite keeps NaN as NULL."""
    if value is None:
        return math.nan
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise ValueError(f"{_shown(value)} is not a number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, bytes):
        raise ValueError(f"{_shown(value)} is not a text")
    return value.decode()


def _mapping(value: Any) -> dict[str, Any]:
    found = json.loads(_text(value))
    if not isinstance(found, dict):
        raise ValueError(f"{_shown(found)} is not a mapping")
    return found


def _texts(value: Any) -> dict[str, str]:
    return {name: str(text) for name, text in _mapping(value).items()}


def _numbers(value: Any) -> dict[str, float]:
    return {name: _number(each) for name, each in _mapping(value).items()}


def _hyperparams(value: Any) -> dict[str, float]:
    """Null stands for infinity: the value of a bound that is absent."""
    return {name: math.inf if each is None else _number(each) for name, each in _mapping(value).items()}


def _lists(value: Any) -> dict[str, list[float]]:
    found = _mapping(value)
    if not all(isinstance(each, list) for each in found.values()):
        raise ValueError("a metric is not a list")
    return {name: [_number(number) for number in each] for name, each in found.items()}


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:39]}…"


COLUMNS: dict[str, dict[str, Callable[[Any], Any]]] = {
    "members": {
        **dict.fromkeys(("generation", "member"), _count),
        **dict.fromkeys(("score", "stderr"), _number),
        **dict.fromkeys(("episodes", "steps"), _count),
        "hyperparams": _hyperparams,
    },
    "metrics": {"generation": _count, "time": _number, "members": _lists, "population": _numbers},
    "grafts": {
        **dict.fromkeys(("generation", "member", "parent", "parent_generation"), _count),
        "reason": _text,
        **dict.fromkeys(("score_before", "parent_score"), _number),
        **dict.fromkeys(("hyperparams_before", "hyperparams_after"), _hyperparams),
        "strategy": _text,
        **dict.fromkeys((field.name for field in dataclasses.fields(Aftermath)), _number),
    },
    "events": {"time": _number, "generation": _count_or_none, "kind": _text, "text": _text},
    "sessions": {"time": _number, "process": _count, "host": _text, "config": _text, "versions": _texts},
    "adoptions": dict.fromkeys(("generation", "member", "parent", "parent_generation"), _count),
}
"""What every cell must be, and what it means; texts come as bytes. Checksums know tables by their place here."""
