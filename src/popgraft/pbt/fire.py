"""Faster improvement rate population-based training (Dalibard & Jaderberg 2021, arXiv:2109.13800).

A score says who is best now. Who is on the way to a better one shows by the rate at which it improves, if it trains as
the best do now: so evaluators take the weights of somebody, and the hyperparameters of the best of those who care for
their scores alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from popgraft.config.fields import Number, Positive, Section
from popgraft.config.population import EXPLORE, EvolutionConfig, Mode
from popgraft.errors import ConfigError
from popgraft.pbt.choice import Choice
from popgraft.pbt.curves import Curve, best_score_difference, chance, overlap
from popgraft.pbt.explore import Explore
from popgraft.pbt.ranking import elite_size, rank, rescue
from popgraft.pbt.settings import READINESS, WHO_COPIES, refuse_unread, settings_of
from popgraft.pbt.standing import Hyperparams, Past, Standing
from popgraft.pbt.strategy import Strategy

LONGEST = 128
"""Latest generations of a curve that are looked at; smoothing costs the cube of them."""


class FireSettings(Section):
    """Arguments of the strategy."""

    subpopulations: Annotated[Positive, Field(ge=2)] = 2
    """Parts of the population: the first evolves by score, every other one by how fast its members improve."""
    evaluators: Annotated[Positive, Field(ge=2)] | None = None
    """Members that measure this, which are the last: two or more, whose curves are compared; null: a quarter of the
    population."""
    max_evaluation: Positive = 10
    """Generations after which an evaluation ends that has shown nothing."""
    significance: Annotated[Number, Field(gt=0, lt=1)] = 0.01
    """Probability at which it is no chance any more that an evaluator is above the member that it is compared with."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What an evaluator does.

    Attributes:
        parent: whose weights it began with.
        child: whose hyperparameters it trains with, of the part before; the best that was not a fresh copy.
        begun: number of the decision.
    """

    parent: int
    child: int
    begun: int


class Fire(Strategy):
    """The first part evolves by score, every other one by rate of improvement, each by truncation.

    An evaluator's curve is compared with those of all evaluators of the same part: the sum of its best score
    differences is the fitness of its `parent`. Where it is above the curve of its `child`, beyond chance, the child
    takes its weights, and its own hyperparameters stay. An evaluation ends with that, with a parent or child that has
    become somebody else, and where it shows nothing: after T generations, with a sign test above
    significance + max(0, 1 − T/max_evaluation), or without an overlap when T has come to max_evaluation.

    Beyond the paper: curves have a point for every generation, and are smoothed by the likeliest of some Gaussian
    processes. Curves without an overlap are tested from their beginnings. Of several evaluators that succeed
    with the same child the one with the largest difference does. In a part without evaluated members the best is the
    one with the highest score. A member that has failed is rescued by its own part, if it can.

    Attributes:
        parts: members of every part.
        evaluators: the other members.
        tasks: of every evaluator; None: nothing to do.
        evaluated: when the latest evaluation of every member began; −1: never.
        explore: how hyperparameters of recipients move; None: they do not.
    """

    together: ClassVar[bool] = True
    of_any_size: ClassVar[bool] = False

    def __init__(self, config: EvolutionConfig, seed: int, **kwargs: Any) -> None:
        super().__init__(config, seed)
        refuse_unread(config, (*WHO_COPIES, *READINESS))
        self.settings = settings_of(FireSettings, kwargs)
        size, count = config.population_size, self.settings.subpopulations
        evaluators = max(2, size // 4) if self.settings.evaluators is None else self.settings.evaluators
        rest = size - evaluators
        if rest < 2 * count:
            raise ConfigError(
                f"{count} subpopulations and {evaluators} evaluators in a population of {size} leave less than 2 "
                f"members for each; raise pbt.population_size to {2 * count + evaluators}, or set fewer of them"
            )
        self.parts = [list(range(rest * i // count, rest * (i + 1) // count)) for i in range(count)]
        self.evaluators = list(range(rest, size))
        self.tasks: list[Task | None] = [None] * evaluators
        self.evaluated = [-1] * size
        self.successes = 0
        self.explore: Explore | None = None
        if config.explores:
            self.explore = EXPLORE.make(config.explore_method, config, **config.explore_method_kwargs)

    def __call__(self, standing: Standing) -> Choice:
        """Decides; the reasons are "exploit", "faster", "evaluation" and "rescue".

        Raises:
            PopulationLost: no member has a finite score.
        """
        curves = _Curves(standing, self.evaluators)
        fitness = self._fitness(standing, curves)
        parents, adopted = torch.arange(standing.pop), torch.arange(standing.pop)
        reasons: dict[int, str] = {}
        for part in range(len(self.parts)):
            for loser, winner in self._exploited(standing, fitness, part):
                parents[loser], adopted[loser], reasons[loser] = winner, winner, "exploit"
        failed = (~standing.scores.mean.isfinite()).nonzero().flatten().tolist()
        changed = {*reasons, *failed}
        for member in changed:
            self.evaluated[member] = standing.number  # an evaluation of others is due first
        for child, evaluator in self._succeeded(standing, curves, changed).items():
            parents[child], reasons[child] = evaluator, "faster"
        for evaluator, task in self._begun(standing, fitness, changed).items():
            parents[evaluator], adopted[evaluator], reasons[evaluator] = task.parent, task.child, "evaluation"
        self._rescue(standing, parents, adopted, reasons)
        explored: dict[int, Hyperparams] = {}
        if self.explore is not None:
            for member in sorted(member for member, why in reasons.items() if why in ("exploit", "rescue")):
                explored[member] = self.explore(standing, member, standing.hyperparams_of(int(adopted[member])))
        return Choice(parents, adopted, explored, reasons)

    def statistics(self) -> dict[str, float]:
        """Evaluators at work, and how often one has been faster."""
        return {"evaluations": float(len(self._at_work)), "faster": float(self.successes)}

    def state_dict(self) -> dict[str, Any]:
        """What evaluators do, and when whom they have evaluated."""
        tasks = [None if task is None else dataclasses.astuple(task) for task in self.tasks]
        return {
            "tasks": [task and list(task) for task in tasks],
            "evaluated": list(self.evaluated),
            "successes": self.successes,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.tasks = [task and Task(*task) for task in state["tasks"]]
        self.evaluated, self.successes = list(state["evaluated"]), state["successes"]

    @property
    def _at_work(self) -> dict[int, Task]:
        """What every evaluator does that has something to do."""
        return {place: task for place, task in zip(self.evaluators, self.tasks, strict=True) if task is not None}

    def _fitness(self, standing: Standing, curves: "_Curves") -> Float[Tensor, "pop"]:
        """The score of members of the first part; of those who are evaluated, the sum of best score differences."""
        fitness = torch.full((standing.pop,), float("nan"), dtype=torch.float64)
        fitness[self.parts[0]] = curves.scores[self.parts[0]]
        at_work = {place: task for place, task in self._at_work.items() if curves.scores[place].isfinite()}
        for part in self.parts[1:]:
            own = {task.parent: place for place, task in at_work.items() if task.parent in part}
            for member, place in own.items():
                if curves.scores[member].isfinite():
                    others = [other for other in own.values() if other != place]
                    fitness[member] = sum(best_score_difference(curves[place], curves[other]) for other in others)
        return fitness

    def _exploited(self, standing: Standing, fitness: Float[Tensor, "pop"], part: int) -> list[tuple[int, int]]:
        """Who of a part becomes whom: each of the k worst one of the k best, drawn uniformly, if that is better."""
        own = torch.tensor([member for member in self.parts[part] if fitness[member].isfinite()], dtype=torch.long)
        order, rng = own[rank(fitness[own], "max")].tolist(), standing.rng("exploit", part)
        k = elite_size(len(order), self.config.truncation_ratio)
        pairs = [(loser, order[int(rng.integers(k))]) for loser in order[len(order) - k :]]
        return [(loser, winner) for loser, winner in pairs if fitness[winner] > fitness[loser]]

    def _succeeded(self, standing: Standing, curves: "_Curves", changed: set[int]) -> dict[int, int]:
        """Children that take the weights of their evaluator; ends what has come to an end."""
        found: dict[int, tuple[float, int]] = {}
        for index, place in enumerate(self.evaluators):
            task = self.tasks[index]
            if task is None:
                continue
            if changed.intersection((place, task.parent, task.child)):
                self.tasks[index] = None
                continue
            own, child = curves[place], curves[task.child]
            difference, luck = best_score_difference(own, child), chance(own, child)
            if difference > 0 and luck < self.settings.significance:
                found[task.child] = max(found.get(task.child, (0.0, place)), (difference, place))
            elif not self._is_open(standing.number - task.begun, overlap(own, child) is not None, luck):
                self.tasks[index] = None
        for index, task in enumerate(self.tasks):
            if task is not None and not found.keys().isdisjoint((task.parent, task.child)):
                self.tasks[index] = None
        self.successes += len(found)
        return {child: place for child, (_, place) in sorted(found.items())}

    def _is_open(self, time: int, overlaps: bool, luck: float) -> bool:
        """Whether an evaluation of so many generations may yet show something."""
        longest, level = self.settings.max_evaluation, self.settings.significance
        return luck <= level + max(0.0, 1 - time / longest) and (overlaps or time < longest)

    def _begun(self, standing: Standing, fitness: Float[Tensor, "pop"], changed: set[int]) -> dict[int, Task]:
        """What idle evaluators begin: with members that have waited longest."""
        busy, begun = {task.parent for task in self._at_work.values()}, {}
        free = [member for part in self.parts[1:] for member in part if member not in busy | changed]
        waiting = sorted(free, key=lambda member: (self.evaluated[member], member))
        for index, place in enumerate(self.evaluators):
            if self.tasks[index] is None and waiting:
                child = self._best(standing, fitness, self._part_of(waiting[0]) - 1, changed)
                if child is not None:
                    parent = waiting.pop(0)
                    self.tasks[index] = begun[place] = Task(parent, child, standing.number)
                    self.evaluated[parent] = standing.number
        return begun

    def _best(self, standing: Standing, fitness: Float[Tensor, "pop"], part: int, changed: set[int]) -> int | None:
        """The fittest of a part that goes on as it is; by score where nobody is evaluated."""
        own = torch.tensor([member for member in self.parts[part] if member not in changed], dtype=torch.long)
        candidates: list[tuple[Tensor, Mode]] = [(fitness[own], "max"), (standing.scores.mean[own], standing.mode)]
        return next(
            (int(own[rank(numbers, mode)[0]]) for numbers, mode in candidates if numbers.isfinite().any()), None
        )

    def _part_of(self, member: int) -> int:
        return next(part for part, members in enumerate(self.parts) if member in members)

    def _rescue(
        self, standing: Standing, parents: Int[Tensor, "pop"], adopted: Int[Tensor, "pop"], reasons: dict[int, str]
    ) -> None:
        """Gives everybody who would go on without a finite score a parent of its own part, or of any if all failed."""
        healthy = standing.scores.mean.isfinite()
        for part, members in enumerate([*self.parts, self.evaluators]):
            own = torch.tensor(members)
            lost = own[~healthy[parents[own]]]
            if len(lost):
                pool = own if healthy[own].any() else torch.arange(standing.pop)
                scores, rng = standing.scores.mean[pool], standing.rng("rescue", part)
                chosen = pool[rescue(torch.arange(len(pool)), scores, self.config.truncation_ratio, standing.mode, rng)]
                for member in lost.tolist():
                    donor = int(chosen[(pool == member).nonzero()])
                    parents[member], adopted[member], reasons[member] = donor, donor, "rescue"


class _Curves:
    """Everybody's curve, from when it became another one's copy; of one that was taken over, its evaluator's before.

    Attributes:
        scores: everybody's latest score, the higher the better.
    """

    def __init__(self, standing: Standing, evaluators: list[int]) -> None:
        self._sign = 1.0 if standing.mode == "max" else -1.0
        self.scores = self._sign * standing.scores.mean.double()
        self._evaluators, self._number = set(evaluators), standing.number
        self._past: dict[tuple[int, int], Past] = {(past.generation, past.member): past for past in standing.history}
        self._known: dict[int, Curve] = {}

    def __getitem__(self, member: int) -> Curve:
        if member not in self._known:
            self._known[member] = Curve.of(torch.tensor(self._points(member)[::-1], dtype=torch.float64))
        return self._known[member]

    def _points(self, member: int) -> list[float]:
        """The latest first."""
        points, place = [float(self.scores[member])], member
        for generation in range(self._number - 1, max(-1, self._number - LONGEST), -1):
            past = self._past.get((generation, place))
            parent = place if past is None else past.parent
            if past is None or (parent != place and (parent not in self._evaluators or place in self._evaluators)):
                break
            place = parent
            points.append(self._sign * self._past[generation, place].score)
        return points
