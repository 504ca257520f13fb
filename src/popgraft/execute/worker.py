"""The process of one shard: carries out what `ProcessExecutor` asks of it, one message after another.

Every message is a pair (kind, content). Down the pipe: a method of `Shard` with its arguments, or during `advance`
`halt` and then `until`. Up the pipe: `answer`, `error`, `log`, and during `advance` `update` and `halted`.
"""

import abc
import atexit
import contextlib
import faulthandler
import logging
import logging.handlers
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from popgraft.errors import EnvironmentFault, PopgraftError, ShardLost
from popgraft.execute.base import Advance
from popgraft.execute.shard import Shard
from popgraft.execute.shared import shared
from popgraft.native import native
from popgraft.rollout.guests import turn
from popgraft.state import Member
from popgraft.tether import children_tied, tie

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What is sent to end a run, and heeded by its executor alone."""

Message = tuple[str, Any]


class Closed(Exception):
    """The executor has said that there is nothing more to do."""


class Channel(abc.ABC):
    """One end of the connection between an executor and a shard."""

    @abc.abstractmethod
    def send(self, kind: str, content: Any = None) -> None:
        """Sends one message."""

    @abc.abstractmethod
    def receive(self) -> Message:
        """Waits for one message.

        Raises:
            Closed: there will be none.
            EOFError: the other end is gone.
        """

    @abc.abstractmethod
    def waiting(self) -> bool:
        """Whether a message is there to be received."""

    @abc.abstractmethod
    def abort(self) -> None:
        """Ends this process, in which a shard hangs, unless the other end sees to it."""

    def put_nowait(self, record: logging.LogRecord) -> None:
        """Sends a log record, as a queue of `logging.handlers.QueueHandler`."""
        self.send("log", record)


class Pipe(Channel):
    """One end of a pipe between two processes."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, kind: str, content: Any = None) -> None:
        """Writes one message."""
        self.connection.send_bytes(cloudpickle.dumps((kind, content)))

    def receive(self) -> Message:
        """Reads one message."""
        message: Message = pickle.loads(self.connection.recv_bytes())
        return message

    def waiting(self) -> bool:
        """Whether there is something to read."""
        return self.connection.poll()

    def abort(self) -> None:
        """Ends this process at once."""
        os._exit(1)


def main(connection: int, memory: int, noted: int, parent: int, by_system: bool, computes: str) -> None:
    """Makes a shard and serves it until the executor closes the pipe, or is gone.

    Args:
        connection: descriptor of the pipe.
        memory: descriptor of the file for the members.
        noted: descriptor of the file that says whose environments are at work.
        parent: the executor's process.
        by_system: how this process is tied to it (`tether.tie`).
        computes: what the executor's process computes with, and this one has to as well.
    """
    tie(parent, by_system)
    faulthandler.enable()
    turn.publish(noted)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)  # sent to a whole job: the executor hears it too, and says when
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # held back until now
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))

    def make(*arguments: Any) -> tuple[Shard, Member]:
        if (own := native().describe()) != computes:
            raise ShardLost(
                f"a shard's process computes with {own}, the run with {computes}, so that its members would be others; "
                "see that the compiler and its cache (XDG_CACHE_HOME, or ~/.cache) can be used, and start again"
            )
        shard = Shard(*arguments)
        shard.member = shared(shard.member, memory)
        return shard, shard.member

    with children_tied():
        serve(Pipe(Connection(connection)), make)
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # an interpreter takes half a second to take itself apart


def serve(channel: Channel, make: Callable[..., tuple[Shard, Any]]) -> None:
    """Makes a shard as the first two messages say, and carries out the others until the executor is gone.

    Args:
        channel: the executor's messages.
        make: from the arguments of `Shard` to a shard, and what the executor is to know of it.
    """
    logging.getLogger().addHandler(logging.handlers.QueueHandler(channel))  # type: ignore[arg-type]
    with contextlib.suppress(Closed, EOFError, BrokenPipeError, ConnectionResetError):
        definitions, level = channel.receive()[1]
        logging.getLogger().setLevel(level)
        try:
            factory = definitions.adopt()
            shard, answer = make(*channel.receive()[1], factory)
        except BaseException as error:
            channel.send("error", _portable(error))
            return
        channel.send("answer", answer)
        limit = shard.config.env.step_timeout
        if limit is not None:
            threading.Thread(target=_watch, args=(shard, channel, limit), daemon=True).start()
        with contextlib.closing(shard):
            _carry_out(shard, channel)


def _watch(shard: Shard, channel: Channel, limit: float) -> None:
    """Ends all once an environment in this process has been at work for longer than a limit."""
    while True:
        time.sleep(min(1.0, limit))
        for grid in shard.grids:
            playing = grid.playing if grid.in_process else None
            if playing is not None and time.monotonic() - playing[1] > limit:
                fault = EnvironmentFault(
                    f"the environment of member {shard.members[playing[0]]} has not come back from a step or reset for "
                    f"{limit:g} seconds; set env.vectorization: async to lose that member alone, or raise "
                    "env.step_timeout"
                )
                channel.send("error", fault)
                return channel.abort()


def _carry_out(shard: Shard, channel: Channel) -> None:
    while True:
        kind, arguments = channel.receive()
        if kind == "halt":  # it crossed the answer of an update that had ended
            continue
        try:
            answer = _advance(shard, channel, *arguments) if kind == "advance" else getattr(shard, kind)(*arguments)
        except Closed:
            raise
        except BaseException as error:
            channel.send("error", _portable(error))
        else:
            channel.send("answer", answer)


def _advance(shard: Shard, channel: Channel, updates: int) -> Advance:
    """Advances, and tells of every update.

    Shards stop at the same update: one that reads `halt` says how many it has taken, and is told when to stop.
    """
    taken, last = 0, updates

    def stop() -> bool:
        nonlocal taken, last
        taken += 1
        channel.send("update")
        if channel.waiting():
            channel.receive()  # halt: nothing else is said during an advance
            channel.send("halted", taken)
            (last,) = channel.receive()[1]
        return taken == last

    return shard.advance(updates, stop)


def _portable(error: BaseException) -> Exception:
    """An error that survives the way to another process, with the place where it was raised."""
    if isinstance(error, PopgraftError):
        return error
    place = "".join(traceback.format_exception(error))
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    if not isinstance(error, Exception):  # it would end the other process too
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the process of a shard:\n{place}")
    return error
