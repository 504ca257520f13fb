"""A population on this machine: its shards, and what a graft does to them."""

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.execute.base import Executor, assembled
from popgraft.state import Decision, Member, Record


@runtime_checkable
class ShardLike(Protocol):
    """A shard, wherever it runs, whose members can be read from here."""

    members: list[int]
    member: Member

    def graft(self, decision: Decision, donors: Member, generation: int) -> None:
        """Overwrites the shard's recipients with their donors, in the same order, and gives them fresh seats."""
        ...

    def close(self) -> None:
        """Releases what the shard holds."""
        ...


class LocalExecutor(Executor):
    """Shards whose members this process can read; results do not depend on how many there are.

    Attributes:
        shards: they hold the population in order.
    """

    shards: Sequence[ShardLike]

    def graft(self, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Copies the donor of every recipient, then lets the shards overwrite theirs."""
        parents = decision.parents[decision.recipients]
        living = parents < len(decision.parents)  # the others return to the record
        donors = self.export(parents[living])
        if record is not None:
            rows = torch.where(living, living.cumsum(0) - 1, len(donors.age))
            donors = tree.gather(tree.concatenate([donors, record.state]), rows)
        for shard in self.shards:
            own = torch.isin(decision.recipients, torch.tensor(shard.members)).nonzero().flatten()
            shard.graft(decision, tree.gather(donors, own), generation)

    def restore(self, member: Member) -> None:
        """Writes over the members of every shard."""
        for shard in self.shards:
            places = torch.arange(len(shard.members))
            own = tree.gather(member, torch.tensor(shard.members))
            tree.put_(shard.member, places, tree.map(lambda leaf, there: leaf.to(there.device), own, shard.member))

    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """Copies some members."""
        wanted = members.tolist()
        parts, order = [], []
        for shard in self.shards:
            own = [member for member in wanted if member in shard.members]
            if own or not wanted:
                places = torch.tensor([shard.members.index(member) for member in own], dtype=torch.long)
                parts.append(tree.gather(shard.member, places, torch.device("cpu")))
                order += own
        return assembled(parts, order, wanted)

    def weights(self) -> Float[Tensor, "pop n"]:
        """Copies everybody's parameters."""
        return torch.cat([shard.member.params.cpu() for shard in self.shards])

    def momenta(self) -> Float[Tensor, "pop n"] | None:
        """Copies everybody's running averages of gradients."""
        rows = [shard.member.optimizer.momentum for shard in self.shards]
        return torch.cat([row.cpu() for row in rows if row is not None]) if rows[0] is not None else None

    def close(self) -> None:
        """Closes every shard."""
        for shard in self.shards:
            shard.close()
