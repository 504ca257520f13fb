"""Which of two training curves improves faster, as FIRE PBT asks (Dalibard & Jaderberg 2021, arXiv:2109.13800).

A curve is a member's score after each of some generations; higher is better. Curves are compared where they overlap:
from where both have come to the same smoothed score, over as many generations as both have from there on.
"""

import dataclasses
import itertools
import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.pbt.process import Kernel, Process

KERNELS = [
    Kernel(*torch.tensor([variance, length, 0.0, noise], dtype=torch.float64))
    for variance, length, noise in itertools.product((1.0, 10.0), (0.2, 1.0, 5.0), (1e-3, 0.03, 0.3, 1.0))
]
"""Of how smooth a curve may be: variance, length as a share of the curve, and noise, of scores of variance 1."""
SHIFTS = 10
"""Shifts of a curve that begins above all of another one, which are tried to make both overlap."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """Scores of a member over generations.

    Attributes:
        raw: as they were measured.
        smooth: without their noise.
    """

    raw: Float[Tensor, "n"]
    smooth: Float[Tensor, "n"]

    @classmethod
    def of(cls, scores: Float[Tensor, "n"]) -> "Curve":
        """Smooths by regression of a Gaussian process: the likeliest of `KERNELS`."""
        y = scores.double()
        spread = y.std(correction=0)
        if len(y) < 3 or spread == 0:
            return cls(y, y)
        x, now = torch.linspace(0, 1, len(y), dtype=y.dtype).unsqueeze(1), torch.zeros_like(y)
        processes = [Process(kernel, x, now, (y - y.mean()) / spread) for kernel in KERNELS]
        mean, _ = max(processes, key=lambda process: float(process.likelihood)).at(x, now)
        return cls(y, mean * spread + y.mean())

    def lowered(self, by: float) -> "Curve":
        """The same curve, lower everywhere."""
        return Curve(self.raw - by, self.smooth - by)


class Overlap(NamedTuple):
    """Where two curves have come to the same score, and how many generations both have from there on."""

    one: int
    other: int
    length: int


def overlap(one: Curve, other: Curve) -> Overlap | None:
    """From where the curve that begins lower has come to where the other one begins; None: it never does.

    Of the generation before and the one after it, that whose smoothed score is nearer.
    """
    first, second = float(one.smooth[0]), float(other.smooth[0])
    i, j = (_reached(one, second), 0) if first < second else (0, _reached(other, first))
    return None if i is None or j is None else Overlap(i, j, min(len(one.raw) - i, len(other.raw) - j))


def best_score_difference(one: Curve, other: Curve) -> float:
    """By how much the best score of one curve within the overlap is above that of the other.

    One that begins above all of the other is lowered until both overlap, by as much as serves it best; a curve that
    never comes to where the other one begins gains nothing, and loses nothing.
    """
    found = _difference(one, other)
    if found is not None:
        return found
    if one.smooth[0] < other.smooth[0]:
        return 0.0
    low, high = float(one.smooth[0] - other.smooth.max()), float(one.smooth[0] - other.smooth.min())
    shifts = [low + (high - low) * step / SHIFTS for step in range(SHIFTS)]
    return max(0.0, *(_difference(one.lowered(shift), other) or 0.0 for shift in shifts))


def chance(one: Curve, other: Curve) -> float:
    """How likely one curve would be above the other as often as it is, if either were as likely at every generation.

    A sign test over the overlap; of curves without one, over both from their beginnings.
    """
    i, j, length = overlap(one, other) or Overlap(0, 0, min(len(one.raw), len(other.raw)))
    wins = int((one.raw[i : i + length] > other.raw[j : j + length]).sum())
    ways: int = sum(math.comb(length, k) for k in range(wins, length + 1))
    return ways / float(2**length)


def _reached(curve: Curve, score: float) -> int | None:
    """When a curve has come to a score, but for rounding."""
    values = curve.smooth.tolist()
    after = next((place for place, value in enumerate(values) if value >= score - 1e-9 * abs(score)), None)
    if after and score - values[after - 1] < values[after] - score:
        return after - 1
    return after


def _difference(one: Curve, other: Curve) -> float | None:
    common = overlap(one, other)
    if common is None:
        return None
    i, j, length = common
    return float(one.raw[i : i + length].max() - other.raw[j : j + length].max())
