"""What a run has left in its folder, as arrays over generations and members."""

import bisect
import dataclasses
import itertools
import json
import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from popgraft.config import Config
from popgraft.disk import read_file
from popgraft.errors import Damaged, StoreError
from popgraft.hyperparams import HyperparamConfig
from popgraft.store import EventRecord, GraftRecord, RunDatabase, SessionRecord
from popgraft.store.boundary import reading
from popgraft.train.replay import FILE, FOLDER
from popgraft.train.run import Run, State

Array = np.ndarray
RETURN = "ep_rew_mean"
"""The metric of episodes that ended in training."""
LEARNING = {
    "vgs/scaling_factor": "factor of the variance gradient scaler",
    "entropy_loss": "entropy of the policy, nats",
    "approx_kl": "KL divergence of an update, nats",
    "explained_variance": "explained variance of the critic",
    "value_loss": "loss of the critic",
}
"""What is shown of learning, where it was recorded."""

DISTANCES = {
    "member_distance": "between two members' parameters, root mean square",
    "optimizer_distance": "between two members' momenta, relative to their size",
}

Limits = tuple[float, float]
"""The least and the highest of some scores."""

Ancestors = list[tuple[int, int]]
"""Row and member of every state in a line of descent, oldest first."""


@dataclasses.dataclass(frozen=True)
class RunData:
    """A run as it was at one moment. Rows are generations in order; what was not recorded is NaN.

    Members may have come to different generations; those that are behind, or have ended, are missing in the last rows.

    Attributes:
        path: the run folder.
        state: `running`, `finished` or `stopped`.
        config: every setting.
        settings: the same as text.
        generations: number of every row.
        taken: environment steps taken at every place since the run began; NaN in a generation that it has not ended.
        scores: fitness.
        stderr: its standard error.
        hyperparams: values that every generation was trained with.
        metrics: means over a generation's updates of what each of them reported.
        population: what is known of all members together.
        grafts: every graft, by generation and recipient.
        events: what happened besides, in order.
        sessions: processes that have trained the run.
        ended: when every generation ended; seconds since 1970.
        found: the best agent: where and when it was found, its score, and its final evaluation if there was one; empty
            before the first score.
        replay: what `popgraft replay` has found out, see `Replay.summary`; empty where nobody has asked.
    """

    path: Path
    state: State
    config: Config
    settings: str
    generations: Int[Array, "row"]
    taken: Float[Array, "row pop"]
    scores: Float[Array, "row pop"]
    stderr: Float[Array, "row pop"]
    hyperparams: dict[str, Float[Array, "row pop"]]
    metrics: dict[str, Float[Array, "row pop"]]
    population: dict[str, Float[Array, "row"]]
    grafts: list[GraftRecord]
    events: list[EventRecord]
    sessions: list[SessionRecord]
    ended: Float[Array, "row"]
    found: dict[str, Any]
    replay: dict[str, Any]

    def __post_init__(self) -> None:
        """Nobody who looks at it changes what others see."""
        for value in vars(self).values():
            for array in value.values() if isinstance(value, dict) else [value]:
                if isinstance(array, Array):
                    array.flags.writeable = False

    @property
    def pop(self) -> int:
        """Members of the population."""
        return int(self.scores.shape[1])

    @property
    def maximizes(self) -> bool:
        """Whether high scores are good."""
        return self.config.pbt.metric_mode == "max"

    @property
    def spaces(self) -> list[HyperparamConfig]:
        """The hyperparameters that the population explores."""
        return list(self.config.pbt.hyperparams)

    @cached_property
    def recorded(self) -> Bool[Array, "row pop"]:
        """Who has come to the end of which generation."""
        return np.asarray(np.isfinite(self.taken))

    @cached_property
    def left(self) -> Bool[Array, "row pop"]:
        """Who trains in which generation: everybody, but for those that have ended before it."""
        return self.recorded if self.config.pbt.population_schedule else np.ones_like(self.recorded)

    @property
    def members(self) -> Int[Array, "left"]:
        """Those who have not ended."""
        return np.flatnonzero(self.left[-1]) if len(self.left) else np.arange(self.pop)

    @cached_property
    def steps(self) -> Int[Array, "row"]:
        """Environment steps of all members together when everybody has come to the end of a generation."""
        known = np.where(self.recorded, self.taken, 0)
        together, before = known.max(1, keepdims=True, initial=0), np.maximum.accumulate(known)
        return np.asarray(np.where(self.left, together, before).sum(1), dtype=np.int64)

    @property
    def total(self) -> int:
        """Environment steps that all members together have taken."""
        return int(np.where(self.recorded, self.taken, 0).max(0, initial=0).sum())

    @cached_property
    def latest(self) -> Int[Array, "pop"]:
        """The last row of every member; 0 where it has none."""
        rows = np.arange(len(self.taken))[:, None]
        return np.asarray(np.where(self.recorded, rows, 0).max(0, initial=0))

    @property
    def apart(self) -> bool:
        """Whether members have come to different generations."""
        return len(set(self.latest.tolist())) > 1

    @property
    def last_scores(self) -> Float[Array, "pop"]:
        """Score of every member in its last generation."""
        return np.asarray(self.scores[self.latest, np.arange(self.pop)])

    @property
    def cuts(self) -> list[tuple[int, list[int]]]:
        """Rows after which the population became smaller, and the members that ended there."""
        gone = self.left[:-1] & ~self.left[1:]
        return [(row, np.flatnonzero(gone[row]).tolist()) for row in np.flatnonzero(gone.any(1)).tolist()]

    @property
    def limits(self) -> Limits | None:
        """The least and the highest score that is known, with the best agent's interval; None where none is."""
        final, stderr = (self.found.get(f"final_{name}", math.nan) for name in ("score", "stderr"))
        values = np.append(self.scores, [final, final - stderr, final + stderr])
        known = values[np.isfinite(values)]
        return (float(known.min()), float(known.max())) if len(known) else None

    @cached_property
    def best(self) -> Float[Array, "row"]:
        """The best score of every generation; NaN where nobody has one."""
        return np.take_along_axis(self.scores, self.leaders[:, None], axis=1)[:, 0]

    @cached_property
    def leaders(self) -> Int[Array, "row"]:
        """The member with the best score of every generation; 0 where nobody has one."""
        ranked = np.where(np.isfinite(self.scores), self.scores if self.maximizes else -self.scores, -math.inf)
        return np.asarray(ranked.argmax(1))

    @cached_property
    def quartiles(self) -> Float[Array, "3 row"]:
        """Lower quartile, median and upper quartile of every generation's scores."""
        return quartiles(self.scores)

    @cached_property
    def donors(self) -> dict[tuple[int, int], tuple[int, int]]:
        """For every graft, by row and recipient after which it happened: row and member that it copied.

        The donor may have been ahead of the recipient, or behind.
        """
        row = {generation: i for i, generation in enumerate(self.generations.tolist())}
        return {
            (row[graft.generation], graft.member): (row[graft.parent_generation], graft.parent)
            for graft in self.grafts
            if graft.generation in row and graft.parent_generation in row
        }

    @cached_property
    def ancestors(self) -> Ancestors:
        """The line of descent of the best agent."""
        rows = np.flatnonzero(self.generations == self.found.get("generation", -1))
        if not len(rows):
            return []
        row, member = place = int(rows[0]), int(self.found["member"])
        line = {place: None}  # in order; a database that was tampered with may lead back to where it came from
        while row > 0:
            row, member = place = self.donors.get((row - 1, member), (row - 1, member))
            if place in line:
                break
            line[place] = None
        return list(line)[::-1]

    @property
    def seconds(self) -> float:
        """Time spent on training, over all processes that took part; NaN where it is not known."""
        times = [time for time in (*self.ended, *(event.time for event in self.events)) if math.isfinite(time)]
        begins = [session.time for session in self.sessions]
        return sum(_spans(begins, times)) if begins else math.nan


def read(path: str | Path | Run) -> RunData:
    """Reads a run folder, which may be in use; nothing in it is changed.

    Args:
        path: the folder, or a run whose configuration may have been read already.

    Raises:
        StoreError: there is no run, or its database is damaged.
        ConfigError: its configuration is damaged.
    """
    run = path if isinstance(path, Run) else Run(path)
    with reading(run.path):
        return _read(run)


def _read(run: Run) -> RunData:
    config = run.config
    with RunDatabase(run.folder.database, read_only=True) as database, database.unchanging():
        members, recorded = database.scores(), database.metrics()
        grafts, events, sessions = database.lineage(), database.events(), database.sessions()
    try:
        found = run.summary
    except Damaged:
        raise
    except StoreError:  # no generation has been scored
        found = {}
    generations = sorted({record.generation for record in members})
    rows = {generation: row for row, generation in enumerate(generations)}
    ended = np.full(len(rows), math.nan)
    taken, scores, stderr = np.full((3, len(rows), config.pbt.population_size), math.nan)
    hyperparams: dict[str, Array] = {}
    for record in members:
        place = rows[record.generation], record.member
        taken[place], scores[place], stderr[place] = record.steps, record.score, record.stderr
        _enter(hyperparams, place, record.hyperparams, scores.shape)
    metrics: dict[str, Array] = {}
    population: dict[str, Array] = {}
    for row, each in ((rows[each.generation], each) for each in recorded if each.generation in rows):
        ended[row] = each.time
        _enter(metrics, row, each.members, scores.shape)
        _enter(population, row, each.population, ended.shape)
    return RunData(
        path=run.path,
        state=run.state,
        config=config,
        settings=read_file(run.folder.config).decode(),
        generations=np.array(generations, dtype=np.int64),
        taken=taken,
        scores=scores,
        stderr=stderr,
        hyperparams=hyperparams,
        metrics=metrics,
        population=population,
        grafts=grafts,
        events=events,
        sessions=sessions,
        ended=ended,
        found=found,
        replay=_replay(run.path / FOLDER / FILE),
    )


def elapsed(begins: Sequence[float], written: Sequence[float], moments: Sequence[float]) -> list[float]:
    """Seconds for which a run had been training at some moments.

    Args:
        begins: when processes began to train it, in order.
        written: when something was written: a process has trained until the last time before another one began.
        moments: times like these.
    """
    places, spans = _sessions(begins, moments), _spans(begins, written)
    before = list(itertools.accumulate(spans, initial=0.0))
    return [before[i] + max(0.0, moment - begins[i]) for i, moment in zip(places, moments, strict=True)]


def _spans(begins: Sequence[float], written: Sequence[float]) -> list[float]:
    """For how long every process has trained."""
    spans = [0.0] * len(begins)
    for i, time in zip(_sessions(begins, written), written, strict=True):
        spans[i] = max(spans[i], time - begins[i])
    return spans


def _sessions(begins: Sequence[float], moments: Sequence[float]) -> list[int]:
    """In which session moments were; the clock may have been set back from one to the next."""
    order = sorted(range(len(begins)), key=begins.__getitem__)
    starts = [begins[i] for i in order]
    return [order[max(bisect.bisect_right(starts, moment) - 1, 0)] for moment in moments]


def quartiles(values: Float[Array, "row pop"]) -> Float[Array, "3 row"]:
    """Lower quartile, median and upper quartile over the members."""
    known = np.isfinite(values)
    ordered = np.sort(np.where(known, values, math.nan), axis=1)  # what is unknown comes last
    rows, last = np.arange(len(values)), np.maximum(known.sum(1) - 1, 0)
    places = np.array([[0.25], [0.5], [0.75]]) * last
    below = places.astype(np.int64)
    low, high = ordered[rows, below], ordered[rows, np.minimum(below + 1, last)]
    return np.asarray(low + (places - below) * (high - low))


def _replay(file: Path) -> dict[str, Any]:
    """What a replay has left; empty where there is none, or none that can be read."""
    try:
        found = json.loads(read_file(file))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and {"verdict", "gain", "arms", "population"} <= found.keys() else {}


def _enter(table: dict[str, Array], place: Any, values: Mapping[str, Any], shape: tuple[int, ...]) -> None:
    """Writes what one record says, by name, at its place in the tables."""
    for name, value in values.items():
        if name not in table:
            table[name] = np.full(shape, math.nan)
        table[name][place] = value
