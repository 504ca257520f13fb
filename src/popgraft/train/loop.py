"""The training loop: train, score, decide, graft, save."""

import contextlib
import dataclasses
import threading
from collections.abc import Callable

import torch

from popgraft.config import Config
from popgraft.errors import ShardLost, StoreError
from popgraft.execute import Executor, Loss, Part
from popgraft.state import Member
from popgraft.train.announce import Announcer
from popgraft.train.final import evaluate_best
from popgraft.train.incumbent import Incumbent
from popgraft.train.interrupt import signals_first
from popgraft.train.ledger import Ledger
from popgraft.train.observer import Plan, readable
from popgraft.train.out_of_memory import in_words
from popgraft.train.pace import Pace
from popgraft.train.points import Points
from popgraft.train.recover import Recovery
from popgraft.train.run import Run
from popgraft.train.run_state import RunState


@dataclasses.dataclass
class Training:
    """One run while it goes on.

    Attributes:
        config: every setting.
        executor: has the members, and trains them.
        run: its folder.
        state: what is known between two generations.
        pace: asks the strategy for a decision.
        ledger: keeps scores and decisions.
        incumbent: keeps the best agent.
        points: saves.
        recovery: goes on after a loss.
        announcer: says what happens.
        stop: whether to stop.
    """

    config: Config
    executor: Executor
    run: Run
    state: RunState
    pace: Pace
    ledger: Ledger
    incumbent: Incumbent
    points: Points
    recovery: Recovery
    announcer: Announcer
    stop: threading.Event

    def train(self) -> None:
        """The whole run, or what is left of it; whatever ends it, the best agent and the population are on disk."""
        state, event = self.state, self.announcer.event
        try:
            with in_words(self.config), signals_first(self.stop):
                self._train()
        except KeyboardInterrupt:  # an update may be half done: the snapshots stay as they are
            with contextlib.suppress(StoreError):
                event("stopped", "interrupted in the middle of an update", state.generation)
            raise
        except BaseException as error:
            text = str(error) if isinstance(error, Exception) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(StoreError, MemoryError):  # the error itself is what the user must hear of
                event("stopped", text, state.generation)
            with contextlib.suppress(StoreError, MemoryError, ShardLost):
                self._save_population(finished=False)
            raise
        else:
            self._save_population(finished=not self.stop.is_set())
        finally:
            with contextlib.suppress(Exception):  # where it fails, something else has gone wrong before
                self.points.wait()
            self.announcer.tell("on_end")

    def _train(self) -> None:
        state, executor = self.state, self.executor
        self._begin()
        while not (self.stop.is_set() or self.is_over):
            try:
                news = executor.next(self._on_update(), self.stop.is_set)
                state.steps += news.steps
                if isinstance(news, Part):
                    self._generation(news)
            except ShardLost as error:  # in the midst of something else
                news = Loss(executor.members, error)
            if isinstance(news, Loss):
                self.recovery.mend(news)
        self.points.wait()
        if self.stop.is_set():
            text = "interrupted by the user; the population is kept as it is"
            self.announcer.event("stopped", text, state.generation)
        elif state.record is not None:
            self.incumbent.run_off()
            self.points.wait()
            evaluate_best(self.config, self.run, self.announcer, self.stop)

    def _generation(self, part: Part) -> None:
        """Score, decide, graft, record, save."""
        state, ledger, executor = self.state, self.ledger, self.executor
        before, rounds = state.generation, state.rounds.clone()
        rounds[part.members] += 1
        ledger.score(part)
        self.incumbent.meet(part)
        decision = ledger.decide(part, self.pace)
        executor.inherit(part.members.tolist(), decision, rounds, ledger.needed_record(decision))
        told = ledger.close(part, decision)
        self.announcer.tell("on_generation", told)
        if self.incumbent.has_reached_score:
            best, threshold = readable(state.best), self.config.stop_at_score
            self.announcer.event(
                "reached", f"the best score {best} has reached stop_at_score={threshold:g}", told.number
            )
        interval = self.config.snapshots.interval
        if self.is_over or decision.ended or state.generation // interval > before // interval:
            self._save_point()

    def _begin(self) -> None:
        state, executor = self.state, self.executor
        self.announcer.tell("on_start", self.plan())
        self.announcer.caution([*self.config.cautions, *executor.cautions])
        executor.begin(state.rounds)
        self.ledger.start_clock()
        if executor.recovers and state.generation == 0:
            self.points.save(self._everyone())

    def _on_update(self) -> Callable[[int], None]:
        """Counts steps of the updates that members make until a part has ended its generation."""
        update, steps = self.config.env.num_envs * self.config.model.n_steps, self.state.steps
        whole = self.config.planned_steps(steps, len(self.state.members))

        def on_update(members: int) -> None:
            nonlocal steps
            steps += members * update
            self.announcer.tell("on_update", min(steps, whole))

        return on_update

    def _save_point(self) -> None:
        self.points.save(self.executor.checkpoint(self.state.rounds))

    def _save_population(self, finished: bool) -> None:
        self.points.save_population(self._everyone(), self.executor.members, finished)

    def _everyone(self) -> Member:
        return self.executor.export(torch.tensor(self.executor.members))

    def plan(self) -> Plan:
        """What is left to do."""
        state = self.state
        parameters = self.executor.export(state.members[:1]).params.shape[1]
        return Plan(self.config, self.run.path, parameters, state.steps, state.begun, len(state.members))

    @property
    def is_over(self) -> bool:
        """Whether nothing is left but the last evaluation."""
        return self.incumbent.has_reached_score or self.has_taken_its_steps

    @property
    def has_taken_its_steps(self) -> bool:
        """Whether the run is as long as it was to be."""
        return self.state.steps >= self.config.planned_steps(self.state.steps)
