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
from popgraft.errors import ShardLost
from popgraft.rng import derive
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
        hyperparams: what the members have trained with.
        age: updates behind the state of each.
        value_loss_ratios: of the members that are somebody else since the last advance: squared error of their first
            values, divided by their donor's on the same steps.
    """

    metrics: dict[str, Float[Tensor, "pop updates"]]
    scores: Scores
    steps: int
    healthy: Bool[Tensor, "pop"]
    faults: dict[int, str]
    hyperparams: dict[str, Float[Tensor, "pop"]]
    age: Int[Tensor, "pop"]
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
            hyperparams=tree.concatenate([part.hyperparams for part in parts]),
            age=torch.cat([part.age for part in parts]),
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

    @property
    def steps(self) -> int:
        """Environment steps taken."""
        return self.advance.steps


@dataclasses.dataclass(frozen=True)
class Loss:
    """Members that cannot end their generation, because a shard is gone.

    Attributes:
        members: of the part that has to begin it again.
        error: how the shard was lost.
        steps: environment steps taken all the same.
    """

    members: list[int]
    error: ShardLost
    steps: int = 0


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A stop came in the middle of a generation.

    Attributes:
        steps: environment steps taken of it.
    """

    steps: int = 0


def join_scores(parts: list[Scores]) -> Scores:
    """Scores of several shards, in order."""
    return Scores(
        mean=torch.cat([part.mean for part in parts]),
        stderr=torch.cat([part.stderr for part in parts]),
        episodes=torch.cat([part.episodes for part in parts]),
        faults={member: text for part in parts for member, text in part.faults.items()},
        steps=sum(part.steps for part in parts),
    )


def everyone(config: Config) -> list[int]:
    """All members of a population of which nobody has ended."""
    return list(range(config.pbt.population_size))


def divided(config: Config, members: list[int], shards: int) -> list[list[int]]:
    """The members of every shard: as `execute.sizes` says, else parts of nearly the same size, `shards` at most."""
    own, sizes = torch.tensor(members), config.execute.sizes
    parts = own.split(sizes) if sizes else own.tensor_split(min(shards, len(members)))
    return [part.tolist() for part in parts]


def evaluation_seed(config: Config, number: int) -> int | None:
    """Names the episodes that a generation is evaluated on; None where training's own count."""
    return None if config.pbt.fitness == "training" else derive(config.seed, "evaluation", number)


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


Rescue = Callable[[list[int], Member], Member]
"""From some members, and a population of the right structure, to their rows."""


class Executor(abc.ABC):
    """A whole population, as the loop sees it. Members are counted from 0 over all shards, and keep their numbers.

    After `begin`, every call of `next` tells of a part of the population that has trained for a generation; the part
    waits for `inherit`, which has it go on. In step there is one part: everybody.

    Attributes:
        config: the run.
        members: those that train, in ascending order; others have ended.
        rescue: where members are to be taken from that are gone with the machine on which they lay; set before `begin`.
    """

    config: Config
    members: list[int]
    rescue: Rescue

    def rows(self, members: list[int]) -> Int[Tensor, "rows"]:
        """Where some of `members` are among all of them."""
        return torch.tensor([self.members.index(member) for member in members])

    @property
    def recovers(self) -> bool:
        """Whether a shard that is lost can be made anew, so that the run goes on."""
        return False

    @property
    def cautions(self) -> list[str]:
        """What is worth a warning about where the shards are."""
        return []

    @property
    @abc.abstractmethod
    def parts(self) -> list[list[int]]:
        """The members of every part."""

    @abc.abstractmethod
    def begin(self, rounds: Int[Tensor, "pop"]) -> None:
        """Has every part train for a generation.

        Args:
            rounds: generations that every place has behind it; they name the episodes of the evaluation.
        """

    @abc.abstractmethod
    def next(self, on_update: Callable[[int], None], stop: Callable[[], bool]) -> Part | Loss | Stopped:
        """Waits for a part that has trained for a generation, or is lost.

        Args:
            on_update: is told how many members have made an update.
            stop: whether to stop; asked again and again.
        """

    @abc.abstractmethod
    def inherit(
        self, members: list[int], decision: Decision, rounds: Int[Tensor, "pop"], record: Record | None = None
    ) -> None:
        """Has a part carry out a decision, and train for its next generation: recipients inherit everything, get their
        new hyperparameters and a fresh seat.

        Args:
            members: the part.
            decision: who inherits from whom, over the whole population.
            rounds: generations that every place has behind it; they name the fresh seats too.
            record: the best state there ever was, where the decision returns to it.
        """

    @abc.abstractmethod
    def checkpoint(self, rounds: Int[Tensor, "pop"]) -> Member:
        """A copy of `members` on the CPU, from which a run that is resumed goes on as this one does.

        Args:
            rounds: generations that every place has behind it.
        """

    def rebuild(self, loss: Loss, rounds: Int[Tensor, "pop"]) -> list[int]:
        """Makes what is lost anew, where the executor `recovers`. In step, everybody is to be restored and to begin
        again; a part at its own pace begins again by itself.

        Args:
            loss: what was lost.
            rounds: generations that every place has behind it; they name fresh seats.

        Returns:
            The members whose state was lost.
        """
        return []

    def restore(self, state: Member, members: list[int] | None = None) -> None:
        """Overwrites those that train with the same members of another time; their seats stay as they are.

        Args:
            state: what they were, in ascending order.
            members: who; None: those that train now. Others are put into new shards, with seats of the beginning.
        """
        if members is not None and members != self.members:
            self.remake(members)
        self.overwrite(state)

    @abc.abstractmethod
    def remake(self, members: list[int]) -> None:
        """Puts new shards, of some members as they were in the beginning, in the place of all others."""

    @abc.abstractmethod
    def overwrite(self, state: Member) -> None:
        """Overwrites everybody, in ascending order."""

    @abc.abstractmethod
    def restart(self, generation: int) -> None:
        """Gives every place a fresh seat, which `generation` names: what comes next depends on the members alone."""

    @abc.abstractmethod
    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """A copy of some members on the CPU, in the given order."""

    @abc.abstractmethod
    def vectors(self) -> tuple[Float[Tensor, "pop n"], Float[Tensor, "pop n"] | None]:
        """Copies of everybody's flat parameters and running average of gradients on the CPU; None in place of these for
        an optimizer that has none.
        """

    @abc.abstractmethod
    def close(self) -> None:
        """Releases environments and processes."""
