"""Agents against each other: on the same fresh episodes, and as many of them as it takes to tell them apart."""

import contextlib
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from popgraft import tree
from popgraft.adversary import OnlineAttack
from popgraft.config import Config
from popgraft.errors import EnvironmentFault
from popgraft.execute.shard import resolve_device
from popgraft.names import searched
from popgraft.nn import Policy
from popgraft.rng import derive
from popgraft.rollout.evaluation import Played, episode_returns
from popgraft.rollout.make import make_evaluation_grid, make_grid
from popgraft.spaces import Spaces
from popgraft.state import Member

LONGEST = 4
"""Episodes of a contest at most, as a multiple of those of a generation's evaluation."""


class Estimate(NamedTuple):
    """A mean return.

    Attributes:
        mean: over the episodes.
        stderr: its standard error; 0 for a single episode.
        episodes: their number.
    """

    mean: float
    stderr: float
    episodes: int

    @classmethod
    def of(cls, returns: Float64[Tensor, "episodes"]) -> "Estimate":
        """Of some episodes."""
        n = len(returns)
        return cls(float(returns.mean()), float(returns.std()) / math.sqrt(n) if n > 1 else 0.0, n)

    def joined(self, other: "Estimate") -> "Estimate":
        """Of the episodes of both."""
        n = self.episodes + other.episodes
        apart = (other.mean - self.mean) ** 2 * self.episodes * other.episodes / n
        squares = sum(each.stderr**2 * each.episodes * (each.episodes - 1) for each in (self, other)) + apart
        mean = (self.mean * self.episodes + other.mean * other.episodes) / n
        return Estimate(mean, math.sqrt(squares / (n * (n - 1))) if n > 1 else 0.0, n)


class Outcome(NamedTuple):
    """How a contest ended.

    Attributes:
        best: row of the best; the first of those that cannot be told apart.
        worth: what everybody is worth.
        steps: environment steps that it took.
    """

    best: int
    worth: list[Estimate]
    steps: int


class Contest:
    """Plays agents of a run against each other.

    Args:
        config: the run.
        factory: makes its environments, in place of the configured source.
    """

    def __init__(self, config: Config, factory: Callable[..., Any] | None) -> None:
        self._config, self._factory = config, factory
        self._device = resolve_device(config.engine.device)

    @functools.cached_property
    def _spaces(self) -> Spaces:
        with contextlib.closing(make_grid(self._config.env, 1, 1, self._factory)) as grid:
            return grid.spaces

    @functools.cached_property
    def _policy(self) -> Policy:
        return Policy(self._spaces, self._config.model.network)

    def __call__(self, members: Member, *names: str | int) -> Outcome:
        """Has some agents play.

        Args:
            members: who takes part.
            names: of the contest; its episodes are no other's, nor those of evaluations and training.

        Raises:
            EnvironmentFault: the environments cannot be made, or nobody's works.
        """
        steps = 0

        def play(who: list[int], first: int, count: int) -> Float64[Tensor, "left episodes"]:
            nonlocal steps
            played = self._play(members, names, who, first, count)
            steps += played.steps
            return played.returns

        with searched(self._config.code_dir):
            best, returns = eliminate(
                play, len(members.age), self._config.evaluation.episodes, self._config.pbt.metric_mode == "max"
            )
        return Outcome(best, [Estimate.of(each) for each in returns], steps)

    def _play(self, members: Member, names: tuple[str | int, ...], who: list[int], first: int, count: int) -> Played:
        settings = self._config.evaluation
        seeds = [derive(self._config.seed, "contest", *names, first)] * len(who)
        rows = tree.map(lambda leaf: leaf.to(self._device), tree.gather(members, torch.tensor(who)))
        attack = OnlineAttack(self._policy, settings.attack, seeds) if settings.attack_weight else None
        made = (self._config, self._spaces, len(who), count, self._factory, self._device)
        with contextlib.closing(make_evaluation_grid(*made)) as grid:
            played = episode_returns(
                self._policy,
                rows,
                grid,
                seeds,
                settings.deterministic,
                settings.max_steps,
                attack,
                settings.attack_weight,
            )
        if len(played.faults) == len(who):
            raise EnvironmentFault(f"the environment failed during evaluation: {next(iter(played.faults.values()))}")
        return played


def eliminate(
    play: Callable[[list[int], int, int], Float64[Tensor, "left episodes"]],
    contestants: int,
    episodes: int,
    high_is_good: bool = True,
) -> tuple[int, list[Float64[Tensor, "episodes"]]]:
    """Has contestants play the same episodes until one is left, or `LONGEST` times `episodes` have been played.

    After every round whoever is behind the best by more than the standard error of their difference in the same
    episodes is out; and the next round is as long as all before.

    Args:
        play: plays episodes: who, the number of the first, and how many.
        contestants: how many there are.
        episodes: of the first round.
        high_is_good: whether high returns are good.

    Returns:
        The best, the first of equals, and the returns of everybody's episodes.
    """
    sign = 1 if high_is_good else -1
    left, returns, count = list(range(contestants)), [torch.zeros(0, dtype=torch.float64)] * contestants, episodes
    while True:
        first = len(returns[left[0]])
        for place, played in zip(left, play(left, first, count), strict=True):
            returns[place] = torch.cat([returns[place], played])
        worth = [sign * float(returns[place].mean()) for place in left]
        best = left[max(range(len(left)), key=lambda row: worth[row] if math.isfinite(worth[row]) else -math.inf)]
        left = [place for place in left if place == best or _may_be_better(sign * (returns[best] - returns[place]))]
        count = len(returns[best])
        if len(left) == 1 or count >= LONGEST * episodes:
            return best, returns


def _may_be_better(behind: Float64[Tensor, "episodes"]) -> bool:
    """Whether more episodes may turn the order round, by how far one is behind the other in each."""
    if not behind.isfinite().all() or not behind.any():
        return False
    lead = Estimate.of(behind)
    return lead.episodes == 1 or lead.mean <= lead.stderr
