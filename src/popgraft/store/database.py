"""The database of one run: what every member scored, who inherited from whom, and what happened.

SQLite in write-ahead mode: one process writes while others read. A number that JSON cannot hold is stored as null: an
infinite hyperparameter such as an absent target KL, or a metric that is not finite.
"""

import contextlib
import dataclasses
import json
import math
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.disk import room
from popgraft.errors import StoreError
from popgraft.state import Decision, Record, Scores
from popgraft.store.records import Aftermath, EventRecord, GraftRecord, MemberRecord, MetricsRecord, SessionRecord
from popgraft.store.schema import APPLICATION, SCHEMA, VERSION

LONGEST = 2**24
"""Bytes of a row: what claims to be longer is damaged, and takes no memory."""


def connected(path: Path, read_only: bool = False) -> sqlite3.Connection:
    """Opens a file that exists; with `read_only` it and its log stay as they are."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rw'}", uri=True)
    connection.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, LONGEST)
    return connection


class RunDatabase:
    """The open database of a run; a context manager that closes it.

    Args:
        path: the SQLite file, as made by `create`.
        read_only: whether to leave the file, and its log, as they are.

    Raises:
        StoreError: the file is missing, damaged or foreign. Every method raises it too.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        if not path.is_file():
            raise StoreError(f"the database {path} is missing")
        with self._speaking():
            self._connection = connected(path, read_only)
        try:
            with self._speaking():
                application = self._connection.execute("PRAGMA application_id").fetchone()
                version = self._connection.execute("PRAGMA user_version").fetchone()
                self._connection.execute("PRAGMA foreign_keys = ON")
            if (application, version) != ((APPLICATION,), (VERSION,)):
                raise StoreError(f"{path} was not written by this version of popgraft; give the folder of a run")
        except StoreError:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path) -> None:
        """Makes an empty database, durably. Raises StoreError if it cannot be written."""
        try:
            with contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(SCHEMA)
        except sqlite3.Error as error:
            raise StoreError(f"cannot make the database {path}: {error}{_advice(error, path)}") from None

    @classmethod
    def is_of_another_version(cls, path: Path) -> bool:
        """Whether a file is a sound database that another version of popgraft has written."""
        try:
            with contextlib.closing(connected(path, read_only=True)) as connection:
                (application,) = connection.execute("PRAGMA application_id").fetchone()
                (version,) = connection.execute("PRAGMA user_version").fetchone()
        except sqlite3.Error:
            return False
        return bool(application == APPLICATION and version != VERSION)

    def check(self) -> None:
        """Reads every page.

        Raises:
            StoreError: one of them is damaged.
        """
        with self._speaking():
            (found,) = self._connection.execute("PRAGMA integrity_check(1)").fetchone()
        if found != "ok":
            raise StoreError(f"the database {self.path} is damaged: {found.splitlines()[-1]}")

    def record_generation(
        self,
        generations: int | Int[Tensor, "pop"],
        scores: Scores,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        steps: int | Int[Tensor, "pop"],
        decision: Decision,
        strategies: Mapping[int, str],
        record: Record | None = None,
        members: Int[Tensor, "part"] | None = None,
    ) -> None:
        """Writes a generation and its grafts in one transaction: all of it, or nothing.

        Args:
            generations: number of everybody's latest generation; those of `members` must be new.
            scores: fitness of every member.
            hyperparams: values that it was trained with.
            steps: environment steps taken at every place since the run began.
            decision: who inherited from whom.
            strategies: what became of every recipient's optimizer state.
            record: the best state there ever was, where somebody went back to it.
            members: those that have trained; None: everybody.
        """
        mean, pop = scores.mean.tolist(), len(scores.mean)
        numbers, taken = (torch.as_tensor(each).expand(pop).tolist() for each in (generations, steps))
        before, after = _texts(hyperparams, pop), _texts(decision.hyperparams, pop)
        columns = numbers, range(pop), mean, scores.stderr.tolist(), scores.episodes.tolist(), taken, before
        everyone = list(zip(*columns, strict=True))
        rows = everyone if members is None else [everyone[i] for i in members.tolist()]
        donors = {i: (i, numbers[i], mean[i]) for i in range(pop)}
        if record is not None:
            donors[pop] = (record.place, record.generation, float(record.scores.mean))
        grafts = []
        for i, reason in decision.reasons.items():
            parent, found, score = donors[int(decision.parents[i])]
            grafts.append((numbers[i], i, parent, found, reason, mean[i], score, before[i], after[i], strategies[i]))
        with self._speaking(), self._connection:
            try:
                self._connection.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            except sqlite3.IntegrityError:
                raise StoreError(f"generation {rows[0][0]} is already recorded in {self.path}") from None
            self._connection.executemany(f"INSERT INTO grafts VALUES ({', '.join('?' * 10)}{', NULL' * 6})", grafts)

    def record_metrics(
        self,
        generations: int | Int[Tensor, "pop"],
        metrics: Mapping[str, Float[Tensor, "part"]],
        population: Mapping[str, float],
        members: Int[Tensor, "part"] | None = None,
    ) -> None:
        """Writes what else is known of a generation, with the time of now, beside what others have reported of theirs.

        Args:
            generations: number of everybody's latest generation.
            metrics: of each of those that have trained, by name; six significant digits are kept.
            population: of all members together.
            members: those that have trained; None: everybody.
        """
        numbers = torch.as_tensor(generations)
        if members is None:
            members = torch.arange(max((len(values) for values in metrics.values()), default=1))
            numbers = numbers.expand(len(members))
        pop = len(numbers)
        rows = list(zip(members.tolist(), numbers[members].tolist(), strict=True))
        columns = {name: [_rounded(value) for value in values.tolist()] for name, values in metrics.items()}
        with self._speaking(), self._connection as connection:
            for number in {number for _, number in rows}:
                found = connection.execute("SELECT members, population FROM metrics WHERE generation = ?", (number,))
                own, whole = (json.loads(text) for text in found.fetchone() or ("{}", "{}"))
                for name, values in columns.items():
                    column = own.setdefault(name, [None] * pop)
                    for (member, its), value in zip(rows, values, strict=True):
                        if its == number:
                            column[member] = value
                whole |= {name: _rounded(value) for name, value in population.items()}
                texts = (json.dumps(each, separators=(",", ":")) for each in (own, whole))
                connection.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", (number, time.time(), *texts))

    def record_aftermath(self, generation: int, member: int, aftermath: Aftermath) -> None:
        """Writes what a graft did to its recipient, over what was written of it before."""
        with self._speaking(), self._connection:
            self._write_aftermath(generation, member, aftermath)

    def record_event(self, kind: str, text: str, generation: int | None = None) -> None:
        """Writes an event with the time of now."""
        with self._speaking(), self._connection:
            self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (time.time(), generation, kind, text))

    def record_session(self, config: str, versions: Mapping[str, str]) -> None:
        """Writes that this process trains the run from now on."""
        row = (time.time(), os.getpid(), socket.gethostname(), config, json.dumps(versions))
        with self._speaking(), self._connection:
            self._connection.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", row)

    def rewind(
        self,
        generations: Sequence[int],
        events: int,
        aftermath: Mapping[tuple[int, int], Aftermath],
        kept: Iterable[str],
    ) -> list[str]:
        """Goes back to what had been written before a generation, in one transaction.

        Args:
            generations: the first one to be forgotten, of every member.
            events: what `events_written` was then.
            aftermath: what was known then of the grafts that were still followed, by generation and recipient.
            kept: kinds of events that are never forgotten.

        Returns:
            What the database is found to lack of the generations before; events "damaged" say so too.
        """
        kinds = list(kept)
        with self._speaking(), self._connection as connection:
            lost = self._note_loss(max(generations), events)
            connection.execute("PRAGMA defer_foreign_keys = ON")  # donors of a generation may be ahead of it
            first = [(number, member) for member, number in enumerate(generations)]
            connection.executemany("DELETE FROM grafts WHERE generation >= ? AND member = ?", first)
            connection.executemany("DELETE FROM members WHERE generation >= ? AND member = ?", first)
            self._forget_metrics(generations)
            connection.execute(
                f"DELETE FROM events WHERE rowid > ? AND kind NOT IN ({', '.join('?' * len(kinds))})", (events, *kinds)
            )
            for graft, known in aftermath.items():
                self._write_aftermath(*graft, known)
        return lost

    def sessions(self) -> list[SessionRecord]:
        """Every process that has trained the run, in order."""
        with self._speaking():
            rows = self._connection.execute("SELECT * FROM sessions ORDER BY rowid")
            return [
                SessionRecord(began, process, host, config, json.loads(versions))
                for began, process, host, config, versions in rows
            ]

    def events_written(self) -> int:
        """Number of the latest event."""
        with self._speaking():
            number: int = self._connection.execute("SELECT COALESCE(MAX(rowid), 0) FROM events").fetchone()[0]
            return number

    def generations(self) -> int:
        """How many generations have been recorded."""
        with self._speaking():
            number: int = self._connection.execute("SELECT COUNT(DISTINCT generation) FROM members").fetchone()[0]
            return number

    def scores(self) -> list[MemberRecord]:
        """Every member of every generation, in that order."""
        with self._speaking():
            rows = self._connection.execute("SELECT * FROM members ORDER BY generation, member")
            return [
                MemberRecord(generation, member, _number(score), _number(stderr), episodes, steps, _values(hyperparams))
                for generation, member, score, stderr, episodes, steps, hyperparams in rows
            ]

    def metrics(self) -> list[MetricsRecord]:
        """What else is known of every generation, in order."""
        with self._speaking():
            rows = self._connection.execute("SELECT * FROM metrics ORDER BY generation")
            return [
                MetricsRecord(
                    generation,
                    ended,
                    {name: [_number(value) for value in values] for name, values in json.loads(members).items()},
                    {name: _number(value) for name, value in json.loads(population).items()},
                )
                for generation, ended, members, population in rows
            ]

    def lineage(self) -> list[GraftRecord]:
        """Every graft, by generation and recipient."""
        with self._speaking():
            rows = self._connection.execute("SELECT * FROM grafts ORDER BY generation, member")
            return [
                GraftRecord(
                    generation,
                    member,
                    parent,
                    found,
                    reason,
                    _number(own),
                    _number(donors),
                    _values(before),
                    _values(after),
                    strategy,
                    Aftermath(*(_number(value) for value in aftermath)),
                )
                for generation, member, parent, found, reason, own, donors, before, after, strategy, *aftermath in rows
            ]

    def events(self) -> list[EventRecord]:
        """Every event, in the order of writing."""
        with self._speaking():
            return [EventRecord(*row) for row in self._connection.execute("SELECT * FROM events ORDER BY rowid")]

    @contextlib.contextmanager
    def unchanging(self) -> Iterator[None]:
        """Whatever is read inside is of one moment, though another process may be writing."""
        with self._speaking():
            self._connection.execute("BEGIN")
            try:
                yield
            finally:
                self._connection.rollback()

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> "RunDatabase":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _note_loss(self, generation: int, events: int) -> list[str]:
        """Records once what is not there of what had been written before a generation."""
        texts = []

        def note(text: str, number: int | None) -> None:
            known = self._connection.execute("SELECT 1 FROM events WHERE text = ?", (text,)).fetchone()
            if not known:
                row = (number, time.time(), text)
                self._connection.execute(
                    "INSERT INTO events (rowid, time, generation, kind, text) VALUES (?, ?, NULL, 'damaged', ?)", row
                )
                texts.append(text)

        newest = self.events_written()
        if newest < events:  # this takes the last one's number, by which later ones are told from those before
            note(f"the database {self.path} has lost its events {newest + 1} to {events}", events)
        rows = self._connection.execute("SELECT DISTINCT generation FROM members WHERE generation < ?", (generation,))
        if lost := sorted(set(range(generation)) - {number for (number,) in rows}):
            numbers = ", ".join(str(number) for number in lost)
            note(f"the database {self.path} has lost the scores of generations {numbers}", None)
        return texts

    def _forget_metrics(self, generations: Sequence[int]) -> None:
        """Removes what was reported of every member's generations from a certain one on."""
        connection = self._connection
        connection.execute("DELETE FROM metrics WHERE generation >= ?", (max(generations),))
        some = connection.execute("SELECT generation, members FROM metrics WHERE generation >= ?", (min(generations),))
        for number, text in some.fetchall():
            kept = {
                name: [value if number < first else None for value, first in zip(values, generations, strict=False)]
                for name, values in json.loads(text).items()
            }
            text = json.dumps(kept, separators=(",", ":"))
            connection.execute("UPDATE metrics SET members = ? WHERE generation = ?", (text, number))

    def _write_aftermath(self, generation: int, member: int, aftermath: Aftermath) -> None:
        columns = dataclasses.asdict(aftermath)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self._connection.execute(
            f"UPDATE grafts SET {assignments} WHERE generation = ? AND member = ?",
            (*columns.values(), generation, member),
        )

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turns SQLite's errors, and unreadable cells, into StoreError."""
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"the database {self.path} cannot be used: {error}{_advice(error, self.path)}") from None


def _texts(hyperparams: Mapping[str, Tensor], pop: int) -> list[str]:
    """JSON of every member's values."""
    columns = {name: values.tolist() for name, values in hyperparams.items()}
    return [
        json.dumps({name: column[i] if math.isfinite(column[i]) else None for name, column in columns.items()})
        for i in range(pop)
    ]


def _values(text: str) -> dict[str, float]:
    """Inverse of `_texts` for one member."""
    return {name: math.inf if value is None else value for name, value in json.loads(text).items()}


def _rounded(value: float) -> float | None:
    """Six significant digits, as SQLite and JSON can hold them."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _advice(error: Exception, path: Path) -> str:
    """What to do where the disk, rather than the file, is to blame."""
    codes = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
    of_the_disk = getattr(error, "sqlite_errorcode", 0) & 0xFF in codes
    return f"; {room(path)}: make room, or see that the folder can be written" if of_the_disk else ""


def _number(value: float | None) -> float:
    """SQLite keeps NaN as NULL."""
    return math.nan if value is None else value
