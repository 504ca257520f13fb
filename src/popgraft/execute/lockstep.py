"""Shards in step: everybody is one part of the population."""

import abc
from collections.abc import Callable

import torch
from jaxtyping import Int
from torch import Tensor

from popgraft.errors import ShardLost
from popgraft.execute.base import Advance, Executor, Loss, Part, Stopped, evaluation_seed
from popgraft.state import Decision, Member, Record, Scores


class LockstepExecutor(Executor):
    """Trains, scores and grafts everybody at the same time; nothing happens but in calls of its methods."""

    _number = 0
    """Of the generation that `next` trains for."""

    @property
    def parts(self) -> list[list[int]]:
        """Everybody."""
        return [self.members]

    def begin(self, rounds: Int[Tensor, "pop"]) -> None:
        """Notes which generation is the next; `next` trains for it."""
        self._number = self._next(rounds)

    def next(self, on_update: Callable[[int], None], stop: Callable[[], bool]) -> Part | Loss | Stopped:
        """Has everybody train for a generation, and scores them."""
        (everyone,), steps = self.parts, 0

        def after_update() -> bool:
            on_update(len(everyone))
            return stop()

        try:
            advance = self.advance(self.config.pbt.perturbation_interval, after_update)
            steps = advance.steps
            if stop():  # what environments say now may be what a signal to the whole job has done to them
                return Stopped(steps)
            seed = evaluation_seed(self.config, self._number)
            scores = None if seed is None else self.evaluate(seed)
        except ShardLost as error:
            return Loss(everyone, error, steps)
        if scores and scores.faults and stop():  # likewise
            return Stopped(steps)
        return Part(torch.tensor(everyone), advance, scores)

    def inherit(
        self, members: list[int], decision: Decision, rounds: Int[Tensor, "pop"], record: Record | None = None
    ) -> None:
        """Carries out a decision at once; where some have ended, the others go on with fresh seats, in new shards."""
        self.graft(decision, self._next(rounds), record)
        if decision.ended:
            left = [member for member in members if member not in decision.ended]
            self.restore(self.export(torch.tensor(left)), left)
            self.restart(self._next(rounds))
        self.begin(rounds)

    def checkpoint(self, rounds: Int[Tensor, "pop"]) -> Member:
        """Everybody, who goes on with fresh seats."""
        self.restart(self._next(rounds))
        return self.export(torch.tensor(self.members))

    def _next(self, rounds: Int[Tensor, "pop"]) -> int:
        """Number of the next generation."""
        return int(rounds[self.members[0]])

    @abc.abstractmethod
    def advance(self, updates: int, stop: Callable[[], bool]) -> Advance:
        """Takes up to `updates` collect-and-learn rounds; fewer if `stop()` turns true between two of them."""

    @abc.abstractmethod
    def evaluate(self, seed: int) -> Scores:
        """Scores every member on the same evaluation episodes, which `seed` names."""

    @abc.abstractmethod
    def graft(self, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Carries out a decision: recipients inherit everything, get their new hyperparameters and a fresh seat.

        Args:
            decision: who inherits from whom.
            generation: names the fresh seats.
            record: the best state there ever was, where the decision returns to it.
        """
