"""What the training loop asks of an executor, wherever its shards live."""

import abc
import dataclasses
import os
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.config import Config
from popgraft.rollout.guests import NOBODY, Turn
from popgraft.state import Decision, Member, Record, Scores


@dataclasses.dataclass
class Advance:
    """What some updates of some members brought.

    Attributes:
        metrics: what to log of every update, by name.
        scores: returns of the episodes that ended meanwhile.
        steps: environment steps taken by all members together.
        healthy: whether a member's environment and all its numbers are sound.
        faults: member index → what its environment said.
        value_loss_ratios: of the members that are somebody else since the last advance: squared error of their first
            values, divided by their donor's on the same steps.
    """

    metrics: dict[str, Float[Tensor, "pop updates"]]
    scores: Scores
    steps: int
    healthy: Bool[Tensor, "pop"]
    faults: dict[int, str]
    value_loss_ratios: dict[int, float]

    @property
    def updates(self) -> int:
        """How many each member has made."""
        return next(iter(self.metrics.values())).shape[1]

    @classmethod
    def join(cls, parts: list["Advance"]) -> "Advance":
        """Puts the shards of a population together again."""
        names = parts[0].metrics
        return cls(
            metrics={name: torch.cat([part.metrics[name] for part in parts]) for name in names},
            scores=join_scores([part.scores for part in parts]),
            steps=sum(part.steps for part in parts),
            healthy=torch.cat([part.healthy for part in parts]),
            faults={member: text for part in parts for member, text in part.faults.items()},
            value_loss_ratios={member: ratio for part in parts for member, ratio in part.value_loss_ratios.items()},
        )


@dataclasses.dataclass
class Part:
    """Members that have trained for a generation at the same time: everybody, or a shard at its own pace.

    Attributes:
        members: their indices, in ascending order; rows of all else.
        advance: what their updates brought.
        scores: of their evaluation, where fitness is not that of training.
    """

    members: Int[Tensor, "part"]
    advance: Advance
    scores: Scores | None = None


def join_scores(parts: list[Scores]) -> Scores:
    """Scores of several shards, in order."""
    return Scores(
        mean=torch.cat([part.mean for part in parts]),
        stderr=torch.cat([part.stderr for part in parts]),
        episodes=torch.cat([part.episodes for part in parts]),
        faults={member: text for part in parts for member, text in part.faults.items()},
    )


def divided(config: Config, shards: int) -> list[list[int]]:
    """The members of every shard: as `execute.sizes` says, else `shards` parts of nearly the same size."""
    everyone = torch.arange(config.pbt.population_size)
    parts = everyone.split(config.execute.sizes) if config.execute.sizes else everyone.tensor_split(shards)
    return [part.tolist() for part in parts]


def assembled(parts: list[Member], order: list[int], wanted: list[int]) -> Member:
    """Members of several shards in the wanted order.

    Args:
        parts: rows of each shard.
        order: the member in every row.
        wanted: members, some perhaps more than once.
    """
    if len(parts) == 1 and order == wanted:
        return parts[0]
    rows = {member: row for row, member in enumerate(order)}
    return tree.gather(tree.concatenate(parts), torch.tensor([rows[member] for member in wanted]).long())


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def named(members: list[int]) -> str:
    """The members of a shard, in words."""
    first, last = members[0], members[-1]
    return f"members {first}-{last}" if first < last else f"member {first}"


def at_work(members: list[int], noted: int) -> str:
    """Whose environments were at work in a shard that has ended, as the end of a sentence; empty where nobody's were.

    Args:
        members: of the shard.
        noted: descriptor of the file to which the shard's `turn` was published.
    """
    place = Turn.read(noted)
    return "" if place == NOBODY else f" while the environments of member {members[place]} were at work"


class Executor(abc.ABC):
    """A whole population, as the loop sees it. Members are counted from 0 over all shards."""

    @property
    def recovers(self) -> bool:
        """Whether a shard that is lost can be made anew, so that the run goes on."""
        return False

    @property
    def cautions(self) -> list[str]:
        """What is worth a warning about where the shards are."""
        return []

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

    @abc.abstractmethod
    def restore(self, member: Member) -> None:
        """Overwrites everybody with the same members of another time; their seats stay as they are."""

    @abc.abstractmethod
    def restart(self, generation: int) -> None:
        """Gives every place a fresh seat, which `generation` names: what comes next depends on the members alone."""

    @abc.abstractmethod
    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """A copy of some members on the CPU, in the given order."""

    @abc.abstractmethod
    def weights(self) -> Float[Tensor, "pop n"]:
        """A copy of everybody's flat parameters on the CPU."""

    @abc.abstractmethod
    def momenta(self) -> Float[Tensor, "pop n"] | None:
        """A copy of everybody's running average of gradients on the CPU; None for an optimizer that has none."""

    def recover(self) -> list[int]:
        """Makes shards that are lost anew; everybody must be restored afterwards.

        Returns:
            The members whose state was lost.
        """
        return []

    @abc.abstractmethod
    def close(self) -> None:
        """Releases environments and processes."""
