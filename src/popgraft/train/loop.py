"""The training loop: advance, score, decide, record, graft."""

import contextlib
import dataclasses
import logging
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popgraft.config import Config, dump_config, load_config
from popgraft.errors import EnvironmentFault, PopulationLost, ShardLost, StoreError
from popgraft.execute import Advance, Executor, inherited_values, make_executor, strategies
from popgraft.pbt import Prescribed, Schedule, make_schedule
from popgraft.rng import derive
from popgraft.state import Decision, Record, Scores
from popgraft.store import RunDatabase, RunFolder, snapshot
from popgraft.store.lock import locked
from popgraft.train.aftermath import relative_spread, spread
from popgraft.train.background import Background
from popgraft.train.interrupt import stop_on_signal
from popgraft.train.memory import in_words
from popgraft.train.observer import Generation, Observer, Plan, readable
from popgraft.train.points import save_point, save_population
from popgraft.train.recover import recover
from popgraft.train.run import BEST, Run
from popgraft.train.state import RunState
from popgraft.train.tensorboard import TensorBoard
from popgraft.train.trackers import make_trackers
from popgraft.train.versions import versions

logger = logging.getLogger(__name__)


def train(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    observer: Observer | None = None,
    factory: Callable[..., Any] | None = None,
) -> Run:
    """Trains a population and returns the run it leaves behind.

    Ctrl-C or SIGTERM ends the run after the update in progress; what was reached is kept, and `resume` continues it. A
    second one interrupts at once.

    Args:
        config: path of a YAML file, a mapping of the same shape, or a `Config`.
        overrides: settings that win over it, as {"env.id": "Pendulum-v1"} or ["env.id=Pendulum-v1"].
        observer: is told of progress.
        factory: makes a member's environments, called as factory(num_envs=..., **env.kwargs); takes the place of the
            configured source.

    Raises:
        ConfigError: a setting that cannot work.
        RunExists: the run folder is in use.
        EnvironmentFault: the environments cannot be made.
        PopulationLost: every member has failed; what was reached before is kept.
        StoreError: the run folder cannot be written.
        OutOfMemory: memory does not suffice.
    """
    settings = load_config(config, overrides)
    observer = observer or Observer()
    schedule, trackers = make_schedule(settings), make_trackers(settings.tracking)
    state = RunState(schedule.initial_hyperparams(settings.model.hyperparams()))
    with stop_on_signal(observer) as stop, contextlib.ExitStack() as stack:
        # Before the folder: a typo leaves nothing behind.
        with in_words(settings):
            executor = stack.enter_context(contextlib.closing(make_executor(settings, state.hyperparams, factory)))
        if stop.is_set():
            raise KeyboardInterrupt
        folder = RunFolder.create(settings.run_dir, dump_config(settings), versions())
        stack.enter_context(locked(folder))
        database = stack.enter_context(RunDatabase(folder.database))
        run, board = Run(folder.path, factory), TensorBoard(folder.tensorboard)
        Training(settings, schedule, executor, run, database, board, observer, stop.is_set, state, trackers).train()
    return run


@dataclasses.dataclass
class Training:
    """One run while it goes on."""

    config: Config
    schedule: Schedule | Prescribed
    executor: Executor
    run: Run
    database: RunDatabase
    tensorboard: TensorBoard
    observer: Observer
    stop: Callable[[], bool]
    state: RunState
    trackers: Sequence[Observer]
    background: Background = dataclasses.field(default_factory=Background)
    losses: Counter[int] = dataclasses.field(default_factory=Counter)
    """How many shards have been lost, by generation."""

    def train(self) -> None:
        """The whole run, or what is left of it; whatever ends it, the best agent and the population are on disk."""
        state = self.state
        try:
            with in_words(self.config):
                self._train()
        except KeyboardInterrupt:  # an update may be half done: the snapshots stay as they are
            with contextlib.suppress(StoreError):
                self.tell_event("stopped", "interrupted in the middle of an update", state.generation)
            raise
        except Exception as error:
            with contextlib.suppress(StoreError, MemoryError):  # the error itself is what the user must hear of
                self.tell_event("stopped", str(error), state.generation)
            with contextlib.suppress(StoreError, MemoryError, ShardLost):
                save_population(self, finished=False)
            raise
        else:
            save_population(self, finished=not self.stop())
        finally:
            with contextlib.suppress(Exception):  # where it fails, something else has gone wrong before
                self.background.wait()
            self._tell("on_end")

    def _train(self) -> None:
        state = self.state
        self._start()
        began = time.monotonic()
        if self.executor.recovers and state.generation == 0:
            save_point(self)
        while not (self.stop() or self.is_over):
            try:
                whole = self._generation(state.generation, began)
                if whole and (self.is_over or state.generation % self.config.snapshots.interval == 0):
                    self.executor.restart(state.generation)  # as a resumed run does: both go on from the members alone
                    save_point(self)
            except ShardLost as error:
                recover(self, error)
        self.background.wait()
        if self.stop():
            self.tell_event("stopped", "interrupted by the user; the population is kept as it is", state.generation)
        else:
            self._evaluate_best()

    def tell_event(self, kind: str, text: str, generation: int | None = None) -> None:
        """Records that something has happened, and says so."""
        self.database.record_event(kind, text, generation)
        self._tell("on_event", kind, text)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left but the last evaluation."""
        return self._has_reached_score or self.state.generation >= self.config.generations

    @property
    def _has_reached_score(self) -> bool:
        threshold = self.config.stop_at_score
        return threshold is not None and self._at_least(self.state.best, threshold)

    def _start(self) -> None:
        self._tell("on_start", self.plan())
        known = {event.text for event in self.database.events() if event.kind == "caution"}
        for caution in self.config.cautions:
            logger.warning("%s", caution)
            if caution not in known:
                self.database.record_event("caution", caution)

    def plan(self) -> Plan:
        """What is left to do."""
        parameters = self.executor.export(torch.arange(1)).params.shape[1]
        return Plan(self.config, self.run.path, parameters, self.state.steps)

    def _generation(self, number: int, began: float) -> bool:
        """Advance, score, decide, record, graft; false if a stop came in between."""
        state, updates = self.state, 0

        def after_update() -> bool:
            nonlocal updates
            updates += 1
            share = updates / self.config.pbt.perturbation_interval
            self._tell("on_update", state.steps + round(share * self.config.steps_per_generation))
            return self.stop()

        advance = self.executor.advance(self.config.pbt.perturbation_interval, after_update)
        state.steps += advance.steps
        self._report_faults(advance.faults, number)
        if self.stop():
            return False
        scores = self._scores(number, advance)
        self.background.wait()  # so that what is recorded is never further ahead of the newest snapshot
        self._keep_best(number, scores)
        hyperparams, ratio = state.hyperparams, self._follow(advance)
        decision = self._decide(number, scores, advance)
        record = self._needed_record(decision)
        self.executor.graft(decision, number + 1, record)
        state.follower.begin(number, decision)
        known = scores.mean if record is None else torch.cat([scores.mean, record.scores.mean])
        state.hyperparams, state.known_scores = decision.hyperparams, known[decision.parents]
        for member, reason in decision.reasons.items():
            if reason == "rescue":
                donor = int(decision.parents[member])
                text = f"member {member} had no finite score and continues as member {donor}"
                self.tell_event("rescue", text, number)
        told = Generation(
            number=number,
            steps=state.steps,
            seconds=time.monotonic() - began,
            scores=scores,
            hyperparams=hyperparams,
            decision=decision,
            metrics=advance.metrics,
            best_score=state.best,
            statistics=self._statistics(hyperparams, decision) | ratio,
        )
        means = {name: values.nanmean(1) for name, values in advance.metrics.items()}
        self.database.record_metrics(number, means, told.statistics)
        state.generation = number + 1
        self._tell("on_generation", told)
        if self._has_reached_score:
            text = f"the best score {readable(state.best)} has reached stop_at_score={self.config.stop_at_score:g}"
            self.tell_event("reached", text, number)
        return True

    def _follow(self, advance: Advance) -> dict[str, float]:
        """Records what the grafts before have done; returns the mean ratio of value losses, if there are new ones."""
        news = self.state.follower.follow(advance.metrics, advance.value_loss_ratios)
        for (generation, member), aftermath in news.items():
            self.database.record_aftermath(generation, member, aftermath)
        ratios = [ratio for ratio in advance.value_loss_ratios.values() if math.isfinite(ratio)]
        return {"post_exploit_value_loss_ratio": statistics.fmean(ratios)} if ratios else {}

    def _statistics(self, before: dict[str, Tensor], decision: Decision) -> dict[str, float]:
        moved = torch.zeros(len(decision.parents), dtype=torch.bool)
        for name, inherited in inherited_values(decision, before, self._needed_record(decision)).items():
            moved |= decision.hyperparams[name] != inherited
        self.state.explorations += int(moved.sum())
        self.state.exploits += len(decision.recipients)
        momenta = self.executor.momenta()
        return {
            "exploitation_count": float(self.state.exploits),
            "exploration_count": float(self.state.explorations),
            "failed_ready_checks": float(self.schedule.failed_ready_checks),
            "member_distance": spread(self.executor.weights()),
            **({} if momenta is None else {"optimizer_distance": relative_spread(momenta)}),
        }

    def _needed_record(self, decision: Decision) -> Record | None:
        """The best state there ever was, if somebody returns to it."""
        return self.state.record if (decision.parents == len(decision.parents)).any() else None

    def _scores(self, number: int, advance: Advance) -> Scores:
        """Fitness as configured; NaN for a member that is not healthy."""
        if self.config.pbt.fitness == "training":
            scores, mean = advance.scores, advance.scores.mean
            if self.state.known_scores is not None:  # a member none of whose episodes has ended is as good as it was
                mean = torch.where(scores.episodes > 0, mean, self.state.known_scores)
        else:
            scores = self.executor.evaluate(derive(self.config.seed, "evaluation", number))
            self._report_faults(scores.faults, number)
            mean = scores.mean
        return dataclasses.replace(scores, mean=mean.masked_fill(~advance.healthy, float("nan")))

    def _decide(self, number: int, scores: Scores, advance: Advance) -> Decision:
        """Asks the schedule, and records the generation whatever comes of it."""
        members = torch.arange(len(scores.mean))
        decision = Decision(members, self.state.hyperparams, {})
        waiting = advance.healthy & (scores.episodes == 0) & ~scores.mean.isfinite()
        try:
            if waiting.any():
                names = ", ".join(str(member) for member in members[waiting].tolist())
                self.tell_event("waiting", f"no episode has ended yet for member {names}; nobody is replaced", number)
            else:
                decision = self.schedule(number, scores, self.state.hyperparams, self.state.record)
        except PopulationLost as error:
            for member, fault in (advance.faults | scores.faults).items():
                raise PopulationLost(f"{error}. The environment of member {member} failed: {fault}") from None
            raise
        finally:
            record, steps = self._needed_record(decision), self.state.steps // len(members)
            fate = strategies(decision, self.state.hyperparams, self.config.pbt, record)
            self.database.record_generation(number, scores, self.state.hyperparams, steps, decision, fate, record)
        return decision

    def _keep_best(self, number: int, scores: Scores) -> None:
        """Saves the generation's best member if nobody was better before."""
        sign = 1 if self.config.pbt.metric_mode == "max" else -1
        ranked = (sign * scores.mean).masked_fill(~scores.mean.isfinite(), float("-inf"))
        member = int(ranked.argmax())
        score = float(scores.mean[member])
        beaten = self.state.record is not None and not self._at_least(score, self.state.best)
        if beaten or not torch.isfinite(ranked[member]):
            return
        found = {
            "generation": number,
            "member": member,
            "score": score,
            "stderr": float(scores.stderr[member]),
            "episodes": int(scores.episodes[member]),
            "steps": self.state.steps,
        }
        state = self.executor.export(torch.tensor([member]))
        self.background.start(lambda: snapshot.save(self.run.folder, BEST, state, found))
        self.state.set_record(state, found)

    def _evaluate_best(self) -> None:
        """Scores the best member on fresh episodes, because the best of many noisy scores flatters."""
        episodes = self.config.evaluation.final_episodes
        if self.state.record is None:
            return
        self._tell("on_final_evaluation", episodes)
        agent, found, settings = self.run.best, self.run.summary, self.config.evaluation
        attacks = [None, settings.attack] if settings.attack_weight else [None]
        try:
            results = [agent.evaluate(episodes, self.config.seed, settings.deterministic, attack) for attack in attacks]
        except EnvironmentFault as error:
            self.tell_event("environment", f"the best agent has no final score: {error}")
            return
        final: dict[str, Any] = {"final_episodes": episodes}
        texts = []
        for name, scores in zip(("final", "final_attacked"), results, strict=False):
            score, stderr = float(scores.mean[0]), float(scores.stderr[0])
            final |= {f"{name}_score": score, f"{name}_stderr": stderr}
            texts.append(readable(score, stderr))
        snapshot.save(self.run.folder, BEST, agent.member, {**found, **final})
        scored = " and under attack ".join(texts)
        self.tell_event("final", f"the best agent scores {scored} over {episodes} fresh episodes")

    def _report_faults(self, faults: dict[int, str], number: int) -> None:
        for member, fault in faults.items():
            self.tell_event("environment", f"the environment of member {member} failed: {fault}", number)

    def _at_least(self, score: float, threshold: float) -> bool:
        return score >= threshold if self.config.pbt.metric_mode == "max" else score <= threshold

    def _tell(self, what: str, *arguments: Any) -> None:
        for observer in (self.tensorboard, *self.trackers, self.observer):
            getattr(observer, what)(*arguments)
