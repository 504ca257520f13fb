"""The actor that hosts one shard on a Ray cluster: carries out what `RayExecutor` asks of it.

What is said is what a shard's process hears and says (`worker`). Here the messages pass through two queues: the
executor's calls of `tell` fill the one, and its calls of `hear` wait at the other. Members travel as arrays, which Ray
copies as they are. Those that cross from shard to shard go from actor to actor; the executor sees references only.
"""

import contextlib
import os
import queue
import signal
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import ray
import torch
from jaxtyping import Float, Shaped
from torch import Tensor

from popgraft import tree
from popgraft.config import Config
from popgraft.errors import ShardLost
from popgraft.execute.shard import Shard
from popgraft.execute.travel import Delivery
from popgraft.execute.worker import Channel, Closed, Message, serve
from popgraft.inheritance import Units
from popgraft.native import native
from popgraft.optim import momentum_of
from popgraft.rollout.guests import turn
from popgraft.state import Member

Rows = dict[str, Shaped[np.ndarray, "rows ..."]]
"""Some members, leaf by leaf, on their way."""
Reference = Any
"""A `ray.ObjectRef` of such rows."""
Laid = dict[int, Reference]
"""Members that lie ready, one by one: what holds the row of each."""
CLOSE = "close"
"""The last message to an actor."""


def pack(member: Member) -> Rows:
    """Members as arrays."""
    return {name: leaf.cpu().numpy() for name, leaf in tree.items(member)}


def unpack(rows: Rows, like: Member) -> Member:
    """Members as tensors on the CPU, with the structure of `like`."""
    return tree.restore(like, {name: torch.from_numpy(np.array(leaf)) for name, leaf in rows.items()})


class Mailbox(Channel):
    """The actor's end of its connection to the executor; `shelf` holds what it does not hear, but may fetch."""

    def __init__(self) -> None:
        self.inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.outbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self.shelf: queue.SimpleQueue[list[Rows]] = queue.SimpleQueue()

    def send(self, kind: str, content: Any = None) -> None:
        """Leaves a message for the executor."""
        self.outbox.put((kind, content))

    def receive(self) -> Message:
        """Waits for a message of the executor."""
        message = self.inbox.get()
        if message[0] == CLOSE:
            raise Closed
        return message

    def waiting(self) -> bool:
        """Whether there is a message of the executor."""
        return not self.inbox.empty()

    def abort(self) -> None:
        """Nothing: the executor kills the actor."""


class HostedShard(Shard):
    """A shard whose members are not to be read from elsewhere: it hands them out, and takes others in."""

    def __init__(self, shelf: "queue.SimpleQueue[list[Rows]]", config: Config, *arguments: Any) -> None:
        self._shelf = shelf
        if not config.execute.gpus_per_shard:
            config = config.model_copy(update={"engine": config.engine.model_copy(update={"device": "cpu"})})
        torch.set_num_threads(config.engine.threads)
        super().__init__(config, *arguments)

    def computes(self) -> str:
        """What its arithmetic is done with."""
        return native().describe()

    def export(self, members: Sequence[int]) -> Rows:
        """Some of the shard's members."""
        return pack(self._rows(members))

    def vectors(self) -> tuple[Float[np.ndarray, "pop n"], Float[np.ndarray, "pop n"] | None]:
        """Everybody's flat parameters and running average of gradients; None for an optimizer that has none."""
        average = momentum_of(self.learner.rule, self.member.optimizer)
        return self.member.params.cpu().numpy(), None if average is None else average.cpu().numpy()

    def restore(self, rows: Rows) -> None:
        """Overwrites everybody."""
        self._overwrite(self.members, unpack(rows, self.member))

    def lay(self, members: Sequence[int]) -> None:
        """Lays members ready one by one, as they are now."""
        self._shelf.put([self.export([member]) for member in members])

    def take(self, told: list[Reference], delivery: Delivery, given: Laid, generation: int) -> None:
        """Carries out a decision.

        Args:
            told: the decision over the whole population, laid ready.
            delivery: what this shard needs for it.
            given: donors that are not its own members.
            generation: names the fresh seats of the recipients.

        Raises:
            ShardLost: a donor's shard is gone.
        """
        own = [member for member in delivery.living if member in self.members]
        (decision,) = _fetched(told)
        stacks = [(own, self._rows(own, torch.device("cpu"))), ([*given], self._given(given))]
        self.graft(decision, delivery.taken(stacks), generation)

    def move_in(self, given: Laid, heirs: Sequence[int], units: Units | None, generation: int) -> None:
        """Takes in what some members have become by a decision.

        Args:
            given: who, as they lie ready.
            heirs: those of them that are somebody else now.
            units: of the donor of each, see `reseat`.
            generation: names the fresh seats of the heirs.

        Raises:
            ShardLost: they are gone.
        """
        self._overwrite([*given], self._given(given))
        if units is not None:
            normalizer, returns = units
            units = tree.map(self._here, normalizer), tree.map(self._here, returns)
        self.reseat(self._places(heirs), units, generation, {})

    def _places(self, members: Sequence[int]) -> list[int]:
        return [self.members.index(member) for member in members]

    def _rows(self, members: Sequence[int], device: torch.device | None = None) -> Member:
        return tree.gather(self.member, torch.tensor(self._places(members)).long(), device)

    def _given(self, given: Laid) -> Member:
        rows = [unpack(rows, self.member) for rows in _fetched(given.values())]
        return tree.concatenate([self._rows([], torch.device("cpu")), *rows])

    def _overwrite(self, members: Sequence[int], rows: Member) -> None:
        tree.put_(self.member, torch.tensor(self._places(members)), tree.map(self._here, rows))

    def _here(self, leaf: Tensor) -> Tensor:
        return leaf.to(self.device)


class ShardActor:
    """A shard in an actor; `work` runs until it is told to close. All other methods have a thread of their own each.

    Args:
        noted: path of a file that is to say whose environments are at work, if it is on this machine.
    """

    def __init__(self, noted: str) -> None:
        with contextlib.suppress(OSError):
            turn.publish(os.open(noted, os.O_RDWR))
        signal.signal(signal.SIGTERM, signal.SIG_DFL)  # Ray's way out waits for `work` to end, which it does not
        self._mailbox = Mailbox()

    def tell(self, message: Message) -> None:
        """Takes in a message of the executor."""
        self._mailbox.inbox.put(message)

    def hear(self) -> Message:
        """Waits for the next message to the executor."""
        return self._mailbox.outbox.get()

    def fetch(self) -> list[Any]:
        """What has been laid ready: a result of Ray for each of the members, which stays on this machine until used,
        and a small one that shows whether the others are there.
        """
        return [*self._mailbox.shelf.get(), True]

    def work(self) -> None:
        """Makes a shard and serves it."""

        def make(*arguments: Any) -> tuple[HostedShard, Member]:
            shard = HostedShard(self._mailbox.shelf, *arguments)
            return shard, tree.map(Tensor.cpu, tree.gather(shard.member, torch.arange(0)))

        serve(self._mailbox, make)


def _fetched(references: Iterable[Reference]) -> list[Any]:
    """What lies ready somewhere.

    Raises:
        ShardLost: it does not any more.
    """
    try:
        return [ray.get(reference) for reference in references]
    except ray.exceptions.RayError as error:
        raise ShardLost(f"members that were to be inherited from are gone: {in_short(error)}") from None


def in_short(error: Exception) -> str:
    """What an error of Ray says, without traceback and identifiers."""
    lines = str(error).strip().splitlines()
    if "creation task" in lines[0]:
        return f"it cannot be made, {lines[-1]}; install the same packages on every machine of the cluster"
    return lines[0].rstrip(".")
