"""The record of a run: scores, decisions, and what grafts do."""

import dataclasses
import math
import statistics
import time

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config import Config
from popgraft.errors import PopulationLost
from popgraft.execute import Executor, Part
from popgraft.inheritance import inherited_values, strategies
from popgraft.pbt import Strategy
from popgraft.state import Decision, Record, Scores
from popgraft.store import RunDatabase
from popgraft.train.aftermath import distances
from popgraft.train.announce import Announcer
from popgraft.train.observer import Generation, counted, readable
from popgraft.train.pace import Pace
from popgraft.train.points import Points
from popgraft.train.run_state import RunState

AGAIN = 2
"""Parts of the population in a row after which something about scores is said."""
UNLIKELY = 1.645
"""Standard deviations beyond which measures contradict each other; chance goes as far in one of twenty cases."""


class Ledger:
    """Takes in what parts of the population have done.

    Args:
        config: the run.
        state: what is known so far.
        strategy: whose statistics are noted.
        executor: has the members.
        database: where all is recorded.
        points: what is being saved in the background.
        announcer: says what happens.
    """

    def __init__(
        self,
        config: Config,
        state: RunState,
        strategy: Strategy,
        executor: Executor,
        database: RunDatabase,
        points: Points,
        announcer: Announcer,
    ) -> None:
        self._config, self._state, self._strategy, self._executor = config, state, strategy, executor
        self._database, self._points, self._announcer = database, points, announcer

    def start_clock(self) -> None:
        """Training begins, or goes on."""
        self._began = time.monotonic()
        self._since = torch.full((self._state.pop,), self._began, dtype=torch.float64)

    def score(self, part: Part) -> None:
        """Takes in what a part has done: faults, scores, and what the grafts before have led to."""
        state, number = self._state, int(self._state.rounds[part.members].max())
        state.seconds[part.members] = time.monotonic() - self._since[part.members]
        for faults in (part.advance.faults, part.scores.faults if part.scores else {}):
            for member, fault in faults.items():
                self._announcer.event("environment", f"the environment of member {member} failed: {fault}", number)
        state.evaluation_steps += part.scores.steps if part.scores else 0
        scores = self._scores(part)
        self._points.wait()  # so that what is recorded is never further ahead of the newest snapshot
        state.take_in(part, scores)
        news = state.follower.follow(part.members, part.advance.metrics, part.advance.value_loss_ratios)
        for (generation, member), aftermath in news.items():
            self._database.record_aftermath(generation, member, aftermath)

    def decide(self, part: Part, pace: Pace) -> Decision:
        """Has a part decide, and records the generation whatever comes of it.

        Raises:
            PopulationLost: nobody has a finite score.
        """
        state, members, advance = self._state, part.members, part.advance
        decision, numbers = Decision(torch.arange(state.pop), state.hyperparams, {}), self._numbers(part)
        unknown = (state.known.episodes == 0) & ~state.known.mean.isfinite()
        waiting = members[advance.healthy & unknown[members]]
        try:
            if len(waiting):
                names = ", ".join(str(member) for member in waiting.tolist())
                text = f"no episode has ended yet for member {names}; nobody is replaced"
                self._announcer.event("waiting", text, int(numbers[waiting[0]]))
            else:
                self._note_order(members, numbers)
                decision = pace.decide(members)
        except PopulationLost:
            for member, fault in (advance.faults | (part.scores.faults if part.scores else {})).items():
                raise PopulationLost(
                    f"the environment of member {member} failed: {fault}; no other member has a finite score to go on "
                    "from. See that the environment runs on its own"
                ) from None
            raise
        finally:
            record = state.record
            fate = strategies(decision, state.hyperparams, self._config.pbt, record)
            told = dataclasses.replace(decision, hyperparams=self._exact(decision.hyperparams))
            self._database.record_generation(
                numbers, state.known, self._exact(state.hyperparams), state.place_steps, told, fate, record, members
            )
        return decision

    def close(self, part: Part, decision: Decision) -> Generation:
        """Takes in a decision that a part goes on with; its generation is over."""
        state, members, advance = self._state, part.members, part.advance
        numbers, trained_with, scores = self._numbers(part), state.hyperparams, state.known
        known, own = self._statistics(part, trained_with, decision), numbers[state.members]
        state.follower.begin(numbers, decision)
        state.inherit(decision)
        for member, reason in decision.reasons.items():
            if reason == "rescue":
                donor = int(decision.parents[member])
                text = f"member {member} had no finite score and continues as member {donor}"
                self._announcer.event("rescue", text, int(numbers[member]))
        if decision.ended:
            sizes = f"from {counted(len(own), 'member')} to {len(state.members)}"
            left, ended = (", ".join(map(str, each)) for each in (state.members.tolist(), decision.ended))
            text = f"the population goes {sizes}: {left} (ended: {ended})"
            self._announcer.event("ended", text, int(numbers[decision.ended[0]]))
        told = Generation(
            number=-(-int(own.sum()) // len(own)),
            members=members,
            place_steps=state.place_steps[members],
            update_steps=advance.steps // len(members) // advance.updates,
            steps=state.steps,
            seconds=time.monotonic() - self._began,
            scores=scores,
            hyperparams=self._exact(trained_with),
            decision=decision,
            metrics=advance.metrics,
            best_score=state.best,
            statistics=known,
        )
        means = {name: values.nanmean(1) for name, values in advance.metrics.items()}
        self._database.record_metrics(numbers, means, told.statistics, members)
        state.rounds[members] += 1
        self._since[members] = time.monotonic()
        return told

    def needed_record(self, decision: Decision) -> Record | None:
        """The best state there ever was, if somebody takes its weights."""
        return self._state.record if (decision.parents == len(decision.parents)).any() else None

    def _note_order(self, members: Int[Tensor, "part"], numbers: Int[Tensor, "pop"]) -> None:
        """Says that scores do not tell members apart, or rank them otherwise than training, when that is so again."""
        state = self._state
        if not self._config.pbt.copies:
            return
        scores, training = state.known.mean[members], state.training[members]
        state.ties = state.ties + 1 if _all_the_same(scores.tolist()) else 0
        against, pairs, likely = _disagreement(scores, training)
        state.contradictions = 0 if likely else state.contradictions + 1
        latest = int(numbers[members[0]])
        if state.ties == AGAIN:
            score = readable(float(scores[0]))
            text = f"all {len(members)} members score {score} again; returns in training tell them apart"
            self._announcer.event("tie", text, latest)
        if state.contradictions == AGAIN:
            text = (
                f"scores rank members otherwise than returns in training again, in {against} of {pairs} pairs; "
                "pbt.fitness: training and evaluation.deterministic: false score what is sampled"
            )
            self._announcer.event("rank", text, latest)

    def _numbers(self, part: Part) -> Int[Tensor, "pop"]:
        """Of everybody's latest generation, that of the part being its present one."""
        numbers = self._state.rounds - 1
        numbers[part.members] += 1
        return numbers

    def _scores(self, part: Part) -> Scores:
        """Fitness as configured; NaN for a member that is not healthy. Others have the score that they had."""
        members, known = part.members, self._state.known
        own = part.advance.scores if part.scores is None else part.scores
        # A member none of whose training episodes has ended is as good as it was.
        mean = torch.where(own.episodes > 0, own.mean, known.mean[members]) if part.scores is None else own.mean
        mean = mean.masked_fill(~part.advance.healthy, math.nan)
        return Scores(
            mean=known.mean.index_put((members,), mean),
            stderr=known.stderr.index_put((members,), own.stderr),
            episodes=known.episodes.index_put((members,), own.episodes),
        )

    def _statistics(self, part: Part, before: dict[str, Tensor], decision: Decision) -> dict[str, float]:
        state = self._state
        moved = torch.zeros(state.pop, dtype=torch.bool)
        for name, inherited in inherited_values(decision.hyperparameter_donors, before, state.record).items():
            moved |= decision.hyperparams[name] != inherited
        state.explorations += int(moved.sum())
        state.exploits += len(decision.recipients)
        known = {
            "population_size": float(len(state.members)),
            "exploitation_count": float(state.exploits),
            "exploration_count": float(state.explorations),
            "evaluation_steps": float(state.evaluation_steps),
            **self._strategy.statistics(),
        }
        rounds = int(state.rounds[state.members].sum()) + len(part.members)
        if rounds // len(state.members) > state.generation:  # the last of a generation
            known |= distances(*self._executor.vectors())
        ratios = [ratio for ratio in part.advance.value_loss_ratios.values() if math.isfinite(ratio)]
        return known | ({"post_exploit_value_loss_ratio": statistics.fmean(ratios)} if ratios else {})

    def _exact(self, hyperparams: dict[str, Float[Tensor, "pop"]]) -> dict[str, Float[Tensor, "pop"]]:
        """Hyperparameters as they are reported: in double precision, and as the configuration says them."""
        told = {}
        for name, column in hyperparams.items():
            known = {value: self._config.exact(name, value) for value in set(column.tolist())}
            told[name] = torch.tensor([known[value] for value in column.tolist()], dtype=torch.float64)
        return told


def _disagreement(scores: Float[Tensor, "part"], training: Float[Tensor, "part"]) -> tuple[int, int, bool]:
    """Pairs that two measures rank in opposite order, all pairs that both rank, and whether that may be chance.

    Where the measures have nothing to do with each other, Kendall's S, agreeing pairs minus opposite ones, has the
    variance n(n − 1)(2n + 5)/18.
    """
    known = scores.isfinite() & training.isfinite()
    x, y = scores[known].double(), training[known].double()
    ways = ((x[:, None] - x).sign() * (y[:, None] - y).sign()).triu(1)
    n, against, agreeing = len(x), int((ways < 0).sum()), int((ways > 0).sum())
    chance = (n * (n - 1) * (2 * n + 5) / 18) ** 0.5
    return against, against + agreeing, against - agreeing <= UNLIKELY * chance


def _all_the_same(scores: list[float]) -> bool:
    """Whether several members have one and the same score, which is finite."""
    return len(scores) > 1 and math.isfinite(scores[0]) and len(set(scores)) == 1
