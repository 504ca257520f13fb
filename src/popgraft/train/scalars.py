"""What a generation has to show as curves: the same names wherever they are drawn."""

import math
from collections.abc import Iterator
from typing import NamedTuple

from popgraft.train.observer import Generation

POPULATION = "population"


class Scalar(NamedTuple):
    """A point of a curve.

    Attributes:
        place: `member_NN`, or `population`.
        tag: name of the curve, as `train/value_loss`.
        value: a finite number.
        step: environment steps taken at the member's place, or by the whole population, when it was measured.
    """

    place: str
    tag: str
    value: float
    step: int


def places(pop: int) -> list[str]:
    """Name of every member, with as many digits as the largest number has, and two at least."""
    width = max(2, len(str(pop - 1)))
    return [f"member_{member:0{width}d}" for member in range(pop)]


def scalars(generation: Generation) -> Iterator[Scalar]:
    """Every update of everybody who has trained, the score, and what is known of the population."""
    scores = generation.scores.mean
    names = places(len(scores))
    members, taken = generation.members.tolist(), generation.place_steps.tolist()
    own = [(names[member], steps) for member, steps in zip(members, taken, strict=True)]
    updates = next(iter(generation.metrics.values())).shape[1]
    for metric, values in generation.metrics.items():
        for (place, steps), row in zip(own, values.tolist(), strict=True):
            for update, value in enumerate(row):
                if math.isfinite(value):  # an update without finished episodes has no return, a bound may be off
                    step = steps - (updates - update - 1) * generation.update_steps
                    yield Scalar(place, tag_of(metric), value, step)
    for (place, steps), score in zip(own, scores[generation.members].tolist(), strict=True):
        if math.isfinite(score):
            yield Scalar(place, "pbt/score", score, steps)
    for name, value in _summary(generation).items():
        yield Scalar(POPULATION, f"pbt/{name}", value, generation.steps)


def tag_of(metric: str) -> str:
    """The curve that a metric of an update belongs to."""
    if "/" in metric:
        return metric
    return f"rollout/{metric}" if metric.startswith("ep_") else f"train/{metric}"


def _summary(generation: Generation) -> dict[str, float]:
    scores = generation.scores.mean
    healthy = scores[scores.isfinite()]
    summary = {
        "ready_members": float(len(healthy)),
        **generation.statistics,
    }
    if len(healthy):
        summary |= {
            "mean_performance": healthy.mean().item(),
            "std_performance": healthy.std(correction=0).item(),
            "min_performance": healthy.min().item(),
            "max_performance": healthy.max().item(),
        }
    return summary
