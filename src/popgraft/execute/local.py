"""All shards on this machine, in the caller's process."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.config import Config
from popgraft.execute.base import Advance, Executor, join_scores
from popgraft.execute.shard import Shard
from popgraft.state import Decision, Member, Scores


class LocalExecutor(Executor):
    """Runs the shards one after another; results do not depend on how many there are.

    Args:
        config: the run; `execute.shards` says into how many parts the population is divided.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source.
    """

    def __init__(
        self,
        config: Config,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        factory: Callable[..., Any] | None = None,
    ) -> None:
        parts = torch.arange(config.pbt.population_size).tensor_split(config.execute.shards)
        self.shards: list[Shard] = []
        try:
            for part in parts:
                self.shards.append(Shard(config, part.tolist(), hyperparams, factory))
        except BaseException:
            self.close()
            raise

    def advance(self, updates: int, stop: Callable[[], bool]) -> Advance:
        """Advances every shard by the same number of updates; a stop is heeded at the first shard's word."""
        parts = [self.shards[0].advance(updates, stop)]
        taken = next(iter(parts[0].metrics.values())).shape[1]
        parts += [shard.advance(taken, lambda: False) for shard in self.shards[1:]]
        return Advance.join(parts)

    def evaluate(self, seed: int) -> Scores:
        """Scores every member."""
        return join_scores([shard.evaluate(seed) for shard in self.shards])

    def graft(self, decision: Decision, generation: int) -> None:
        """Sends every donor to every shard that needs it, and lets the shards overwrite their recipients."""
        needed = decision.parents[decision.recipients].unique()
        incoming = self.export(needed)
        donors = {member: row for row, member in enumerate(needed.tolist())}
        for shard in self.shards:
            shard.graft(decision, donors, incoming, generation)

    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """Copies some members."""
        whole = tree.concatenate([shard.export(torch.arange(len(shard.members))) for shard in self.shards])
        return tree.gather(whole, members)

    def close(self) -> None:
        """Closes every shard."""
        for shard in self.shards:
            shard.close()
