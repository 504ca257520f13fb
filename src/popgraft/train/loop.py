"""The training loop: advance, score, decide, record, graft."""

import contextlib
import dataclasses
import logging
import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import Config, dump_config, load_config
from popgraft.errors import EnvironmentFault, PopulationLost
from popgraft.execute import Advance, Executor, inherited_values, make_executor, strategies
from popgraft.pbt import Schedule
from popgraft.rng import derive
from popgraft.state import Decision, Record, Scores
from popgraft.store import RunDatabase, RunFolder, snapshot
from popgraft.train.aftermath import Follower, spread
from popgraft.train.observer import Generation, Observer, Plan, readable
from popgraft.train.run import BEST, LAST, Run
from popgraft.train.tensorboard import TensorBoard

logger = logging.getLogger(__name__)


def train(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    observer: Observer | None = None,
    factory: Callable[..., Any] | None = None,
) -> Run:
    """Trains a population and returns the run it leaves behind.

    Ctrl-C ends the run after the update in progress; what was reached is kept. A second Ctrl-C interrupts at once.

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
    """
    settings = load_config(config, overrides)
    observer = observer or Observer()
    schedule = Schedule(settings.pbt, settings.seed)
    initial = schedule.initial_hyperparams(settings.model.hyperparams())
    with _stop_on_interrupt(observer) as stop:
        executor = make_executor(settings, initial, factory)  # before the folder: a typo leaves nothing behind
        try:
            if stop.is_set():
                raise KeyboardInterrupt
            folder = RunFolder.create(settings.run_dir, dump_config(settings))
            with RunDatabase(folder.database) as database:
                run = Run(folder.path, factory)
                observers = [TensorBoard(folder.tensorboard), observer]
                _Training(settings, schedule, executor, run, database, observers, stop.is_set, initial).train()
        finally:
            executor.close()
    return run


@dataclasses.dataclass
class _Training:
    """One run while it goes on."""

    config: Config
    schedule: Schedule
    executor: Executor
    run: Run
    database: RunDatabase
    observers: list[Observer]
    stop: Callable[[], bool]
    hyperparams: dict[str, Float[Tensor, "pop"]]
    """What the members train with."""
    steps: int = 0
    best: float = float("nan")
    _explorations: int = 0
    _known_scores: Tensor | None = None
    _record: Record | None = None
    _follower: Follower = dataclasses.field(default_factory=Follower)

    def train(self) -> None:
        """The whole run; whatever ends it, the best agent and the population are on disk afterwards."""
        generation = 0
        try:
            parameters = self.executor.export(torch.arange(1)).params.shape[1]
            self._tell("on_start", Plan(self.config, self.run.path, parameters))
            for caution in self.config.cautions:
                logger.warning("%s", caution)
                self.database.record_event("caution", caution)
            began = time.monotonic()
            for generation in range(self.config.generations):
                if not self._generation(generation, began):
                    break
            if self.stop():
                self._event("stopped", "interrupted by the user; the population is kept as it is", generation)
            else:
                self._evaluate_best()
        except KeyboardInterrupt:  # an update may be half done: the snapshots stay as they are
            self._event("stopped", "interrupted in the middle of an update", generation)
            raise
        except Exception as error:
            self._event("stopped", str(error), generation)
            self._save_population(generation)
            raise
        else:
            self._save_population(generation)
        finally:
            self._tell("on_end")

    def _save_population(self, generation: int) -> None:
        everyone = torch.arange(self.config.pbt.population_size)
        metadata = {"generation": generation, "steps": self.steps, "schedule": self.schedule.state_dict()}
        snapshot.save(self.run.folder, LAST, self.executor.export(everyone), metadata)

    def _generation(self, number: int, began: float) -> bool:
        """Advance, score, decide, record, graft; false if the run should end here."""
        updates = 0

        def after_update() -> bool:
            nonlocal updates
            updates += 1
            share = updates / self.config.pbt.perturbation_interval
            self._tell("on_update", self.steps + round(share * self.config.steps_per_generation))
            return self.stop()

        advance = self.executor.advance(self.config.pbt.perturbation_interval, after_update)
        self.steps += advance.steps
        self._report_faults(advance.faults, number)
        if self.stop():
            return False
        scores = self._scores(number, advance)
        self._keep_best(number, scores)
        hyperparams, ratio = self.hyperparams, self._follow(advance)
        decision = self._decide(number, scores, advance)
        record = self._needed_record(decision)
        self.executor.graft(decision, number + 1, record)
        self._follower.begin(number, decision)
        self.hyperparams = decision.hyperparams
        known = scores.mean if record is None else torch.cat([scores.mean, record.scores.mean])
        self._known_scores = known[decision.parents]
        for member, reason in decision.reasons.items():
            if reason == "rescue":
                donor = int(decision.parents[member])
                self._event("rescue", f"member {member} had no finite score and continues as member {donor}", number)
        seconds = time.monotonic() - began
        self._tell(
            "on_generation",
            Generation(
                number,
                self.steps,
                seconds,
                scores,
                hyperparams,
                decision,
                advance.metrics,
                self.best,
                self._statistics(hyperparams, decision) | ratio,
            ),
        )
        threshold = self.config.stop_at_score
        if threshold is not None and self._at_least(self.best, threshold):
            text = f"the best score {readable(self.best)} has reached stop_at_score={threshold:g}"
            self._event("reached", text, number)
            return False
        return not self.stop()

    def _follow(self, advance: Advance) -> dict[str, float]:
        """Records what the grafts before have done; returns the mean ratio of value losses, if there are new ones."""
        news = self._follower.follow(advance.metrics)
        for (generation, member), aftermath in news.items():
            self.database.record_aftermath(generation, member, aftermath)
        newest = max((generation for generation, _ in news), default=None)
        ratios = [aftermath.value_loss_ratio for (generation, _), aftermath in news.items() if generation == newest]
        return {"post_exploit_value_loss_ratio": statistics.fmean(ratios)} if ratios else {}

    def _statistics(self, before: dict[str, Tensor], decision: Decision) -> dict[str, float]:
        moved = torch.zeros(len(decision.parents), dtype=torch.bool)
        for name, inherited in inherited_values(decision, before, self._needed_record(decision)).items():
            moved |= decision.hyperparams[name] != inherited
        self._explorations += int(moved.sum())
        return {
            "exploration_count": float(self._explorations),
            "failed_ready_checks": float(self.schedule.failed_ready_checks),
            "member_distance": spread(self.executor.weights()),
        }

    def _needed_record(self, decision: Decision) -> Record | None:
        """The best state there ever was, if somebody returns to it."""
        return self._record if (decision.parents == len(decision.parents)).any() else None

    def _scores(self, number: int, advance: Advance) -> Scores:
        """Fitness as configured; NaN for a member that is not healthy."""
        if self.config.pbt.fitness == "training":
            scores, mean = advance.scores, advance.scores.mean
            if self._known_scores is not None:  # a member none of whose episodes has ended is as good as it was
                mean = torch.where(scores.episodes > 0, mean, self._known_scores)
        else:
            scores = self.executor.evaluate(derive(self.config.seed, "evaluation", number))
            self._report_faults(scores.faults, number)
            mean = scores.mean
        return dataclasses.replace(scores, mean=mean.masked_fill(~advance.healthy, float("nan")))

    def _decide(self, number: int, scores: Scores, advance: Advance) -> Decision:
        """Asks the schedule, and records the generation whatever comes of it."""
        members = torch.arange(len(scores.mean))
        decision = Decision(members, self.hyperparams, {})
        waiting = advance.healthy & (scores.episodes == 0) & ~scores.mean.isfinite()
        try:
            if waiting.any():
                names = ", ".join(str(member) for member in members[waiting].tolist())
                self._event("waiting", f"no episode has ended yet for member {names}; nobody is replaced", number)
            else:
                decision = self.schedule(number, scores, self.hyperparams, self._record)
        except PopulationLost as error:
            for member, fault in (advance.faults | scores.faults).items():
                raise PopulationLost(f"{error}. The environment of member {member} failed: {fault}") from None
            raise
        finally:
            record, steps = self._needed_record(decision), self.steps // len(members)
            fate = strategies(decision, self.hyperparams, self.config.pbt, record)
            self.database.record_generation(number, scores, self.hyperparams, steps, decision, fate, record)
        return decision

    def _keep_best(self, number: int, scores: Scores) -> None:
        """Saves the generation's best member if nobody was better before."""
        sign = 1 if self.config.pbt.metric_mode == "max" else -1
        ranked = (sign * scores.mean).masked_fill(~scores.mean.isfinite(), float("-inf"))
        member = int(ranked.argmax())
        score = float(scores.mean[member])
        if not torch.isfinite(ranked[member]) or (self.best == self.best and not self._at_least(score, self.best)):
            return
        self.best = score
        metadata = {
            "generation": number,
            "member": member,
            "score": score,
            "stderr": float(scores.stderr[member]),
            "steps": self.steps,
        }
        state = self.executor.export(torch.tensor([member]))
        snapshot.save(self.run.folder, BEST, state, metadata)
        row = slice(member, member + 1)
        found = Scores(scores.mean[row], scores.stderr[row], scores.episodes[row])
        self._record = Record(state, found, number, member)

    def _evaluate_best(self) -> None:
        """Scores the best member on fresh episodes, because the best of many noisy scores flatters."""
        episodes = self.config.evaluation.final_episodes
        if self.best != self.best:
            return
        self._tell("on_final_evaluation", episodes)
        agent, found = self.run.best, self.run.summary
        try:
            scores = agent.evaluate(episodes, self.config.seed, self.config.evaluation.deterministic)
        except EnvironmentFault as error:
            self._event("environment", f"the best agent has no final score: {error}")
            return
        score, stderr = float(scores.mean[0]), float(scores.stderr[0])
        final = {"final_score": score, "final_stderr": stderr, "final_episodes": episodes}
        snapshot.save(self.run.folder, BEST, agent.member, {**found, **final})
        self._event("final", f"the best agent scores {readable(score, stderr)} over {episodes} fresh episodes")

    def _report_faults(self, faults: dict[int, str], number: int) -> None:
        for member, fault in faults.items():
            self._event("environment", f"the environment of member {member} failed: {fault}", number)

    def _at_least(self, score: float, threshold: float) -> bool:
        return score >= threshold if self.config.pbt.metric_mode == "max" else score <= threshold

    def _event(self, kind: str, text: str, generation: int | None = None) -> None:
        self.database.record_event(kind, text, generation)
        self._tell("on_event", kind, text)

    def _tell(self, what: str, *arguments: Any) -> None:
        for observer in self.observers:
            getattr(observer, what)(*arguments)


@contextlib.contextmanager
def _stop_on_interrupt(observer: Observer) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; the second one interrupts as usual.

    A terminal sends Ctrl-C to every process of the run: those of asynchronous environments, which are made under this
    handler and inherit it, outlive the first one, so that the update in progress can end.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous, process = signal.getsignal(signal.SIGINT), os.getpid()

    def on_interrupt(*_: Any) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if os.getpid() == process:
            observer.on_interrupt()

    signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, previous)
