"""Shards as actors of a Ray cluster: a population beyond one machine.

The executor says the same to an actor as to a shard's process, and hears the same of it. Members stay in their actors;
those that a graft moves from shard to shard go from actor to actor, through Ray's object store. An actor that dies, or
is not heard of for `execute.timeout` seconds, is lost; it is made anew when the loop asks for it.
"""

import contextlib
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.config import Config, ExecuteConfig
from popgraft.errors import ConfigError, ShardLost
from popgraft.execute.base import Loss, cores, divided, everyone
from popgraft.execute.parallel import LockstepShards, ParallelShards
from popgraft.execute.ray_actor import CLOSE, Laid, in_short, pack, unpack
from popgraft.execute.ray_head import Head
from popgraft.execute.ray_shard import RayShard
from popgraft.execute.travel import assembled, deliveries, recorded
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


class RayShards(ParallelShards):
    """Shards in an actor each, on a cluster that is there or on one of its own.

    Args:
        config: the run; `execute` says where it runs.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source; it travels to the actors by cloudpickle.
        members: those that train; None: everybody.

    Raises:
        ConfigError: there is no cluster at `execute.address`.
    """

    def __init__(
        self,
        config: Config,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        factory: Callable[..., Any] | None = None,
        members: list[int] | None = None,
    ) -> None:
        self.config, self._hyperparams = config, hyperparams
        self._definitions = Definitions.of(config, factory, far=True)
        self.shards: list[RayShard] = []
        self._stack = contextlib.ExitStack()
        try:
            self._stack.enter_context(_cluster(config.execute))
            self._head = self._stack.enter_context(contextlib.closing(Head()))
            self.remake(everyone(config) if members is None else members)
        except BaseException:
            self.close()
            raise

    def remake(self, members: list[int]) -> None:
        """Ends all actors, and makes the new ones in the room that they leave."""
        self._end_actors()
        self.members, self._home = members, dict[int, int]()
        execute = self.config.execute
        parts = divided(self.config, members, execute.shards or _room(execute))
        _check_room(execute, len(parts))
        self.shards += [RayShard(self.config, part, self._hyperparams, self._definitions, self._head) for part in parts]
        self._home = {member: place for place, part in enumerate(parts) for member in part}
        try:
            self._like: Member = self._answers()[0]
        except ShardLost:  # those that are lost may be made anew
            raise
        except BaseException:
            self._home = {}
            self._end_actors()
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

    def overwrite(self, state: Member) -> None:
        """Sends every shard its members."""
        for shard in self.shards:
            shard.begin("restore", pack(tree.gather(state, self.rows(shard.members))))
        self._answers()

    def close(self) -> None:
        """Ends all actors, and the cluster if it is ours."""
        self._end_actors()
        self._stack.close()

    def _end_actors(self) -> None:
        if self.shards and not self._head.gone:
            with contextlib.suppress(ShardLost):
                self._begin(CLOSE)
            ends = [shard.end for shard in self.shards]
            ray.wait(ends, num_returns=len(ends), timeout=PATIENCE)
            for shard in self.shards:
                shard.kill()
        self.shards = []

    def _laid_ready(self, members: Sequence[int]) -> Laid:
        """Has shards lay members ready, as they are now."""
        owned, laid = self._by_place(members), Laid()
        for place, own in owned.items():
            self.shards[place].begin("lay", own)
        self._answers(places=owned)
        for place, own in owned.items():
            *rows, sure = self.shards[place].fetch(len(own))
            self.shards[place].get(sure)
            laid.update(zip(own, rows, strict=True))
        return laid

    def _by_place(self, members: Iterable[int]) -> dict[int, list[int]]:
        """The members of every shard among some."""
        owned: dict[int, list[int]] = {}
        for member in members:
            owned.setdefault(self._home[member], []).append(member)
        return owned

    def _remake(self, place: int) -> None:
        """Puts a new actor in the place of one; it answers once it is there."""
        shard = self.shards[place]
        shard.kill()
        self.shards[place] = RayShard(self.config, shard.members, self._hyperparams, self._definitions, self._head)

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


class RayExecutor(RayShards, LockstepShards):
    """Runs all actors in step."""

    def graft(self, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Has every shard lay ready what others inherit of it, and then all shards take what is theirs."""
        needed = deliveries(decision, [shard.members for shard in self.shards])
        abroad = [[donor for donor in each.living if self._home[donor] != place] for place, each in enumerate(needed)]
        laid = self._laid_ready(sorted({donor for donors in abroad for donor in donors}))
        told = self._head.put(decision)  # once, and not once for every shard
        best = {pop: self._head.put(pack(state)) for (pop,), state in recorded(record, len(decision.parents))}
        for shard, delivery, donors in zip(self.shards, needed, abroad, strict=True):
            shard.begin("take", [told], delivery, {donor: laid[donor] for donor in donors} | best, generation)
        self._answers()

    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """Fetches some members.

        Raises:
            ShardLost: their actors could not be made.
        """
        wanted = members.tolist()
        if not self._home:
            raise ShardLost("there are no actors, because they could not be made")
        owned = self._by_place(wanted)
        for place, own in owned.items():
            self.shards[place].begin("export", own)
        parts = [unpack(rows, self._like) for rows in self._answers(places=owned)]
        return assembled(parts, [member for place in sorted(owned) for member in owned[place]], wanted)

    def vectors(self) -> tuple[Float[Tensor, "pop n"], Float[Tensor, "pop n"] | None]:
        """Fetches everybody's parameters and running averages of gradients."""
        self._begin("vectors")
        params, momenta = zip(*self._answers(), strict=True)
        averages = [torch.tensor(rows) for rows in momenta if rows is not None]
        return torch.cat([torch.tensor(rows) for rows in params]), torch.cat(averages) if averages else None

    def rebuild(self, loss: Loss, rounds: Int[Tensor, "pop"]) -> list[int]:
        """Puts new actors in the place of those that are lost, as soon as the cluster has room for them."""
        lost = [place for place, shard in enumerate(self.shards) if shard.lost]
        for place in lost:
            self._remake(place)
        self._answers(places=lost)
        return [member for place in lost for member in self.shards[place].members]


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
