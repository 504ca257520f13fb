"""A run on disk, seen from Python."""

import contextlib
import math
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch

from popgraft import tree
from popgraft.config import Config, load_config
from popgraft.errors import ConfigError, StoreError
from popgraft.names import searched
from popgraft.rollout.make import make_grid
from popgraft.store import (
    AdoptionRecord,
    Aftermath,
    EventRecord,
    GraftRecord,
    MemberRecord,
    RunDatabase,
    RunFolder,
    snapshot,
)
from popgraft.store.boundary import reading
from popgraft.store.lock import holder
from popgraft.train.aftermath import summary
from popgraft.train.agent import Agent, empty_member
from popgraft.train.observer import counted
from popgraft.train.place import Place
from popgraft.train.plausible import Found, Last, checked, members_of

BEST = "best"
"""Snapshot of the best member there ever was: a population of one."""
LAST = "last"
"""Snapshot of the whole population as the run left it."""

State = Literal["running", "finished", "stopped"]


class Run:
    """Everything that a run has left in its folder.

    Args:
        path: the run folder.
        factory: makes environments, for a run that was given one in Python.

    Attributes:
        path: the run folder, as it was given.
        folder: where its files lie.

    Raises:
        StoreError: there is no run at `path`.
    """

    def __init__(self, path: str | Path, factory: Callable[..., Any] | None = None) -> None:
        self.folder, self.factory = RunFolder.open(path), factory
        self.path = self.folder.path

    @classmethod
    def at(cls, place: Place, factory: Callable[..., Any] | None) -> "Run":
        """A run that is found wherever the working folder is."""
        run = cls(place.folder.path, factory)
        run.path = place.given
        return run

    @cached_property
    def config(self) -> Config:
        """Every setting of the run."""
        return load_config(self.folder.config)

    @property
    def state(self) -> State:
        """`running` in some process, `finished`, or `stopped` before that, which `resume` can change."""
        if holder(self.folder):
            return "running"
        return "finished" if self.is_finished else "stopped"

    @property
    def is_finished(self) -> bool:
        """Whether training has come to its end, the last evaluation included."""
        try:
            return bool(snapshot.verified(self.folder, LAST).get("finished"))
        except StoreError:  # none yet, or none that is whole
            return False

    @property
    def evaluation_steps(self) -> int:
        """Environment steps beside those of training: of evaluations, and of contests for the place of the best agent.

        Raises:
            StoreError: its training has not ended.
        """
        return int(snapshot.verified(self.folder, LAST).get("evaluation_steps", 0))

    @property
    def generations(self) -> int:
        """How many generations have been scored."""
        with RunDatabase(self.folder.database) as database:
            return database.generations()

    @property
    def scores(self) -> list[MemberRecord]:
        """Score and hyperparameters of every member in every generation."""
        with RunDatabase(self.folder.database) as database:
            return database.scores()

    @property
    def lineage(self) -> list[GraftRecord]:
        """Every graft: who inherited from whom, when, why, and what changed."""
        with RunDatabase(self.folder.database) as database:
            return database.lineage()

    @property
    def adoptions(self) -> list[AdoptionRecord]:
        """Everybody who went on with other hyperparameters than those of whose weights it has, and whose they were."""
        with RunDatabase(self.folder.database) as database:
            return database.adoptions()

    @property
    def events(self) -> list[EventRecord]:
        """What happened besides, in order."""
        with RunDatabase(self.folder.database) as database:
            return database.events()

    @property
    def aftermath(self) -> dict[str, dict[str, float]]:
        """What grafts did to their recipients, by optimizer strategy.

        For each strategy: `grafts`, their number; `value_loss_ratio` and `momentum_cosine`, averages; `success_1`,
        `success_5`, `success_10`, the share whose return so many updates later was at least that before (with
        `metric_mode: min` at most). NaN where nothing was seen.
        """
        found: dict[str, list[Aftermath]] = {}
        for graft in self.lineage:
            found.setdefault(graft.strategy, []).append(graft.aftermath)
        return {strategy: summary(seen, self.config.pbt.metric_mode) for strategy, seen in found.items()}

    @cached_property
    def best(self) -> Agent:
        """The best agent, ready to use.

        Raises:
            StoreError: no member has had a score yet.
        """
        return self.agent(BEST)

    @property
    def members(self) -> list[int]:
        """Numbers of the members of the population as the run left it: all but those that ended before it did.

        Raises:
            StoreError: training has not ended.
        """
        if LAST not in snapshot.names(self.folder):
            raise StoreError(
                f"{self.path} has no snapshot of its population, because its training has not ended; give {BEST!r}, or "
                f"run: popgraft resume {self.path}"
            )
        place = self.folder.snapshots / LAST
        metadata = checked(Last, snapshot.verified(self.folder, LAST), place)
        return members_of(metadata, self.config.pbt.population_size)

    def agent(self, member: int | str) -> Agent:
        """An agent of the run, ready to use.

        Args:
            member: "best", or the number of a member of the population as the run left it.

        Raises:
            ConfigError: there is no such member, or it has ended before the run did.
            StoreError: no member has had a score yet, or training has not ended.
        """
        numbers = {str(i): i for i in range(self.config.pbt.population_size)}
        if str(member) not in {BEST, *numbers}:
            raise ConfigError(
                f"{self.path} has no member {member!r}; give {BEST!r}, or a number up to {len(numbers) - 1}"
            )
        left = [] if member == BEST else self.members
        if member == BEST:
            self._check_scored()
        elif numbers[str(member)] not in left:
            raise ConfigError(
                f"member {member} of {self.path} has ended before the run did, by pbt.population_schedule; give "
                f"{', '.join(map(str, left))} or {BEST!r}"
            )
        with searched(self.config.code_dir):
            grid = make_grid(self.config.env, 1, 1, self.factory)
            spaces = grid.spaces
            grid.close()
            one = empty_member(self.config, spaces)
            with reading(self.path):
                if member == BEST:
                    state, _ = snapshot.load(self.folder, BEST, one)
                else:
                    population, _ = snapshot.load(self.folder, LAST, tree.repeat(one, len(left)))
                    state = tree.gather(population, torch.tensor([left.index(numbers[str(member)])]))
            return Agent(self.config, spaces, state, self.factory)

    @property
    def summary(self) -> dict[str, Any]:
        """Generation, place and score at which the best agent was found, and its final evaluation if there was one.

        Raises:
            StoreError: no member has had a score yet.
        """
        self._check_scored()
        return checked(Found, snapshot.verified(self.folder, BEST), self.folder.snapshots / BEST)

    @property
    def lack(self) -> str:
        """Why there is no best agent; empty where there is one."""
        if BEST in snapshot.names(self.folder):
            return ""
        scores: list[MemberRecord] = []
        with contextlib.suppress(StoreError):  # that the database is damaged is said by those who need it
            scores = self.scores
        if not scores or any(math.isfinite(record.score) for record in scores):
            return f"its training has not come to the end of its first generation; run: popgraft resume {self.path}"
        count = counted(self.generations, "generation")
        if self.config.pbt.fitness == "training" and not any(record.episodes for record in scores):
            return (
                f"no training episode has ended in {count}; set pbt.fitness: evaluation, or make generations longer "
                f"than pbt.perturbation_interval={self.config.pbt.perturbation_interval} updates"
            )
        return f"no member has had a finite score in {count}"

    def _check_scored(self) -> None:
        if lack := self.lack:
            raise StoreError(f"{self.path} has no best agent, because {lack}")


def planned_generations(config: Config, database: RunDatabase) -> int:
    """How many generations a whole run has: those in its database, and what its settings add."""
    if all(event.kind != "resumed" for event in database.events()):  # all of one size: no need to read them
        return config.generations
    latest = {record.member: record for record in database.scores()}
    rounds = sum(record.generation + 1 for record in latest.values())
    begun = -(-rounds // config.pbt.population_size)
    left = None
    if config.pbt.population_schedule:  # in lockstep, in which who is behind has ended
        begun = max((record.generation + 1 for record in latest.values()), default=0)
        left = sum(record.generation + 1 == begun for record in latest.values()) or None
    return config.planned_generations(begun, sum(record.steps for record in latest.values()), left)
