"""The database of one run: what every member scored, who inherited from whom, and what happened.

SQLite in write-ahead mode: one process writes while others read. A number that JSON cannot hold is stored as null: an
infinite hyperparameter such as an absent target KL, or a metric that is not finite.
"""

import contextlib
import dataclasses
import functools
import json
import math
import os
import socket
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.errors import Damaged, StoreError
from popgraft.state import Decision, Record, Scores
from popgraft.store import connection as connections
from popgraft.store.connection import in_words
from popgraft.store.integrity import COLUMNS, can_seal, check_tables, found, prune, rows, seal
from popgraft.store.records import (
    AdoptionRecord,
    Aftermath,
    EventRecord,
    GraftRecord,
    MemberRecord,
    MetricsRecord,
    SessionRecord,
)
from popgraft.store.schema import APPLICATION, LATER, SCHEMA, VERSION

AFTERMATH = len(dataclasses.fields(Aftermath))
LONGEST_TEXT = 10_000
"""Characters of an event that are kept: an environment's error may bring any number."""


class RunDatabase:
    """The open database of a run; a context manager that closes it.

    Args:
        path: the SQLite file, as made by `create`.
        read_only: whether to leave the file, its log and its folder as they are.

    Raises:
        Damaged: the file is missing, damaged or foreign. Every method raises it too.
        StoreError: it is held by another process, or the machine does not let it be used. Likewise.
    """

    def __init__(self, path: Path, read_only: bool = False) -> None:
        self.path = path
        connections.check_file(path)
        with in_words(path):
            self._connection = (connections.reader if read_only else connections.writer)(path)
        try:
            with in_words(path):
                (application,) = self._connection.execute("PRAGMA application_id").fetchone()
                (version,) = self._connection.execute("PRAGMA user_version").fetchone()
                if (application, version) != (APPLICATION, VERSION):
                    kind = Damaged if application != APPLICATION else StoreError
                    raise kind(f"{path} was not written by this version of popgraft; give the folder of a run")
                check_tables(self._connection)
                self._most = connections.size(path) if read_only else None
                if not read_only:
                    self._prepare()
        except BaseException:
            self.close()
            raise

    @classmethod
    def create(cls, path: Path) -> None:
        """Makes an empty database, durably. Raises StoreError if it cannot be written."""
        try:
            with in_words(path), contextlib.closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.executescript(";".join((SCHEMA, *LATER.values())))
        except StoreError as error:
            raise StoreError(f"cannot make the database {path}: {error}") from None

    def _prepare(self) -> None:
        """Makes the connection ready to write."""
        self._connection.execute("PRAGMA foreign_keys = ON")
        can_seal(self._connection)
        for text in LATER.values():
            self._connection.execute(text)

    @functools.cached_property
    def _epoch(self) -> float:
        """What is added to the system's monotonic clock."""
        latest = self._connection.execute(
            "SELECT MAX(time) FROM (SELECT time FROM sessions UNION ALL SELECT time FROM metrics UNION ALL "
            "SELECT time FROM events)"
        ).fetchone()[0]
        return max(time.time(), latest or 0.0) - time.monotonic()

    def _now(self) -> float:
        """Seconds since 1970, and never before what was written earlier, though somebody sets the clock."""
        return self._epoch + time.monotonic()

    def check(self) -> None:
        """Reads every page and every row.

        Raises:
            Damaged: one of them is damaged.
        """
        with in_words(self.path):
            text = self._connection.execute("PRAGMA integrity_check(1)").fetchone()[0].decode(errors="replace")
            if text != "ok":
                raise ValueError(text.splitlines()[-1])
            for table in COLUMNS:
                for number, _, values in found(self._connection, table, "rowid", self._most):
                    if isinstance(values, str):
                        raise ValueError(f"it holds rows that mean nothing: {values} (row {number} of {table})")

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
        own = everyone if members is None else [everyone[i] for i in members.tolist()]
        donors = {i: (i, numbers[i], mean[i]) for i in range(pop)}
        if record is not None:
            donors[pop] = (record.place, record.generation, float(record.scores.mean))
        grafts = []
        for i, reason in decision.reasons.items():
            parent, when, score = donors[int(decision.parents[i])]
            grafts.append((numbers[i], i, parent, when, reason, mean[i], score, before[i], after[i], strategies[i]))
        other = (decision.hyperparameter_donors != decision.parents).nonzero().flatten().tolist()
        adoptions = [(numbers[i], i, *donors[int(decision.hyperparameter_donors[i])][:2]) for i in other]
        with self._writing() as connection:
            try:
                connection.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", own)
            except sqlite3.IntegrityError:
                raise StoreError(f"generation {own[0][0]} is already recorded in {self.path}") from None
            connection.executemany(f"INSERT INTO grafts VALUES ({', '.join('?' * 10)}{', NULL' * 6})", grafts)
            connection.executemany("INSERT INTO adoptions VALUES (?, ?, ?, ?)", adoptions)
            for table, each in (("members", own), ("grafts", grafts), ("adoptions", adoptions)):
                for generation, member, *_ in each:
                    seal(connection, table, "generation = ? AND member = ?", generation, member)

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
        parts = list(zip(members.tolist(), numbers[members].tolist(), strict=True))
        columns = {name: [_rounded(value) for value in values.tolist()] for name, values in metrics.items()}
        with self._writing() as connection:
            for number in {number for _, number in parts}:
                query = "SELECT members, population FROM metrics WHERE generation = ?"
                before = connection.execute(query, (number,)).fetchone() or ("{}", "{}")
                own, whole = (json.loads(text) for text in before)
                for name, values in columns.items():
                    column = own.setdefault(name, [None] * pop)
                    for (member, its), value in zip(parts, values, strict=True):
                        if its == number:
                            column[member] = value
                whole |= {name: _rounded(value) for name, value in population.items()}
                texts = (json.dumps(each, separators=(",", ":")) for each in (own, whole))
                connection.execute("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?)", (number, self._now(), *texts))
                seal(connection, "metrics", "generation = ?", number)

    def record_aftermath(self, generation: int, member: int, aftermath: Aftermath) -> None:
        """Writes what a graft did to its recipient, over what was written of it before."""
        with self._writing():
            self._write_aftermath(generation, member, aftermath)

    def record_event(self, kind: str, text: str, generation: int | None = None) -> None:
        """Writes an event with the time of now."""
        with self._writing():
            self._write_event(kind, text, generation)

    def record_session(self, config: str, versions: Mapping[str, str]) -> None:
        """Writes that this process trains the run from now on."""
        row = (self._now(), os.getpid(), socket.gethostname(), config, json.dumps(versions))
        with self._writing() as connection:
            number = connection.execute("INSERT INTO sessions VALUES (?, ?, ?, ?, ?)", row).lastrowid
            seal(connection, "sessions", "rowid = ?", number)

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
        with self._writing() as connection:
            lost = self._note_loss(max(generations), events)
            connection.execute("PRAGMA defer_foreign_keys = ON")  # donors of a generation may be ahead of it
            first = [(number, member) for member, number in enumerate(generations)]
            for table in ("grafts", "adoptions", "members"):
                connection.executemany(f"DELETE FROM {table} WHERE generation >= ? AND member = ?", first)
            self._forget_metrics(generations)
            connection.execute(
                f"DELETE FROM events WHERE rowid > ? AND kind NOT IN ({', '.join('?' * len(kinds))})", (events, *kinds)
            )
            for graft, known in aftermath.items():
                self._write_aftermath(*graft, known)
            prune(connection)
        return lost

    def sessions(self) -> list[SessionRecord]:
        """Every process that has trained the run, in order."""
        return [SessionRecord(*values) for values in self._rows("sessions", "rowid")]

    def events_written(self) -> int:
        """Number of the latest event."""
        return self._counted("SELECT COALESCE(MAX(rowid), 0) FROM events")

    def generations(self) -> int:
        """How many generations have been recorded."""
        return self._counted("SELECT COUNT(DISTINCT generation) FROM members")

    def scores(self) -> list[MemberRecord]:
        """Every member of every generation, in that order."""
        return [MemberRecord(*values) for values in self._rows("members", "generation, member")]

    def metrics(self) -> list[MetricsRecord]:
        """What else is known of every generation, in order."""
        return [MetricsRecord(*values) for values in self._rows("metrics", "generation")]

    def lineage(self) -> list[GraftRecord]:
        """Every graft, by generation and recipient."""
        rows = self._rows("grafts", "generation, member")
        return [GraftRecord(*(*values[:-AFTERMATH], Aftermath(*values[-AFTERMATH:]))) for values in rows]

    def adoptions(self) -> list[AdoptionRecord]:
        """Everybody who took other hyperparameters than those of whose weights it has, by generation and member."""
        return [AdoptionRecord(*values) for values in self._rows("adoptions", "generation, member")]

    def events(self) -> list[EventRecord]:
        """Every event, in the order of writing."""
        return [EventRecord(*values) for values in self._rows("events", "rowid")]

    @contextlib.contextmanager
    def unchanging(self) -> Iterator[None]:
        """Whatever is read inside is of one moment, though another process may be writing."""
        with in_words(self.path):
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
                self._write_event("damaged", text, None, number)
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
            seal(connection, "metrics", "generation = ?", number)

    def _write_aftermath(self, generation: int, member: int, aftermath: Aftermath) -> None:
        columns = dataclasses.asdict(aftermath)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        self._connection.execute(
            f"UPDATE grafts SET {assignments} WHERE generation = ? AND member = ?",
            (*columns.values(), generation, member),
        )
        seal(self._connection, "grafts", "generation = ? AND member = ?", generation, member)

    def _write_event(self, kind: str, text: str, generation: int | None, number: int | None = None) -> None:
        text = text[:LONGEST_TEXT].encode(errors="backslashreplace").decode()
        row = (number, self._now(), generation, kind, text)
        query = "INSERT INTO events (rowid, time, generation, kind, text) VALUES (?, ?, ?, ?, ?)"
        seal(self._connection, "events", "rowid = ?", self._connection.execute(query, row).lastrowid)

    def _rows(self, table: str, order: str) -> Iterator[tuple[Any, ...]]:
        with in_words(self.path):
            for _, _, values in rows(self._connection, table, order, self._most):
                yield values

    def _counted(self, query: str) -> int:
        with in_words(self.path):
            (number,) = self._connection.execute(query).fetchone()
            return int(number)

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all that is done in it is written, or nothing. Waits for others that hold the database.

        SQLite goes on writing to a file that has been deleted, so this looks whether it is still there.
        """
        if not self.path.exists():
            raise StoreError(f"the database {self.path} is gone: it has been deleted or moved meanwhile")
        with in_words(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                raise


def _texts(hyperparams: Mapping[str, Tensor], pop: int) -> list[str]:
    """JSON of every member's values."""
    columns = {name: values.tolist() for name, values in hyperparams.items()}
    return [
        json.dumps({name: column[i] if math.isfinite(column[i]) else None for name, column in columns.items()})
        for i in range(pop)
    ]


def _rounded(value: float) -> float | None:
    """Six significant digits, as SQLite and JSON can hold them."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
