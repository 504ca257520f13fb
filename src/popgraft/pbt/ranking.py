"""Who is better than whom: a member whose score is not finite is unhealthy, and ranks last in either mode."""

import math

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config.population import Mode
from popgraft.errors import PopulationLost


def rank(
    scores: Float[Tensor, "pop"], mode: Mode, between_equals: Float[Tensor, "pop"] | None = None
) -> Int[Tensor, "pop"]:
    """Member indices, best first; unhealthy members last in either mode.

    Args:
        scores: fitness of every member.
        mode: whether high or low numbers are good.
        between_equals: what decides between equal scores; where it does not, the lower index goes first.
    """
    order = torch.arange(len(scores))
    for numbers in (scores,) if between_equals is None else (between_equals, scores):
        cost = numbers if mode == "min" else -numbers
        order = order[torch.argsort(torch.where(numbers.isfinite(), cost, math.inf)[order], stable=True)]
    return order


def elite_size(pop: int, ratio: float) -> int:
    """k = max(1, ⌊pop · ratio⌋), at most ⌊pop / 2⌋: how many are copied from, and how many are replaced."""
    share = math.floor(pop * ratio + 1e-9)  # 100 · 0.29 is 28.999… in binary
    return min(max(1, share), pop // 2)


def is_better(score: float, other: float, mode: Mode) -> bool:
    """Whether a score is that of a healthy member, and the other one is not or strictly worse."""
    if not (math.isfinite(score) and math.isfinite(other)):
        return math.isfinite(score)
    return score > other if mode == "max" else score < other


def rescue(
    parents: Int[Tensor, "pop"], scores: Float[Tensor, "rows"], ratio: float, mode: Mode, rng: np.random.Generator
) -> Int[Tensor, "pop"]:
    """Gives every unhealthy member without a healthy parent one of the healthy among the k best, drawn uniformly.

    Args:
        parents: outcome of the exploit method.
        scores: fitness of every member, and of whoever else can be a parent.
        ratio: share of those that k stands for (`elite_size`).
        mode: whether high or low scores are good.
        rng: source of the draws.

    Returns:
        The parent of every member, which is healthy.

    Raises:
        PopulationLost: nobody is healthy.
    """
    healthy = scores.isfinite()
    if not healthy.any():
        raise PopulationLost(
            f"no member of the population of {len(parents)} has a finite score, so there is nobody to go on from. "
            "Lower model.learning_rate or the upper bound that pbt.hyperparams gives it, "
            "check that rewards are finite and of moderate size, and that the environment runs on its own"
        )
    elite = [member for member in rank(scores, mode)[: elite_size(len(scores), ratio)].tolist() if healthy[member]]
    parents = parents.clone()
    for member in (~healthy[parents]).nonzero().flatten().tolist():
        parents[member] = elite[rng.integers(len(elite))]
    return parents
