"""Population-based bandits: hyperparameters that a model of their effect proposes.

PB2 (Parker-Holder et al. 2020, arXiv:2002.02518): what a member's score gained in a generation is a function of its
hyperparameters, its score before and time, drawn from a Gaussian process. A recipient takes the hyperparameters whose
upper confidence bound is highest. Categorical ones are a bandit's of their own (arXiv:2106.15883), by itself and not in
the kernel: that paper's PB2-Mult.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config.population import EvolutionConfig
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt.evolution import Evolution
from popgraft.pbt.exp3 import Exp3
from popgraft.pbt.process import fitted
from popgraft.pbt.settings import refuse_unread
from popgraft.pbt.standing import Hyperparams, Standing

WINDOW = 256
"""Latest observations that the model is of: its cost grows with the cube of them, and the kernel forgets the others."""
OUTLIER = 2.0
"""Gains are clipped at so many standard deviations, as one collapse would otherwise hide all other differences."""
SPREADS = (0.5, 0.05, 0.005)
"""The bound is maximised over draws this far around the best so far, at first around the middle: everywhere."""
DRAWS = 512
"""How many each time."""


@dataclasses.dataclass(frozen=True)
class Gain:
    """What a member's score gained in a generation.

    Attributes:
        round: number of the member's generation.
        explored: whether the member became another's copy before it, and explored.
        before: score of the state that it began with.
        gain: by how much it was better after it; negative where it was worse.
        hyperparams: what it was trained with.
    """

    round: int
    explored: bool
    before: float
    gain: float
    hyperparams: Hyperparams


class PB2(Evolution):
    """Exploits as configured; recipients take hyperparameters by μ + √β σ, β = 0.2 + max(0, log 0.4 n) of n gains.

    Recipients of one decision choose in turn, as if what everybody else is about to train with were observed already
    (GP-BUCB, Desautels et al. 2014), so that they do not all take the same. All is recomputed from the history.
    """

    def __init__(self, config: EvolutionConfig, seed: int) -> None:
        super().__init__(config, seed)
        refuse_unread(config, ("explore_method", "explore_method_kwargs", "explore_always"))

    def _explored(self, standing: Standing, parents: Int[Tensor, "pop"], members: list[int]) -> dict[int, Hyperparams]:
        if not members:
            return {}
        gains, rounds = gains_of(standing)
        ahead = [
            Plan(member, standing.hyperparams[member], _score(standing, member), rounds[member] + 1)
            for member in range(standing.pop)
            if member not in members
        ]
        due = [Plan(member, {}, _score(standing, int(parents[member])), rounds[member] + 1) for member in members]
        return proposed(self.config.spaces, gains, standing, due, ahead)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is about to be observed.

    Attributes:
        member: whose generation it is.
        hyperparams: what it trains with; nothing where that is to be proposed.
        before: score of the state that it begins with.
        time: number of the generation.
    """

    member: int
    hyperparams: Hyperparams
    before: float
    time: int


def proposed(
    spaces: Sequence[HyperparamConfig],
    gains: Sequence[Gain],
    standing: Standing,
    due: Sequence[Plan],
    ahead: Sequence[Plan],
) -> dict[int, Hyperparams]:
    """Hyperparameters of those who are due, by member, in their order.

    Args:
        spaces: of the hyperparameters.
        gains: what has been observed.
        standing: whose streams the draws come from.
        due: whose hyperparameters are proposed.
        ahead: what everybody else is about to observe.
    """
    ranges = [space for space in spaces if space.is_continuous]
    found: dict[int, dict[str, float]] = {plan.member: {} for plan in due}
    for space in spaces:
        if space.is_categorical:
            bandit = _learnt(space, gains)
            for member, values in found.items():
                assert space.values is not None
                values[space.name] = space.values[bandit.draw(standing.rng("explore", space.name, member))]
    if ranges:
        model = Model(ranges, gains)
        for plan in ahead:
            model.imagine(plan.hyperparams, plan.before, plan.time)
        for plan in due:
            best = model.best(standing.rng("explore", "bandit", plan.member), plan.before, plan.time)
            model.imagine(best, plan.before, plan.time)
            found[plan.member] |= best
    return dict(found)


class Model:
    """A Gaussian process from a member's score and its hyperparameters to what a generation gains.

    Args:
        spaces: ranges of the hyperparameters, which become [0, 1] on their own scale.
        gains: what has been observed.
    """

    def __init__(self, spaces: Sequence[HyperparamConfig], gains: Sequence[Gain]) -> None:
        self.spaces = spaces
        latest = sorted(gains, key=lambda gain: gain.round)[-WINDOW:]
        before = [gain.before for gain in latest]
        self.low, self.span = min(before, default=0.0), max(before, default=0.0) - min(before, default=0.0)
        gained = torch.tensor([gain.gain for gain in latest], dtype=torch.float64)
        spread = gained.std(correction=0) if len(gained) else torch.ones(())
        y = ((gained - gained.mean()) / (spread if spread > 0 else 1.0)).clamp(-OUTLIER, OUTLIER)
        x = self._inputs((gain.hyperparams, gain.before) for gain in latest)
        self.process = fitted(x, torch.tensor([float(gain.round) for gain in latest], dtype=torch.float64), y)
        self.bonus = math.sqrt(0.2 + math.log(max(0.4 * len(latest), 1.0)))

    def imagine(self, values: Hyperparams, before: float, time: int) -> None:
        """Counts on what somebody is about to observe."""
        self.process = self.process.imagining(self._inputs([(values, before)]), torch.tensor([float(time)]).double())

    def best(self, rng: np.random.Generator, before: float, time: int) -> dict[str, float]:
        """Hyperparameters whose upper confidence bound is highest."""
        best = np.full(len(self.spaces), 0.5)
        for spread in SPREADS:
            near = best + spread * rng.uniform(-1, 1, (DRAWS, len(best)))
            shares = np.concatenate([best[None], near.clip(0, 1)])
            context = np.full((len(shares), 1), self._context(before))
            x = torch.from_numpy(np.concatenate([context, shares], 1))
            mean, deviation = self.process.at(x, torch.full((len(x),), float(time), dtype=torch.float64))
            best = shares[int((mean + self.bonus * deviation).argmax())]
        return {space.name: space.from_unit(float(share)) for space, share in zip(self.spaces, best, strict=True)}

    def _context(self, before: float) -> float:
        return min(max((before - self.low) / self.span, 0.0), 1.0) if self.span > 0 and math.isfinite(before) else 0.0

    def _inputs(self, known: Iterable[tuple[Hyperparams, float]]) -> Float[Tensor, "n d"]:
        rows = [
            [self._context(before), *(space.unit(values[space.name]) for space in self.spaces)]
            for values, before in known
        ]
        return torch.tensor(rows, dtype=torch.float64).reshape(len(rows), 1 + len(self.spaces))


def gains_of(standing: Standing) -> tuple[list[Gain], list[int]]:
    """What every generation of every member has gained, and the number of everybody's latest one."""
    known = {(past.generation, past.member): past for past in standing.history}
    last = {past.member: past for past in standing.history}
    scores = {place: past.score for place, past in known.items()}
    latest = {}
    for member in range(standing.pop):
        past, score = last.get(member), _score(standing, member)
        told = past is not None and (past.steps, past.score) == (int(standing.steps[member]), score)
        latest[member] = (past.generation + (not told)) if past is not None else 0
        scores[latest[member], member] = score
    found = []
    for (number, member), score in sorted(scores.items()):
        start = known.get((number - 1, member))
        if start is None:
            continue
        before = scores.get((start.parent_generation, start.parent), math.nan)
        gain = score - before if standing.mode == "max" else before - score
        here = known.get((number, member))
        values = standing.hyperparams[member] if here is None else here.hyperparams
        if math.isfinite(gain):
            found.append(Gain(number, start.parent != member, before, gain, values))
    return found, [latest[member] for member in range(standing.pop)]


def _score(standing: Standing, parent: int) -> float:
    if parent < standing.pop:
        return float(standing.scores.mean[parent])
    assert standing.best is not None, "there is no best state to return to yet"
    return float(standing.best.scores.mean)


def _learnt(space: HyperparamConfig, gains: Sequence[Gain]) -> Exp3:
    """The bandit of a categorical hyperparameter, whose plays are what recipients took.

    A reward is the gain's share of the way from the smallest to the largest one of its round.
    """
    assert space.values is not None
    choices = list(space.values)
    bandit = Exp3(len(choices))
    for number in sorted({gain.round for gain in gains}):
        together = [gain for gain in gains if gain.round == number]
        low, high = (extreme(gain.gain for gain in together) for extreme in (min, max))
        plays = []
        for gain in together:
            value = space.listed(gain.hyperparams[space.name])
            if gain.explored and value in choices:
                plays.append((choices.index(value), (gain.gain - low) / (high - low) if high > low else 0.0))
        bandit.learn(plays)
    return bandit
