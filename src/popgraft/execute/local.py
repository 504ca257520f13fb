"""A population on this machine: its shards, and what a graft does to them."""

import abc
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.execute.lockstep import LockstepExecutor
from popgraft.execute.travel import assembled, deliveries, recorded
from popgraft.optim import make_rule, momentum_of
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


class LocalExecutor(LockstepExecutor):
    """Shards whose members this process can read; results do not depend on how many there are.

    Attributes:
        shards: they hold the population in order.
    """

    shards: Sequence[ShardLike]

    def remake(self, members: list[int]) -> None:
        """Makes the new shards, and then closes the others; where that fails, these stay."""
        others, before = self.shards, self.members
        self.shards, self.members = [], members
        try:
            self.make_shards()
        except BaseException:
            self.close()
            self.shards, self.members = others, before
            raise
        made, self.shards = self.shards, others
        self.close()
        self.shards = made

    @abc.abstractmethod
    def make_shards(self) -> None:
        """Makes shards for `members`, where there are none."""

    def graft(self, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Copies the donors of all shards, then lets these overwrite their heirs."""
        best = recorded(record, len(decision.parents))
        donors = [
            delivery.taken([(delivery.living, self.export(torch.tensor(delivery.living).long())), *best])
            for delivery in deliveries(decision, [shard.members for shard in self.shards])
        ]
        for shard, rows in zip(self.shards, donors, strict=True):
            shard.graft(decision, rows, generation)

    def overwrite(self, state: Member) -> None:
        """Writes over the members of every shard."""
        for shard in self.shards:
            places = torch.arange(len(shard.members))
            own = tree.gather(state, self.rows(shard.members))
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

    def vectors(self) -> tuple[Float[Tensor, "pop n"], Float[Tensor, "pop n"] | None]:
        """Copies everybody's parameters and running averages of gradients."""
        members = [shard.member for shard in self.shards]
        rule = make_rule(self.config.model, [members[0].params.shape[1]])
        momenta = [row.cpu() for member in members if (row := momentum_of(rule, member.optimizer)) is not None]
        return torch.cat([member.params.cpu() for member in members]), torch.cat(momenta) if momenta else None

    def close(self) -> None:
        """Closes every shard."""
        for shard in self.shards:
            shard.close()
