"""The training loop: advance, score, decide, record, graft."""

import contextlib
import dataclasses
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config import Config
from popgraft.errors import EnvironmentFault, PopulationLost, ShardLost, StoreError
from popgraft.execute import Executor, Part
from popgraft.inheritance import inherited_values, strategies
from popgraft.messages import logger_of
from popgraft.pbt import Strategy
from popgraft.rng import derive
from popgraft.state import Decision, Record, Scores
from popgraft.store import RunDatabase, snapshot
from popgraft.train.aftermath import distances
from popgraft.train.background import Background
from popgraft.train.memory import in_words
from popgraft.train.observer import Generation, Observer, Plan, readable
from popgraft.train.place import Place
from popgraft.train.points import save_point, save_population
from popgraft.train.recover import recover
from popgraft.train.run import BEST, Run
from popgraft.train.standing import standing_of
from popgraft.train.state import RunState
from popgraft.train.tensorboard import TensorBoard

logger = logger_of(__name__)


@dataclasses.dataclass
class Training:
    """One run while it goes on."""

    config: Config
    strategy: Strategy
    executor: Executor
    run: Run
    place: Place
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
        except BaseException as error:
            text = str(error) if isinstance(error, Exception) else f"{type(error).__name__}: {error}"
            with contextlib.suppress(StoreError, MemoryError):  # the error itself is what the user must hear of
                self.tell_event("stopped", text, state.generation)
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
                if self._generation(began):
                    self._save_when_due()
            except ShardLost as error:
                self._recover(error)
        self.background.wait()
        if self.stop():
            self.tell_event("stopped", "interrupted by the user; the population is kept as it is", state.generation)
        else:
            self._evaluate_best()

    def _recover(self, error: ShardLost) -> None:
        """Goes on after the loss of a shard, or raises the error."""
        recover(self, error)

    def _save_when_due(self) -> None:
        if self.is_over or self.state.generation % self.config.snapshots.interval == 0:
            self.executor.restart(self.state.generation)  # as a resumed run does: both go on from the members alone
            save_point(self)

    def tell_event(self, kind: str, text: str, generation: int | None = None) -> None:
        """Records that something has happened, and says so."""
        text = self.place.said(text)
        self.database.record_event(kind, text, generation)
        self._tell("on_event", kind, text)

    @property
    def is_over(self) -> bool:
        """Whether nothing is left but the last evaluation."""
        return self._has_reached_score or self.has_taken_its_steps

    @property
    def has_taken_its_steps(self) -> bool:
        """Whether the run is as long as it was to be."""
        return self.state.steps >= self.config.planned_steps(self.state.steps)

    @property
    def _has_reached_score(self) -> bool:
        threshold = self.config.stop_at_score
        return threshold is not None and self._at_least(self.state.best, threshold)

    def _start(self) -> None:
        self._tell("on_start", self.plan())
        known = {event.text for event in self.database.events() if event.kind == "caution"}
        for caution in (*self.config.cautions, *self.executor.cautions):
            logger.warning("%s", caution)
            if caution not in known:
                self.database.record_event("caution", caution)

    def plan(self) -> Plan:
        """What is left to do."""
        parameters = self.executor.export(torch.arange(1)).params.shape[1]
        return Plan(self.config, self.run.path, parameters, self.state.steps)

    def _next_part(self) -> Part | None:
        """Has everybody train for a generation; None if a stop came in between."""
        state, updates = self.state, 0

        def after_update() -> bool:
            nonlocal updates
            updates += 1
            share = updates / self.config.pbt.perturbation_interval
            self._tell("on_update", state.steps + round(share * self.config.steps_per_generation))
            return self.stop()

        advance = self.executor.advance(self.config.pbt.perturbation_interval, after_update)
        state.steps += advance.steps
        if self.stop():  # what environments say now may be what a signal to the whole job has done to them
            return None
        self._report_faults(advance.faults, state.generation)
        seed = self._evaluation_seed(state.generation)
        scores = None if seed is None else self.executor.evaluate(seed)
        faults = scores.faults if scores else {}
        if faults and self.stop():  # likewise
            return None
        self._report_faults(faults, state.generation)
        return Part(torch.arange(state.pop), advance, scores)

    def _generation(self, began: float) -> bool:
        """Train, score, decide, record, graft; false if a stop came in between."""
        part = self._next_part()
        if part is None:
            return False
        state, members, advance = self.state, part.members, part.advance
        numbers, hyperparams = state.rounds - 1, state.hyperparams
        numbers[members] += 1  # of everybody's latest generation
        scores = self._scores(part)
        self.background.wait()  # so that what is recorded is never further ahead of the newest snapshot
        state.take_in(part, scores)
        self._keep_best(part, numbers)
        ratio = self._follow(part)
        decision = self._decide(part, numbers)
        self._graft(part, decision)
        state.follower.begin(numbers, decision)
        state.inherit(decision)
        for member, reason in decision.reasons.items():
            if reason == "rescue":
                donor = int(decision.parents[member])
                text = f"member {member} had no finite score and continues as member {donor}"
                self.tell_event("rescue", text, int(numbers[member]))
        told = Generation(
            number=int(numbers.sum() + len(numbers) - 1) // len(numbers),
            members=members,
            place_steps=state.place_steps[members],
            update_steps=advance.steps // len(members) // advance.updates,
            steps=state.steps,
            seconds=time.monotonic() - began,
            scores=scores,
            hyperparams=self._exact(hyperparams),
            decision=decision,
            metrics=advance.metrics,
            best_score=state.best,
            statistics=self._statistics(hyperparams, decision) | ratio,
        )
        means = {name: values.nanmean(1) for name, values in advance.metrics.items()}
        self.database.record_metrics(numbers, means, told.statistics, members)
        state.rounds[members] += 1
        self._tell("on_generation", told)
        if self._has_reached_score:
            text = f"the best score {readable(state.best)} has reached stop_at_score={self.config.stop_at_score:g}"
            self.tell_event("reached", text, told.number)
        return True

    def _follow(self, part: Part) -> dict[str, float]:
        """Records what the grafts before have done; returns the mean ratio of value losses, if there are new ones."""
        advance = part.advance
        news = self.state.follower.follow(part.members, advance.metrics, advance.value_loss_ratios)
        for (generation, member), aftermath in news.items():
            self.database.record_aftermath(generation, member, aftermath)
        ratios = [ratio for ratio in advance.value_loss_ratios.values() if math.isfinite(ratio)]
        return {"post_exploit_value_loss_ratio": statistics.fmean(ratios)} if ratios else {}

    def _statistics(self, before: dict[str, Tensor], decision: Decision) -> dict[str, float]:
        moved = torch.zeros(len(decision.parents), dtype=torch.bool)
        donors = decision.hyperparameter_donors
        for name, inherited in inherited_values(donors, before, self.state.record).items():
            moved |= decision.hyperparams[name] != inherited
        self.state.explorations += int(moved.sum())
        self.state.exploits += len(decision.recipients)
        return {
            "exploitation_count": float(self.state.exploits),
            "exploration_count": float(self.state.explorations),
            **self.strategy.statistics(),
            **self._distances(),
        }

    def _distances(self) -> dict[str, float]:
        """How far apart members are."""
        return distances(self.executor.weights(), self.executor.momenta())

    def _graft(self, part: Part, decision: Decision) -> None:
        """Carries out a decision over everybody."""
        self.executor.graft(decision, self.state.generation + 1, self._needed_record(decision))

    def _choose(self, part: Part) -> Decision:
        """Asks the strategy."""
        state = self.state
        standing = standing_of(self.config, state, state.generation, self.database)
        return self.strategy.decide(standing, state.hyperparams, state.record)

    def _evaluation_seed(self, number: int) -> int | None:
        """Names the episodes that a generation is evaluated on; None where training's own count."""
        return None if self.config.pbt.fitness == "training" else derive(self.config.seed, "evaluation", number)

    def _needed_record(self, decision: Decision) -> Record | None:
        """The best state there ever was, if somebody returns to it."""
        return self.state.record if (decision.parents == len(decision.parents)).any() else None

    def _scores(self, part: Part) -> Scores:
        """Fitness as configured; NaN for a member that is not healthy. Others have the score that they had."""
        members, known = part.members, self.state.known
        own = part.advance.scores if part.scores is None else part.scores
        # A member none of whose training episodes has ended is as good as it was.
        mean = torch.where(own.episodes > 0, own.mean, known.mean[members]) if part.scores is None else own.mean
        mean = mean.masked_fill(~part.advance.healthy, math.nan)
        return Scores(
            mean=known.mean.index_put((members,), mean),
            stderr=known.stderr.index_put((members,), own.stderr),
            episodes=known.episodes.index_put((members,), own.episodes),
        )

    def _decide(self, part: Part, numbers: Int[Tensor, "pop"]) -> Decision:
        """Asks the strategy, and records the generation whatever comes of it."""
        state, members, advance = self.state, part.members, part.advance
        decision = Decision(torch.arange(state.pop), state.hyperparams, {})
        unknown = (state.known.episodes == 0) & ~state.known.mean.isfinite()
        waiting = members[advance.healthy & unknown[members]]
        try:
            if len(waiting):
                names = ", ".join(str(member) for member in waiting.tolist())
                text = f"no episode has ended yet for member {names}; nobody is replaced"
                self.tell_event("waiting", text, int(numbers[waiting[0]]))
            else:
                decision = self._choose(part)
        except PopulationLost as error:
            for member, fault in (advance.faults | (part.scores.faults if part.scores else {})).items():
                raise PopulationLost(f"{error}. The environment of member {member} failed: {fault}") from None
            raise
        finally:
            record = self._needed_record(decision)
            fate = strategies(decision, state.hyperparams, self.config.pbt, record)
            told = dataclasses.replace(decision, hyperparams=self._exact(decision.hyperparams))
            self.database.record_generation(
                numbers, state.known, self._exact(state.hyperparams), state.place_steps, told, fate, record, members
            )
        return decision

    def _exact(self, hyperparams: dict[str, Float[Tensor, "pop"]]) -> dict[str, Float[Tensor, "pop"]]:
        """Hyperparameters as they are reported: in double precision, and as the configuration says them."""
        told = {}
        for name, column in hyperparams.items():
            known = {value: self.config.exact(name, value) for value in set(column.tolist())}
            told[name] = torch.tensor([known[value] for value in column.tolist()], dtype=torch.float64)
        return told

    def _keep_best(self, part: Part, numbers: Int[Tensor, "pop"]) -> None:
        """Saves the best member of those that have trained, if nobody was better before."""
        scores, sign = self.state.known, 1 if self.config.pbt.metric_mode == "max" else -1
        mean = scores.mean[part.members]
        ranked = (sign * mean).masked_fill(~mean.isfinite(), float("-inf"))
        best = int(ranked.argmax())
        member, score = int(part.members[best]), float(mean[best])
        beaten = self.state.record is not None and not self._at_least(score, self.state.best)
        if beaten or not torch.isfinite(ranked[best]):
            return
        found = {
            "generation": int(numbers[member]),
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
