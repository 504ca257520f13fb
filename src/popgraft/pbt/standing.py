"""What a decision sees: the population as it stands, and how it came to stand there."""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config.population import EvolutionConfig, Mode
from popgraft.hyperparams import Value
from popgraft.pbt.ranking import is_better, rank
from popgraft.rng import numpy_generator
from popgraft.state import Record, Scores

Hyperparams = Mapping[str, Value]
"""What one member trains with, by name."""


@dataclasses.dataclass(frozen=True)
class Best:
    """The best state there ever was.

    Attributes:
        scores: its score, one row.
        hyperparams: what it was trained with.
        age: updates behind it.
        member: who that is; None where it is nobody any more.
    """

    scores: Scores
    hyperparams: Hyperparams
    age: int
    member: int | None = None


@dataclasses.dataclass(frozen=True)
class Past:
    """One member in one generation that has been decided on; of models that are trained elsewhere, one report.

    Attributes:
        generation: the member's own count of them.
        member: its place.
        score: its fitness; NaN if it could not be scored.
        stderr: standard error of the score; NaN where it is not known.
        episodes: episodes that the score was taken over.
        steps: environment steps taken at this place by then.
        hyperparams: what it was trained with.
        parent: whose weights went on at this place; its own number where it survived.
        parent_generation: when the parent was what it was.
        hyperparameter_parent: whose hyperparameters went on there.
    """

    generation: int
    member: int
    score: float
    stderr: float
    episodes: int
    steps: int
    hyperparams: Hyperparams
    parent: int
    parent_generation: int
    hyperparameter_parent: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Standing:
    """The population at a decision: all that a strategy may look at.

    Attributes:
        number: number of the decision, which names its draws; of those at which everybody decides, the generation.
        scores: fitness of every member, with standard errors and episodes; not finite for one that has failed.
        hyperparams: what every member has been trained with, a mapping for each.
        ages: updates behind every member's state, wherever they were made.
        steps: environment steps taken at every place.
        spent: those of them that the place's latest generation took.
        training: mean return of the episodes that ended in training during that generation; NaN where it is not known.
        seconds: how long that generation took by the clock, which no two runs agree on; NaN where it is not known.
        best: the best state there ever was; None before the first.
        compared: members whose scores can be compared, in ascending order.
        deciding: those of them that may become somebody else now.
        together: whether everybody decides at once, and not one after the other.
        heirs: how many of the others have become somebody else since they were scored.
        mode: whether high or low scores are good.
        seed: root of all draws.
        occasion: what the decision is for, as the first words of a warning.
        recall: fetches the history.
        left: generations that are yet to come; None where nobody knows.
    """

    number: int
    scores: Scores
    hyperparams: Sequence[Hyperparams]
    ages: Int[Tensor, "pop"]
    steps: Int[Tensor, "pop"]
    spent: Int[Tensor, "pop"]
    training: Float[Tensor, "pop"]
    seconds: Float[Tensor, "pop"]
    best: Best | None
    compared: Int[Tensor, "compared"]
    deciding: Int[Tensor, "deciding"]
    together: bool
    heirs: int
    mode: Mode
    seed: int
    occasion: str
    recall: Callable[[], Sequence[Past]]
    left: int | None = None

    @property
    def pop(self) -> int:
        """Members of the population."""
        return len(self.scores.mean)

    @functools.cached_property
    def history(self) -> Sequence[Past]:
        """All earlier generations of all members, by generation and member."""
        return self.recall()

    @property
    def order(self) -> Int[Tensor, "pop"]:
        """Everybody, the best first: by score, and by return in training where scores are equal."""
        return rank(self.scores.mean, self.mode, self.training)

    def is_better(self, one: int, other: int) -> bool:
        """Whether a member is healthy, and the other one is not or strictly worse: by score, and by return in training
        where scores are equal.
        """
        score, others = (float(self.scores.mean[member]) for member in (one, other))
        if score == others and self.training[[one, other]].isfinite().all():
            score, others = (float(self.training[member]) for member in (one, other))
        return is_better(score, others, self.mode)

    def rng(self, purpose: str, *names: str | int) -> np.random.Generator:
        """A stream of random numbers of this decision's own: the same for the same names, and no other's."""
        return numpy_generator(self.seed, purpose, self.number, *names)

    def hyperparams_of(self, parent: int) -> Hyperparams:
        """What a parent was trained with, the best state there ever was among them."""
        if parent < self.pop:
            return self.hyperparams[parent]
        assert self.best is not None, "there is no best state to return to yet"
        return self.best.hyperparams

    def among(self, members: Int[Tensor, "members"]) -> "Standing":
        """The same for some members alone, whose places become 0, 1, …; the history keeps the places that they had."""
        known = self.scores
        scores = Scores(known.mean[members], known.stderr[members], known.episodes[members])
        everybody = torch.arange(len(members))
        columns = {name: getattr(self, name)[members] for name in ("ages", "steps", "spent", "training", "seconds")}
        rows = [self.hyperparams[member] for member in members.tolist()]
        parts = {"scores": scores, "hyperparams": rows, "compared": everybody, "deciding": everybody, **columns}
        if self.best is not None:
            places: dict[int | None, int] = {member: place for place, member in enumerate(members.tolist())}
            parts["best"] = dataclasses.replace(self.best, member=places.get(self.best.member))
        return dataclasses.replace(self, **parts)


def everybody(
    number: int,
    scores: Scores,
    hyperparams: Mapping[str, Float[Tensor, "pop"]],
    config: EvolutionConfig,
    seed: int,
    record: Record | None = None,
    **known: Any,
) -> Standing:
    """The standing at which everybody decides at once, unless `known` says otherwise.

    Args:
        number: number of the decision.
        scores: fitness of every member.
        hyperparams: values that everybody has been trained with.
        config: how the population evolves.
        seed: root of all draws.
        record: the best state there ever was.
        known: further attributes of the standing; by default nobody has any age, steps or history.
    """
    pop = len(scores.mean)
    nothing, everyone = torch.zeros(pop, dtype=torch.long), torch.arange(pop)
    best = None
    if record is not None:
        (values,) = _rows(record.state.hyperparams, 1)
        best = Best(record.scores, values, int(record.state.age))
    parts = {
        "ages": nothing,
        "steps": nothing,
        "spent": nothing,
        "training": torch.full((pop,), math.nan),
        "seconds": torch.full((pop,), math.nan),
        "compared": everyone,
        "deciding": everyone,
        "together": True,
        "heirs": 0,
        "occasion": f"generation {number}",
        "recall": tuple,
        **known,
    }
    return Standing(
        number=number,
        scores=scores,
        hyperparams=_rows(hyperparams, pop),
        best=best,
        mode=config.metric_mode,
        seed=seed,
        **parts,
    )


def _rows(columns: Mapping[str, Tensor], pop: int) -> list[Hyperparams]:
    """The values of every member by name; each column is fetched from its device once."""
    values = {name: column.tolist() for name, column in columns.items()}
    return [{name: column[row] for name, column in values.items()} for row in range(pop)]
