"""An actor that hosts a shard, as its executor sees it."""

import logging
import math
import tempfile
import time
from typing import Any

import ray
from jaxtyping import Float
from torch import Tensor

from popgraft.config import Config
from popgraft.errors import ShardLost
from popgraft.execute.base import at_work, named
from popgraft.execute.parallel import passed_on
from popgraft.execute.ray_actor import Reference, ShardActor, in_short
from popgraft.execute.ray_head import Head
from popgraft.execute.worker import Message
from popgraft.rollout.definitions import Definitions


class RayShard:
    """A shard in an actor. `begin` returns at once.

    Args:
        config: the run.
        members: index in the population of every member of the shard.
        hyperparams: initial values of the whole population.
        definitions: what it finds of the script, a factory in place of the configured source for one.
        head: is asked whether the cluster is there, before Ray is.

    Attributes:
        reply: its next message, once it is there.
        arriving: members on their way, see `fetch`; nothing for shards in step.
        lost: whether there will be none.
    """

    def __init__(
        self,
        config: Config,
        members: list[int],
        hyperparams: dict[str, Float[Tensor, "population"]],
        definitions: Definitions,
        head: Head,
    ) -> None:
        self.members, self.lost, self._started, self._head = members, False, False, head
        execute = config.execute
        self._timeout = math.inf if execute.timeout is None else execute.timeout
        resources = {"num_cpus": execute.cpus_per_shard, "num_gpus": execute.gpus_per_shard}
        groups = dict.fromkeys(("inbox", "outbox", "shelf"), 1)
        self._turn = tempfile.NamedTemporaryFile(prefix="popgraft_")  # noqa: SIM115  # until the actor ends
        self._actor = ray.remote(concurrency_groups=groups, **resources)(ShardActor).remote(self._turn.name)
        self._tell = self._actor.tell.options(concurrency_group="inbox")
        self._hear = self._actor.hear.options(concurrency_group="outbox")
        self.end = self._actor.work.remote()
        self.reply = self._hear.remote()
        self.arriving: list[Reference] = []
        self.begin("begin", definitions, logging.getLogger().getEffectiveLevel())
        self.begin("shard", config, members, hyperparams)

    @property
    def patience(self) -> float:
        """Seconds that the actor still has to be heard of; endless until it has found room on the cluster."""
        return max(0.0, self._began + self._timeout - time.monotonic()) if self._started else math.inf

    def begin(self, kind: str, *arguments: Any) -> None:
        """Sends a message; whether the actor is still there shows when its answer is received.

        Raises:
            ShardLost: the cluster is gone.
        """
        self._head.check()
        self._began = time.monotonic()
        self._tell.remote((kind, arguments))

    def receive(self) -> Message:
        """The next message of the actor.

        Raises:
            ShardLost: the actor is gone, or silent for too long.
            Exception: what went wrong in it.
        """
        kind, content = self.get(self.reply)
        self._began, self._started = time.monotonic(), True
        self.reply = self._hear.remote()
        return passed_on(kind, content)

    def get(self, reference: Reference) -> Any:
        """What a call of the actor returns.

        Raises:
            ShardLost: the actor is gone, or silent for too long; or the cluster is gone.
        """
        self._head.check()
        try:
            return ray.get(reference, timeout=_seconds(self.patience))
        except ray.exceptions.GetTimeoutError:
            raise self._lost(f"has not been heard of for {self._timeout:g} seconds") from None
        except ray.exceptions.RayError as error:
            raise self._lost(f"is gone: {in_short(error)}") from None

    def fetch(self, count: int) -> list[Reference]:
        """Asks for the members that the actor has laid ready, which stay where they are; `get` the last reference to be
        sure that they are there, whatever becomes of the actor.
        """
        return list(self._actor.fetch.options(concurrency_group="shelf", num_returns=count + 1).remote())

    @property
    def awaited(self) -> Reference:
        """What shows that it has something to say."""
        return self.arriving[-1] if self.arriving else self.reply

    def kill(self) -> None:
        """Ends the actor at once."""
        ray.kill(self._actor)
        self._turn.close()

    def _lost(self, how: str) -> ShardLost:
        self.lost = True
        return ShardLost(f"the actor of {named(self.members)} {how}{at_work(self.members, self._turn.fileno())}")


def _seconds(patience: float) -> float | None:
    """A time limit as Ray takes it."""
    return None if patience == math.inf else patience
