"""All shards in the caller's process: on a GPU, for a population of one, and for tests."""

from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from popgraft.config import Config
from popgraft.execute.base import Advance, divided, everyone, join_scores
from popgraft.execute.local import LocalExecutor
from popgraft.execute.shard import Shard
from popgraft.state import Scores


class InlineExecutor(LocalExecutor):
    """Runs the shards one after another.

    Args:
        config: the run.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source.
        shards: into how many parts the population is divided, at most.
        members: those that train; None: everybody.
    """

    def __init__(
        self,
        config: Config,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        factory: Callable[..., Any] | None = None,
        shards: int = 1,
        members: list[int] | None = None,
    ) -> None:
        self.config, self._hyperparams, self._factory, self._most = config, hyperparams, factory, shards
        self.shards: list[Shard] = []
        self.members: list[int] = []
        self.remake(everyone(config) if members is None else members)

    def make_shards(self) -> None:
        """Makes shards in this process."""
        for members in divided(self.config, self.members, self._most):
            self.shards.append(Shard(self.config, members, self._hyperparams, self._factory))

    def advance(self, updates: int, stop: Callable[[], bool]) -> Advance:
        """Advances every shard by the same number of updates; a stop is heeded at the first shard's word."""
        parts = [self.shards[0].advance(updates, stop)]
        parts += [shard.advance(parts[0].updates, lambda: False) for shard in self.shards[1:]]
        return Advance.join(parts)

    def evaluate(self, seed: int) -> Scores:
        """Scores every member."""
        return join_scores([shard.evaluate(seed) for shard in self.shards])

    def restart(self, generation: int) -> None:
        """Gives every place a fresh seat."""
        for shard in self.shards:
            shard.restart(generation)
