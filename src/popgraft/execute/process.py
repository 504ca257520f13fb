"""One single-threaded process per shard: the way to use every core of a machine.

A process is started by a fresh interpreter, so a script that trains needs no `if __name__ == "__main__"`. It inherits a
pipe for messages and a file whose memory holds its members; both vanish with the processes. It is in a process group of
its own, where Ctrl-C does not reach it: stopping is the executor's word.
"""

import contextlib
import logging
import multiprocessing
import multiprocessing.connection
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import IO, Any

from jaxtyping import Float
from torch import Tensor

from popgraft.config import Config
from popgraft.errors import ShardLost
from popgraft.execute.base import at_work, divided, everyone, named
from popgraft.execute.local import LocalExecutor
from popgraft.execute.parallel import LockstepShards, passed_on
from popgraft.execute.shared import shared
from popgraft.execute.worker import SIGNALS, Message, Pipe
from popgraft.inheritance import overwrite_
from popgraft.messages import logger_of
from popgraft.native import native
from popgraft.rollout.definitions import Definitions
from popgraft.state import Decision, Member, Record
from popgraft.tether import TIE, can_tie

logger = logger_of(__name__)

PATIENCE = 5.0
"""Seconds that a process has to close its environments before it is killed."""


class ShardProcess:
    """A shard in a process of its own. `begin` returns at once, `member` is there after the first answer.

    Args:
        config: the run.
        members: index in the population of every member of the shard.
        hyperparams: initial values of the whole population.
        definitions: what it finds of the script, a factory in place of the configured source for one.
    """

    member: Member

    def __init__(
        self,
        config: Config,
        members: list[int],
        hyperparams: dict[str, Float[Tensor, "population"]],
        definitions: Definitions,
    ) -> None:
        self.members, self._config = members, config
        self._memory, self._turn = _anonymous_file(), _anonymous_file()
        ours, theirs = multiprocessing.Pipe()
        self.pipe = Pipe(ours)
        files, by_system = (theirs.fileno(), self._memory.fileno(), self._turn.fileno()), can_tie()
        computes, environment = native().describe(), os.environ | {"OMP_NUM_THREADS": str(config.engine.threads)}
        if native().library is None:  # what this process could not compile, that one does not try
            environment["POPGRAFT_NATIVE"] = "0"
        program = f"from popgraft.execute.worker import main; main{(*files, os.getpid(), by_system, computes)}"
        before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)  # until it can handle them
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", (TIE if by_system else "") + program],
                env=environment,
                pass_fds=files,
                process_group=0,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self.begin("begin", definitions, logging.getLogger().getEffectiveLevel())
        self.begin("shard", config, members, hyperparams)

    def begin(self, kind: str, *arguments: Any) -> None:
        """Sends a message; whether the process is still there shows when its answer is received."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.pipe.send(kind, arguments)

    def receive(self) -> Message:
        """The next message of the process.

        Raises:
            ShardLost: the process has ended.
            Exception: what went wrong in it.
        """
        try:
            kind, content = self.pipe.receive()
        except (EOFError, ConnectionResetError):
            raise self._lost() from None
        return passed_on(kind, content)

    def map_member(self, like: Member) -> None:
        """Gives this process the memory in which the members lie."""
        self.member = shared(like, self._memory.fileno())

    def graft(self, decision: Decision, donors: Member, generation: int) -> None:
        """Overwrites the shard's recipients in the shared memory, and begins to have their seats made fresh."""
        heirs, units = overwrite_(self.member, self.members, decision, donors, self._config)
        self.begin("reseat", heirs, units, generation, decision.renewals)

    def close(self) -> None:
        """Ends the process."""
        self.pipe.connection.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            logger.warning(
                "the process of %s has not ended within %g seconds and is killed; find out what the close() of its "
                "environments waits for", named(self.members), PATIENCE,
            )  # fmt: skip
        self._process.kill()
        self._process.wait()
        self._memory.close()
        self._turn.close()

    def _lost(self) -> ShardLost:
        explained = _explained(self._process.wait(), at_work(self.members, self._turn.fileno()))
        return ShardLost(f"the process of {named(self.members)} {explained}")


def _explained(code: int, working: str) -> str:
    """How a process has ended, and what to do.

    Args:
        code: its exit status; below 0 the signal that has ended it.
        working: what was at work in it, as the end of a sentence; may be empty.
    """
    if code >= 0:
        return (
            f"ended with exit status {code}{working}: something in it has left by os._exit, most likely an "
            "environment; set env.vectorization: async to lose its member alone"
        )
    name = signal.Signals(-code).name
    if name in ("SIGKILL", "SIGXCPU"):
        return (
            f"was killed by {name}; if the machine ran out of memory, lower execute.shards, pbt.population_size or "
            "env.num_envs"
        )
    if name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL", "SIGTRAP", "SIGSYS"):
        return (
            f"crashed with {name}{working}, in compiled code, most likely an environment's, which the traceback "
            "above shows; set env.vectorization: async to lose its member alone"
        )
    return f"was ended by {name}, which somebody has sent to it"


class ProcessExecutor(LockstepShards, LocalExecutor):
    """Runs all shards at once, each in its process.

    Args:
        config: the run.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source; it travels to the processes by cloudpickle.
        shards: into how many parts the population is divided, at most.
        members: those that train; None: everybody.
    """

    def __init__(
        self,
        config: Config,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        factory: Callable[..., Any] | None = None,
        shards: int = 1,
        members: list[int] | None = None,
    ) -> None:
        self.config, self._hyperparams, self._most = config, hyperparams, shards
        self._definitions = Definitions.of(config, factory)
        self.shards: list[ShardProcess] = []
        self.members: list[int] = []
        self.remake(everyone(config) if members is None else members)

    def make_shards(self) -> None:
        """Begins a process for every shard."""
        for members in divided(self.config, self.members, self._most):
            self.shards.append(ShardProcess(self.config, members, self._hyperparams, self._definitions))
        for shard, like in zip(self.shards, self._answers(), strict=True):
            shard.map_member(like)

    def graft(self, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Overwrites all recipients; their seats are made fresh in all shards at once."""
        super().graft(decision, generation, record)
        self._answers()

    def close(self) -> None:
        """Ends all processes."""
        for shard in self.shards:
            shard.pipe.connection.close()  # all at once, before waiting for any
        super().close()

    def _ready(self, places: set[int]) -> list[int]:
        ready = multiprocessing.connection.wait([self.shards[place].pipe.connection for place in places])
        return [place for place in sorted(places) if self.shards[place].pipe.connection in ready]


def _anonymous_file() -> IO[bytes]:
    """An empty file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("popgraft"), "w+b")
    return tempfile.TemporaryFile()
