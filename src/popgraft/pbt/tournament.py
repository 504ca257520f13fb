"""Exploit by comparing everybody with one other (Jaderberg et al. 2017, arXiv:1711.09846, §4.1.1)."""

import abc
import math

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from popgraft.pbt.exploit import Exploit
from popgraft.pbt.standing import Standing
from popgraft.pbt.welch import p_value

SIGNIFICANCE = 0.05
"""Largest p-value at which the t-test copies."""


class Tournament(Exploit):
    """Each member draws one opponent uniformly from the others, and copies it if that wins."""

    def __call__(self, standing: Standing) -> Int[Tensor, "pop"]:
        """The parent of every member."""
        parents = torch.arange(standing.pop)
        for member, opponent in enumerate(_opponents(standing.pop, standing.rng("exploit"))):
            if self.wins(standing, opponent, member):
                parents[member] = opponent
        return parents

    @abc.abstractmethod
    def wins(self, standing: Standing, opponent: int, member: int) -> bool:
        """Whether the opponent is copied."""


class BinaryTournament(Tournament):
    """Each member draws one opponent uniformly from the others, and copies it if it is strictly better."""

    def wins(self, standing: Standing, opponent: int, member: int) -> bool:
        """Whether the opponent is strictly better."""
        return standing.is_better(opponent, member)


class TTest(BinaryTournament):
    """Each member draws one opponent uniformly from the others, and copies it if it is better beyond chance.

    Beyond chance: p < 0.05 in Welch's t-test of the episodes' scores. An unhealthy member copies any healthy opponent;
    fewer than 2 episodes prove nothing.
    """

    compares_episodes = True

    def wins(self, standing: Standing, opponent: int, member: int) -> bool:
        """Whether the opponent is better beyond chance."""
        if not super().wins(standing, opponent, member):
            return False
        scores = standing.scores
        theirs, own = (
            (float(scores.mean[row]), float(scores.stderr[row]), int(scores.episodes[row]))
            for row in (opponent, member)
        )
        return not math.isfinite(own[0]) or p_value(*theirs, *own) < SIGNIFICANCE


def _opponents(pop: int, rng: np.random.Generator) -> list[int]:
    """One opponent for every member, uniform over the others; a member alone opposes itself."""
    if pop == 1:
        return [0]
    draws = rng.integers(pop - 1, size=pop).tolist()
    return [draw + (draw >= member) for member, draw in enumerate(draws)]
