"""Iterated population-based training (Chebykin et al. 2025, arXiv:2511.09190).

How long members should train between two decisions nobody knows. So a run begins with a short interval, and where it
stagnates begins anew with a longer one: from the best weights, shrunk and perturbed, and with hyperparameters from
which earlier iterations have come far.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Int
from pydantic import Field
from torch import Tensor

from popgraft.config.fields import Number, Positive, Section
from popgraft.config.population import EvolutionConfig
from popgraft.pbt.choice import Choice
from popgraft.pbt.curves import Curve
from popgraft.pbt.pb2 import PB2, Gain, Plan, proposed
from popgraft.pbt.ranking import elite_size
from popgraft.pbt.settings import READINESS, refuse_unread, settings_of
from popgraft.pbt.standing import Hyperparams, Past, Standing
from popgraft.state import Renewal

Share = Annotated[Number, Field(ge=0, le=1)]


class IPBTSettings(Section):
    """Arguments of the strategy."""

    growth: Annotated[Number, Field(ge=1)] = 2.0
    """Factor of the interval at every restart; at first it is one generation."""
    patience: Positive = 3
    """Evolutions in a row without an improvement after which a run begins anew."""
    slow: Annotated[Positive, Field(ge=2)] = 15
    """Evolutions within which the best score has to rise by a standard deviation of all best ones."""
    shrink: Share = 0.2
    """Factor λ of weights at a restart."""
    perturb: Share = 0.1
    """Factor σ of freshly drawn ones that are added."""
    fresh_weights: Share = 0.5
    """Share of members whose weights are all new instead."""
    fresh_hyperparams: Share = 0.5
    """Share of members whose hyperparameters are drawn instead of proposed."""


@dataclasses.dataclass
class Iteration:
    """What has happened since the latest restart.

    Attributes:
        number: how many there were before.
        interval: generations between two evolutions.
        begun: number of its first generation.
        evolved: generations after which the population has evolved.
        bests: best score of every one of them, the higher the better.
        failed: evolutions in a row without an improvement.
        initial: hyperparameters that every member began with; like the following ones empty before the first score.
        origins: as whom in the beginning of the iteration everybody's ancestor trained; −1 for an earlier one.
        heights: best score of the descendants of each; None where none has any.
    """

    number: int
    interval: int
    begun: int
    evolved: list[int] = dataclasses.field(default_factory=list)
    bests: list[float] = dataclasses.field(default_factory=list)
    failed: int = 0
    initial: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    origins: list[int] = dataclasses.field(default_factory=list)
    heights: list[float | None] = dataclasses.field(default_factory=list)


class IPBT(PB2):
    """Evolves as `pb2` at an interval, and begins anew with a longer one where the best score does not rise any more.

    It does not where its smoothed course has not risen `patience` times in a row, or by less than one standard
    deviation within `slow` evolutions; and if two longer intervals are left. Then the k best stay, and everybody else
    takes the weights of one of them, drawn uniformly; all weights are renewed. Hyperparameters are drawn, or have the
    highest upper confidence bound by how high the descendants of others have come in earlier iterations.

    Other than in the paper: the first interval after a restart has no second set of candidates, of which half would be
    dropped; within an iteration hyperparameters are proposed as `pb2` does, without trust regions, categorical ones by
    a bandit; the smoothing is that of `fire`; time between iterations is their number.

    Attributes:
        iteration: the present one.
        tried: of earlier iterations: number, hyperparameters that a member began with, and how high it has led.
    """

    together: ClassVar[bool] = True
    of_any_size: ClassVar[bool] = False

    def __init__(self, config: EvolutionConfig, seed: int, **kwargs: Any) -> None:
        super().__init__(config, seed)
        refuse_unread(config, READINESS)
        self.settings = settings_of(IPBTSettings, kwargs)
        self.iteration = Iteration(0, 1, 0)
        self.tried: list[tuple[int, dict[str, Any], float]] = []
        self._due = False

    def __call__(self, standing: Standing) -> Choice:
        """Decides; the reasons are those of `evolution`, and "restart".

        Raises:
            PopulationLost: no member has a finite score.
        """
        now = self.iteration
        scores = (standing.scores.mean if standing.mode == "max" else -standing.scores.mean).tolist()
        if not now.origins:
            names = [space.name for space in self.config.spaces]
            now.initial = [{name: values[name] for name in names} for values in standing.hyperparams]
            now.origins, now.heights = list(range(standing.pop)), [None] * standing.pop
        for origin, score in zip(now.origins, scores, strict=True):
            if origin >= 0 and math.isfinite(score):
                height = now.heights[origin]
                now.heights[origin] = score if height is None else max(height, score)
        self._due = (standing.number + 1 - now.begun) % now.interval == 0
        if self._due and any(map(math.isfinite, scores)):
            now.bests.append(max(score for score in scores if math.isfinite(score)))
            worthwhile = standing.left is None or standing.left >= 2 * self._interval(now.number + 1)
            if self._stagnates() and worthwhile:
                return self._restarted(standing)
        choice = super().__call__(self._by_evolutions(standing))
        if self._due:
            now.evolved.append(standing.number)
        now.origins = [[*now.origins, -1][parent] for parent in choice.parents.tolist()]
        return choice

    def statistics(self) -> dict[str, float]:
        """Restarts so far, and generations between two evolutions."""
        return {"restarts": float(self.iteration.number), "interval": float(self.iteration.interval)}

    def state_dict(self) -> dict[str, Any]:
        """The present iteration, and what earlier ones have shown."""
        tried = [list(each) for each in self.tried]
        return {"iteration": dataclasses.asdict(self.iteration), "tried": tried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.iteration = Iteration(**state["iteration"])
        self.tried = [(number, values, height) for number, values, height in state["tried"]]

    def _is_ready(self, standing: Standing) -> bool:
        return self._due and self.exploit is not None

    def _explored(self, standing: Standing, parents: Int[Tensor, "pop"], members: list[int]) -> dict[int, Hyperparams]:
        """Nothing in the middle of an interval, in which only who has failed takes another one's place."""
        return super()._explored(standing, parents, members) if self._due else {}

    def _interval(self, number: int) -> int:
        return round(self.settings.growth**number)

    def _stagnates(self) -> bool:
        """Counts whether the best scores still rise."""
        now = self.iteration
        bests = torch.tensor(now.bests, dtype=torch.float64)
        if len(bests) < 2:
            return False
        before = bests[: max(0, len(bests) - self.settings.slow + 1)]
        slow = len(before) > 0 and float(bests.max() - before.max()) < float(bests.std())
        smooth = Curve.of(bests).smooth
        now.failed = 0 if smooth[-1] > smooth[-2] else now.failed + 1
        return slow or now.failed >= self.settings.patience

    def _by_evolutions(self, standing: Standing) -> Standing:
        """The same with a history of evolutions in place of generations, of the present iteration alone.

        Of a member that was rescued in between it is not known what it began with.
        """
        begun, numbers = self.iteration.begun, {generation: i for i, generation in enumerate(self.iteration.evolved)}

        def recall() -> Sequence[Past]:
            found: list[Past] = []
            latest: dict[int, int] = {}
            for past in standing.history:
                if past.generation in numbers:
                    latest[past.member] = len(found)
                    now, then = numbers[past.generation], numbers.get(past.parent_generation, -1)
                    found.append(dataclasses.replace(past, generation=now, parent_generation=then))
                elif past.generation >= begun and past.parent != past.member and past.member in latest:
                    place = latest[past.member]
                    found[place] = dataclasses.replace(found[place], parent=-1)
            return found

        return dataclasses.replace(standing, recall=recall)

    def _restarted(self, standing: Standing) -> Choice:
        """Begins the next iteration."""
        now, settings, pop = self.iteration, self.settings, standing.pop
        rng = standing.rng("restart")
        healthy = standing.scores.mean.isfinite()
        top = [i for i in standing.order[: elite_size(pop, self.config.truncation_ratio)].tolist() if healthy[i]]
        parents = torch.tensor([i if i in top else top[int(rng.integers(len(top)))] for i in range(pop)])
        fresh, drawn = (
            set(rng.permutation(pop)[: round(share * pop)].tolist())
            for share in (settings.fresh_weights, settings.fresh_hyperparams)
        )
        self.tried += [
            (now.number, values, height)
            for values, height in zip(now.initial, now.heights, strict=True)
            if height is not None
        ]
        self.iteration = Iteration(now.number + 1, self._interval(now.number + 1), standing.number + 1)
        mixed = Renewal(settings.shrink, settings.perturb)
        return Choice(
            parents,
            explored=self._reproposed(standing, drawn),
            reasons=dict.fromkeys(range(pop), "restart"),
            renewals={member: Renewal(0.0, 1.0) if member in fresh else mixed for member in range(pop)},
        )

    def _reproposed(self, standing: Standing, drawn: set[int]) -> dict[int, Hyperparams]:
        """Hyperparameters of everybody: drawn for some, and for others proposed by how high earlier ones have led."""
        time = self.iteration.number
        found: dict[int, Hyperparams] = {
            member: {
                space.name: space.sample(standing.rng("restart", space.name, member)) for space in self.config.spaces
            }
            for member in sorted(drawn)
        }
        known = [Gain(number, True, 0.0, height, values) for number, values, height in self.tried]
        ahead = [Plan(member, values, 0.0, time) for member, values in found.items()]
        due = [Plan(member, {}, 0.0, time) for member in range(standing.pop) if member not in drawn]
        return found | proposed(self.config.spaces, known, standing, due, ahead)
