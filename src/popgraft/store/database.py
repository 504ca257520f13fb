"""The database of one run: what every member scored, who inherited from whom, and what happened.

SQLite in write-ahead mode: one process writes while others read. A number that JSON cannot hold, an infinite
hyperparameter such as an absent target KL, is stored as null.
"""

import contextlib
import dataclasses
import json
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

from popgraft.errors import StoreError
from popgraft.state import Decision, Record, Scores

APPLICATION = 0x706F7067  # "popg" in the file's header tells a run from other databases
VERSION = 2

SCHEMA = f"""
BEGIN;
CREATE TABLE members (
    generation INTEGER NOT NULL,
    member INTEGER NOT NULL,
    score REAL,
    stderr REAL,
    episodes INTEGER NOT NULL,
    steps INTEGER NOT NULL,
    hyperparams TEXT NOT NULL,
    PRIMARY KEY (generation, member)
);
CREATE TABLE grafts (
    generation INTEGER NOT NULL,
    member INTEGER NOT NULL,
    parent INTEGER NOT NULL CHECK (parent != member OR parent_generation < generation),
    parent_generation INTEGER NOT NULL,
    reason TEXT NOT NULL,
    score_before REAL,
    parent_score REAL,
    hyperparams_before TEXT NOT NULL,
    hyperparams_after TEXT NOT NULL,
    strategy TEXT NOT NULL,
    value_loss_ratio REAL,
    momentum_cosine REAL,
    return_before REAL,
    return_1 REAL,
    return_5 REAL,
    return_10 REAL,
    PRIMARY KEY (generation, member),
    FOREIGN KEY (generation, member) REFERENCES members,
    FOREIGN KEY (generation, parent) REFERENCES members
);
CREATE TABLE events (
    time REAL NOT NULL,
    generation INTEGER,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""


@dataclasses.dataclass(frozen=True)
class MemberRecord:
    """One member in one generation.

    Attributes:
        generation: number of the generation.
        member: index in the population.
        score: fitness; NaN if it could not be scored.
        stderr: standard error of the score.
        episodes: episodes that the score was taken over.
        steps: environment steps taken at this place since the run began.
        hyperparams: values that the generation was trained with.
    """

    generation: int
    member: int
    score: float
    stderr: float
    episodes: int
    steps: int
    hyperparams: dict[str, float]


@dataclasses.dataclass(frozen=True)
class GraftRecord:
    """One member that was overwritten with another after a generation.

    Attributes:
        generation: number of the generation that was scored.
        member: the recipient.
        parent: the donor.
        parent_generation: when the donor was what it was; earlier than `generation` where the recipient went back to
            the best state there ever was.
        reason: the exploit method, or "rescue".
        score_before: the recipient's score.
        parent_score: the donor's score.
        hyperparams_before: values that the recipient was trained with.
        hyperparams_after: values that it goes on with.
        strategy: what became of the optimizer state: "copy", "reset" or "partial".
        aftermath: what was seen afterwards; NaN where nothing was.
    """

    generation: int
    member: int
    parent: int
    parent_generation: int
    reason: str
    score_before: float
    parent_score: float
    hyperparams_before: dict[str, float]
    hyperparams_after: dict[str, float]
    strategy: str
    aftermath: "Aftermath"


@dataclasses.dataclass(frozen=True)
class Aftermath:
    """What a graft did to its recipient. A return is the mean of the training episodes that ended in one update.

    Attributes:
        value_loss_ratio: value loss in the recipient's first update, divided by its donor's in the same update.
        momentum_cosine: cosine between the momentum and the first gradient of that update.
        return_before: the recipient's latest return before.
        return_1: its return in the first update after.
        return_5: in the fifth.
        return_10: in the tenth.
    """

    value_loss_ratio: float = math.nan
    momentum_cosine: float = math.nan
    return_before: float = math.nan
    return_1: float = math.nan
    return_5: float = math.nan
    return_10: float = math.nan


@dataclasses.dataclass(frozen=True)
class EventRecord:
    """Something that happened.

    Attributes:
        time: seconds since 1970.
        generation: number of the generation in progress; None outside of training.
        kind: one word, for filtering.
        text: a sentence.
    """

    time: float
    generation: int | None
    kind: str
    text: str


class RunDatabase:
    """The open database of a run; a context manager that closes it.

    Args:
        path: the SQLite file, as made by `create`.

    Raises:
        StoreError: the file is missing, damaged or foreign. Every method raises it too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise StoreError(f"{path} is missing; give the folder of a run")
        with self._speaking():
            self._connection = sqlite3.connect(path)
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
            raise StoreError(f"cannot make the database {path}: {error}") from None

    def record_generation(
        self,
        generation: int,
        scores: Scores,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        steps: int,
        decision: Decision,
        strategies: Mapping[int, str],
        record: Record | None = None,
    ) -> None:
        """Writes a generation and its grafts in one transaction: all of it, or nothing.

        Args:
            generation: its number, which must be new.
            scores: fitness of every member.
            hyperparams: values that it was trained with.
            steps: environment steps of one member since the run began.
            decision: who inherited from whom.
            strategies: what became of every recipient's optimizer state.
            record: the best state there ever was, where somebody went back to it.
        """
        mean = scores.mean.tolist()
        before, after = _texts(hyperparams, len(mean)), _texts(decision.hyperparams, len(mean))
        columns = zip(mean, scores.stderr.tolist(), scores.episodes.tolist(), before, strict=True)
        members = [(generation, i, score, err, n, steps, values) for i, (score, err, n, values) in enumerate(columns)]
        donors = {i: (i, generation, mean[i]) for i in range(len(mean))}
        if record is not None:
            donors[len(mean)] = (record.place, record.generation, float(record.scores.mean))
        grafts = []
        for i, reason in decision.reasons.items():
            parent, found, score = donors[int(decision.parents[i])]
            grafts.append((generation, i, parent, found, reason, mean[i], score, before[i], after[i], strategies[i]))
        with self._speaking(), self._connection:
            try:
                self._connection.executemany("INSERT INTO members VALUES (?, ?, ?, ?, ?, ?, ?)", members)
            except sqlite3.IntegrityError:
                raise StoreError(f"generation {generation} is already recorded in {self.path}") from None
            self._connection.executemany(f"INSERT INTO grafts VALUES ({', '.join('?' * 10)}{', NULL' * 6})", grafts)

    def record_aftermath(self, generation: int, member: int, aftermath: Aftermath) -> None:
        """Writes what a graft did to its recipient, over what was written of it before."""
        columns = dataclasses.asdict(aftermath)
        assignments = ", ".join(f"{name} = ?" for name in columns)
        with self._speaking(), self._connection:
            self._connection.execute(
                f"UPDATE grafts SET {assignments} WHERE generation = ? AND member = ?",
                (*columns.values(), generation, member),
            )

    def record_event(self, kind: str, text: str, generation: int | None = None) -> None:
        """Writes an event with the time of now."""
        with self._speaking(), self._connection:
            self._connection.execute("INSERT INTO events VALUES (?, ?, ?, ?)", (time.time(), generation, kind, text))

    def scores(self) -> list[MemberRecord]:
        """Every member of every generation, in that order."""
        with self._speaking():
            rows = self._connection.execute("SELECT * FROM members ORDER BY generation, member")
            return [
                MemberRecord(generation, member, _number(score), _number(stderr), episodes, steps, _values(hyperparams))
                for generation, member, score, stderr, episodes, steps, hyperparams in rows
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

    def close(self) -> None:
        """Closes the file."""
        self._connection.close()

    def __enter__(self) -> "RunDatabase":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextlib.contextmanager
    def _speaking(self) -> Iterator[None]:
        """Turns SQLite's errors, and unreadable cells, into StoreError."""
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            raise StoreError(f"the database {self.path} cannot be used: {error}") from None


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


def _number(value: float | None) -> float:
    """SQLite keeps NaN as NULL."""
    return math.nan if value is None else value
