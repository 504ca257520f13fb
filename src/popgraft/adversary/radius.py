"""The radius of the attack over a member's life."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config.adversary import Course


def scheduled_radius(
    initial: Float[Tensor, "pop"],
    final: float,
    age: Int[Tensor, "pop"],
    span: tuple[int, int],
    course: Course,
) -> Float[Tensor, "pop"]:
    """Radius in the update that is about to run, a function of progress alone.

        constant: ε₀
        linear:   ε₀ + (ε₁ − ε₀)p
        cosine:   ε₁ + (ε₀ − ε₁)(1 + cos πp)/2,   p = clip((age − begin)/(end − begin), 0, 1)

    Args:
        initial: ε₀ of every member.
        final: ε₁.
        age: updates made so far.
        span: begin and end of the course, updates.
        course: which of the three.
    """
    if course == "constant":
        return initial
    begin, end = span
    progress = ((age - begin) / max(end - begin, 1)).clamp(0, 1).to(initial.dtype)
    if course == "linear":
        return initial + (final - initial) * progress
    return final + (initial - final) * (1 + torch.cos(math.pi * progress)) / 2
