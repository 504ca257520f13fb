"""Which rows go where in a graft. Executors carry them: in memory that is shared, or through Ray's object store."""

import dataclasses
from collections.abc import Sequence

import torch

from popgraft import tree
from popgraft.state import Decision, Member, Record

Stack = tuple[list[int], Member]
"""Rows, and which member each of them is; the population's size stands for the best state there ever was."""


@dataclasses.dataclass(frozen=True)
class Delivery:
    """What one shard needs for a decision.

    Attributes:
        heirs: its members whose weights change, in ascending order.
        donors: the donor of each; the population's size stands for the record.
        living: those of them that are members, each once, in ascending order.
    """

    heirs: list[int]
    donors: list[int]
    living: list[int]

    def taken(self, stacks: Sequence[Stack]) -> Member:
        """The donor of every heir, in their order, out of rows that hold them all."""
        return assembled([rows for _, rows in stacks], [member for order, _ in stacks for member in order], self.donors)


def deliveries(decision: Decision, shards: Sequence[Sequence[int]]) -> list[Delivery]:
    """What every shard needs for a decision.

    Args:
        decision: who inherits from whom.
        shards: the members of each.
    """
    every, record, found = set(decision.heirs.tolist()), len(decision.parents), []
    for members in shards:
        heirs = [member for member in members if member in every]
        donors = decision.parents[heirs].tolist()
        found.append(Delivery(heirs, donors, sorted({*donors} - {record})))
    return found


def recorded(record: Record | None, pop: int) -> list[Stack]:
    """The best state there ever was, where somebody returns to it."""
    return [] if record is None else [([pop], record.state)]


def assembled(parts: Sequence[Member], order: list[int], wanted: list[int]) -> Member:
    """Members of several shards in the wanted order.

    Args:
        parts: rows of each shard.
        order: the member in every row.
        wanted: members, some perhaps more than once.
    """
    if len(parts) == 1 and order == wanted:
        return parts[0]
    rows = {member: row for row, member in enumerate(order)}
    return tree.gather(tree.concatenate(list(parts)), torch.tensor([rows[member] for member in wanted]).long())
