"""Shards as actors of a Ray cluster: a population beyond one machine.

The executor says the same to an actor as to a shard's process, and hears the same of it. Members stay in their actors;
those that a graft moves from shard to shard go from actor to actor, through Ray's object store. An actor that dies, or
is not heard of for `execute.timeout` seconds, is lost; it is made anew when the loop asks for it.
"""

import contextlib
import logging
import math
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.config import Config, ExecuteConfig
from popgraft.errors import ConfigError, ShardLost
from popgraft.execute.base import assembled, at_work, cores, divided, named
from popgraft.execute.parallel import ParallelExecutor, passed_on
from popgraft.execute.ray_actor import CLOSE, Reference, ShardActor, in_short, pack, unpack
from popgraft.execute.ray_head import Head
from popgraft.execute.worker import Message
from popgraft.messages import logger_of
from popgraft.rollout.definitions import Definitions
from popgraft.state import Decision, Member, Record

logger = logger_of(__name__)

PATIENCE = 5.0
"""Seconds that an actor has to close its environments before it is killed."""
ATTENTION = 1.0
"""Seconds after which a wait is interrupted, to see whether the cluster is there and whether the run is to stop."""
OBJECT_STORE = 200 * 2**20
"""Bytes of a cluster of our own for rows on their way."""


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


class RayExecutor(ParallelExecutor):
    """Runs all shards at once, each in its actor, on a cluster that is there or on one of its own.

    Args:
        config: the run; `execute` says where it runs.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source; it travels to the actors by cloudpickle.

    Raises:
        ConfigError: there is no cluster at `execute.address`.
    """

    def __init__(
        self,
        config: Config,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        factory: Callable[..., Any] | None = None,
    ) -> None:
        self._arguments = config, hyperparams
        self._definitions = Definitions.of(config, factory, far=True)
        self.shards: list[RayShard] = []
        self._stack = contextlib.ExitStack()
        try:
            self._stack.enter_context(_cluster(config.execute))
            self._head = self._stack.enter_context(contextlib.closing(Head()))
            parts = divided(config, config.execute.shards or min(_room(config.execute), config.pbt.population_size))
            self._home = {member: place for place, members in enumerate(parts) for member in members}
            _check_room(config.execute, len(parts))
            self.shards += [RayShard(config, members, hyperparams, self._definitions, self._head) for members in parts]
            self._like: Member = self._answers()[0]
            self._prepare()
        except BaseException:
            self.close()
            raise

    @property
    def recovers(self) -> bool:
        """As long as the cluster is there."""
        return not self._head.gone

    @property
    def cautions(self) -> list[str]:
        """Whether members compute differently, which depends on their machines."""
        self._begin("computes")
        kinds: dict[str, list[int]] = {}
        for shard, kind in zip(self.shards, self._answers(), strict=True):
            kinds.setdefault(kind, []).extend(shard.members)
        if len(kinds) == 1:
            return []
        told = "; ".join(f"{kind}: members {members}" for kind, members in kinds.items())
        return [f"the machines of the cluster compute differently, so that results depend on who is where ({told})"]

    def _prepare(self) -> None:
        """What else a kind of executor needs once its shards are there: nothing."""

    def graft(self, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Has every shard lay ready what others inherit of it, and then all shards take what is theirs."""
        needed = self._needed(decision)
        given = self._give(needed)
        if record is not None:
            row = [len(decision.parents)], self._head.put(pack(record.state))
            given = [[*gifts, row] for gifts in given]
        told = self._head.put(decision)  # once, and not once for every shard
        for place, (shard, gifts) in enumerate(zip(self.shards, given, strict=True)):
            shard.begin("take", [told], needed[place].get(place, []), gifts, generation)
        self._answers()

    def restore(self, member: Member) -> None:
        """Sends every shard its members."""
        for shard in self.shards:
            shard.begin("restore", pack(tree.gather(member, torch.tensor(shard.members))))
        self._answers()

    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """Fetches some members."""
        wanted = members.tolist()
        owned: dict[int, list[int]] = {}
        for member in wanted:
            owned.setdefault(self._home[member], []).append(member)
        for place, own in owned.items():
            self.shards[place].begin("export", own)
        parts = [unpack(rows, self._like) for rows in self._answers(places=owned)]
        return assembled(parts, [member for place in sorted(owned) for member in owned[place]], wanted)

    def weights(self) -> Float[Tensor, "pop n"]:
        """Fetches everybody's parameters."""
        self._begin("weights")
        return torch.cat([torch.tensor(rows) for rows in self._answers()])

    def momenta(self) -> Float[Tensor, "pop n"] | None:
        """Fetches everybody's running averages of gradients."""
        self._begin("momenta")
        parts = [torch.tensor(rows) for rows in self._answers() if rows is not None]
        return torch.cat(parts) if parts else None

    def recover(self) -> list[int]:
        """Puts new actors in the place of those that are lost, as soon as the cluster has room for them."""
        lost = [place for place, shard in enumerate(self.shards) if shard.lost]
        for place in lost:
            self._remake(place)
        self._answers(places=lost)
        return [member for place in lost for member in self.shards[place].members]

    def close(self) -> None:
        """Ends all actors, and the cluster if it is ours."""
        if self.shards and not self._head.gone:
            with contextlib.suppress(ShardLost):
                self._begin(CLOSE)
            ends = [shard.end for shard in self.shards]
            ray.wait(ends, num_returns=len(ends), timeout=PATIENCE)
            for shard in self.shards:
                shard.kill()
        self.shards = []
        self._stack.close()

    def _remake(self, place: int) -> None:
        """Puts a new actor in the place of one; it answers once it is there."""
        config, hyperparams = self._arguments
        self.shards[place].kill()
        self.shards[place] = RayShard(config, self.shards[place].members, hyperparams, self._definitions, self._head)

    def _needed(self, decision: Decision) -> list[dict[int, list[int]]]:
        """For every shard: which of its members are inherited from, by the place of the recipients' shard."""
        needed: list[dict[int, list[int]]] = [{} for _ in self.shards]
        pairs = {
            (parent, self._home[member])
            for member, parent in enumerate(decision.parents.tolist())
            if parent != member and parent in self._home  # the record is nobody's
        }
        for parent, place in sorted(pairs):
            needed[self._home[parent]].setdefault(place, []).append(parent)
        return needed

    def _give(self, needed: list[dict[int, list[int]]]) -> list[list[tuple[list[int], Reference]]]:
        """What every shard is given by others: for each of these, the donors and the object they are in."""
        given: list[list[tuple[list[int], Reference]]] = [[] for _ in self.shards]
        crossing = [
            {place: own for place, own in asked.items() if place != giver} for giver, asked in enumerate(needed)
        ]
        givers = [giver for giver, asked in enumerate(crossing) if asked]
        for giver in givers:
            self.shards[giver].begin("give", crossing[giver])
        for giver, references in zip(givers, self._answers(places=givers), strict=True):
            for place, donors in crossing[giver].items():
                given[place].append((donors, references[place]))
        return given

    def _ready(self, places: set[int], limit: float = math.inf) -> list[int]:
        waiting = {self.shards[place].awaited: place for place in places}
        replies = list(waiting)
        deadline = time.monotonic() + min(limit, *(self.shards[place].patience for place in places))
        while not ray.wait(replies, timeout=max(0.0, min(ATTENTION, deadline - time.monotonic())))[0]:
            if self._head.gone:
                return sorted(places)
            if time.monotonic() >= deadline:
                break
        ready, _ = ray.wait(replies, num_returns=len(replies), timeout=0)
        silent = {place for place in places if not self.shards[place].patience}
        return sorted({waiting[reply] for reply in ready} | silent)


@contextlib.contextmanager
def _cluster(execute: ExecuteConfig) -> Iterator[None]:
    """Connects with a cluster, unless this process is connected with one already."""
    if ray.is_initialized():
        yield
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray will do one day, and warns of
    os.environ.setdefault("RAY_worker_niceness", "0")  # actors of our own cluster yield no more than processes would
    in_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM)
    own: dict[str, Any] = {
        "num_cpus": math.ceil((len(execute.sizes or []) or execute.shards or cores()) * execute.cpus_per_shard),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE,
    }
    try:
        if execute.address not in (None, "auto"):
            _reach(execute.address)
        ray.init(
            address=execute.address or "local",
            configure_logging=False,
            log_to_driver=False,
            **({} if execute.address else own),
        )
    except ConnectionError as error:
        raise ConfigError(
            f"no Ray cluster answers at execute.address={execute.address!r}: {in_short(error)}; start one with: "
            "ray start --head, or leave execute.address out for one of this machine alone"
        ) from None
    finally:
        if in_main:
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own in its place
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str) -> None:
    """Raises ConnectionError where nobody listens; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), PATIENCE).close()
    except (OSError, ValueError, OverflowError) as error:
        raise ConnectionError(f"{error}") from None


def _room(execute: ExecuteConfig) -> int:
    """How many shards the cluster has room for; at least one."""
    there = ray.cluster_resources()
    needs = {"CPU": execute.cpus_per_shard, "GPU": execute.gpus_per_shard}
    return max(1, int(min(there.get(name, 0) / amount for name, amount in needs.items() if amount)))


def _check_room(execute: ExecuteConfig, shards: int) -> None:
    there = ray.cluster_resources()
    for name, amount in (("CPU", execute.cpus_per_shard), ("GPU", execute.gpus_per_shard)):
        if amount * shards > there.get(name, 0):
            logger.warning(
                "%d shards need %g %ss, but the Ray cluster has %g; waiting for more to join",
                shards, amount * shards, name, there.get(name, 0),
            )  # fmt: skip


def _seconds(patience: float) -> float | None:
    """A time limit as Ray takes it."""
    return None if patience == math.inf else patience
