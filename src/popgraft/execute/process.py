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
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from typing import IO, Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import Config
from popgraft.errors import ShardLost
from popgraft.execute.base import Advance, join_scores
from popgraft.execute.inherit import overwrite_
from popgraft.execute.local import LocalExecutor
from popgraft.execute.shared import shared
from popgraft.execute.worker import Message, Pipe
from popgraft.state import Decision, Member, Record, Scores

PATIENCE = 5.0
"""Seconds that a process has to close its environments before it is killed."""


class ShardProcess:
    """A shard in a process of its own. `begin` returns at once, `member` is there after the first answer.

    Args:
        config: the run.
        members: index in the population of every member of the shard.
        hyperparams: initial values of the whole population.
        factory: makes the environments, in place of the configured source.
    """

    member: Member

    def __init__(
        self,
        config: Config,
        members: list[int],
        hyperparams: dict[str, Float[Tensor, "population"]],
        factory: Callable[..., Any] | None,
    ) -> None:
        self.members, self._config = members, config.pbt
        self._memory = _anonymous_file()
        ours, theirs = multiprocessing.Pipe()
        self.pipe = Pipe(ours)
        files = theirs.fileno(), self._memory.fileno()
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"from popgraft.execute.worker import main; main{files}"],
            env=os.environ | {"OMP_NUM_THREADS": str(config.engine.threads)},
            pass_fds=files,
            process_group=0,
        )
        theirs.close()
        self.begin("path", sys.path, logging.getLogger().getEffectiveLevel())
        self.begin("shard", config, members, hyperparams, factory)

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
        if kind == "error":
            raise content
        if kind == "log":
            logging.getLogger(content.name).handle(content)
        return kind, content

    def map_member(self, like: Member) -> None:
        """Gives this process the memory in which the members lie."""
        self.member = shared(like, self._memory.fileno())

    def graft(self, decision: Decision, donors: dict[int, int], incoming: Member, generation: int) -> None:
        """Overwrites the shard's recipients in the shared memory, and begins to have their seats made fresh."""
        heirs, units = overwrite_(self.member, self.members, decision, donors, incoming, self._config)
        self.begin("reseat", heirs, units, generation)

    def close(self) -> None:
        """Ends the process."""
        self.pipe.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(PATIENCE)
        self._process.kill()
        self._process.wait()
        self._memory.close()

    def _lost(self) -> ShardLost:
        code = self._process.wait()
        cause = f"was killed by signal {-code}" if code < 0 else f"ended with exit status {code}"
        first, last = self.members[0], self.members[-1]
        names = f"members {first}-{last}" if first < last else f"member {first}"
        return ShardLost(
            f"the process of {names} {cause}; if the machine ran out of memory, lower execute.shards, "
            "pbt.population_size or env.num_envs"
        )


class ProcessExecutor(LocalExecutor):
    """Runs all shards at once, each in its process.

    Args:
        config: the run.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source; it travels to the processes by cloudpickle.
        shards: into how many parts the population is divided.
    """

    def __init__(
        self,
        config: Config,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        factory: Callable[..., Any] | None = None,
        shards: int = 1,
    ) -> None:
        self.shards: list[ShardProcess] = []
        try:
            for part in torch.arange(config.pbt.population_size).tensor_split(shards):
                self.shards.append(ShardProcess(config, part.tolist(), hyperparams, factory))
            for shard, like in zip(self.shards, self._answers(), strict=True):
                shard.map_member(like)
        except BaseException:
            self.close()
            raise

    def advance(self, updates: int, stop: Callable[[], bool]) -> Advance:
        """Advances all shards; `stop` is asked after every update of the first.

        To stop, all shards are halted between two updates, and then told to go on to where the furthest one is.
        """
        self._begin("advance", updates)
        halted: dict[int, int] = {}
        stopping = ended = False

        def on_message(place: int, kind: str, content: Any, busy: set[int]) -> None:
            nonlocal stopping, ended
            ended |= kind == "answer"
            if kind == "halted":
                halted[place] = content
            elif kind == "update" and place == 0 and not stopping and stop():
                stopping = True
                self._begin("halt", places=busy)
            if halted and busy == set(halted):
                self._begin("until", updates if ended else max(halted.values()), places=busy)
                halted.clear()

        return Advance.join(self._answers(on_message))

    def evaluate(self, seed: int) -> Scores:
        """Scores every member."""
        self._begin("evaluate", seed)
        return join_scores(self._answers())

    def graft(self, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Overwrites all recipients; their seats are made fresh in all shards at once."""
        super().graft(decision, generation, record)
        self._answers()

    def restart(self, generation: int) -> None:
        """Gives every place a fresh seat."""
        self._begin("restart", generation)
        self._answers()

    def close(self) -> None:
        """Ends all processes."""
        for shard in self.shards:
            shard.pipe.connection.close()  # all at once, before waiting for any
        super().close()

    def _begin(self, kind: str, *arguments: Any, places: Iterable[int] | None = None) -> None:
        for place in range(len(self.shards)) if places is None else places:
            self.shards[place].begin(kind, *arguments)

    def _answers(self, on_message: Callable[[int, str, Any, set[int]], None] | None = None) -> list[Any]:
        """One answer of every shard, in order; other messages go to `on_message` with the places still at work.

        A shard that fails raises here once all others have answered, so that their members are whole.
        """
        answers: dict[int, Any] = {}
        errors: list[Exception] = []
        busy = set(range(len(self.shards)))
        while busy:
            for place in self._ready(busy):
                try:
                    kind, content = self.shards[place].receive()
                except Exception as error:
                    kind, content = "error", error
                    errors.append(error)
                if kind == "answer":
                    answers[place] = content
                if kind in ("answer", "error"):
                    busy.remove(place)
                if on_message is not None:
                    on_message(place, kind, content, busy)
        if errors:
            raise errors[0]
        return [answers[place] for place in sorted(answers)]

    def _ready(self, places: set[int]) -> list[int]:
        """Places whose process has something to say; waits for one."""
        ready = multiprocessing.connection.wait([self.shards[place].pipe.connection for place in places])
        return [place for place in sorted(places) if self.shards[place].pipe.connection in ready]


def _anonymous_file() -> IO[bytes]:
    """An empty file without a name, in memory where the system can."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("popgraft"), "w+b")
    return tempfile.TemporaryFile()
