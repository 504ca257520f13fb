"""The process of one shard: carries out what `ProcessExecutor` asks of it, one message after another.

Every message is a pair (kind, content). Down the pipe: a method of `Shard` with its arguments, or during `advance`
`halt` and then `until`. Up the pipe: `answer`, `error`, `log`, and during `advance` `update` and `halted`.
"""

import contextlib
import logging
import logging.handlers
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from multiprocessing.connection import Connection
from typing import Any

import cloudpickle

from popgraft.errors import EnvironmentFault, PopgraftError
from popgraft.execute.base import Advance
from popgraft.execute.shard import Shard
from popgraft.execute.shared import shared

Message = tuple[str, Any]


class Pipe:
    """One end of the connection between an executor and a shard's process."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    def send(self, kind: str, content: Any = None) -> None:
        """Sends one message."""
        self.connection.send_bytes(cloudpickle.dumps((kind, content)))

    def receive(self) -> Message:
        """Waits for one message; EOFError once the other end is gone."""
        message: Message = pickle.loads(self.connection.recv_bytes())
        return message

    def put_nowait(self, record: logging.LogRecord) -> None:
        """Sends a log record, as a queue of `logging.handlers.QueueHandler`."""
        self.send("log", record)


def main(connection: int, memory: int) -> None:
    """Makes a shard and serves it until the executor closes the pipe, or is gone."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # sent to a whole job: the executor hears it too, and says when
    os.register_at_fork(after_in_child=lambda: signal.signal(signal.SIGTERM, signal.SIG_DFL))
    pipe = Pipe(Connection(connection))
    logging.getLogger().addHandler(logging.handlers.QueueHandler(pipe))  # type: ignore[arg-type]
    with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
        sys.path[:], level = pipe.receive()[1]  # modules of the user are found where the executor finds them
        logging.getLogger().setLevel(level)
        try:
            shard = Shard(*pipe.receive()[1])
            shard.member = shared(shard.member, memory)
        except Exception as error:
            pipe.send("error", _portable(error))
            return
        pipe.send("answer", shard.member)
        limit = shard.config.env.step_timeout
        if limit is not None and shard.grid.in_process:
            threading.Thread(target=_watch, args=(shard, pipe, limit), daemon=True).start()
        with contextlib.closing(shard):
            _serve(shard, pipe)


def _watch(shard: Shard, pipe: Pipe, limit: float) -> None:
    """Ends the process once an environment in it has been at work for longer than a limit, which only that can end."""
    while True:
        time.sleep(min(1.0, limit))
        for grid in shard.grids:
            playing = grid.playing
            if playing is not None and time.monotonic() - playing[1] > limit:
                fault = EnvironmentFault(
                    f"the environment of member {shard.members[playing[0]]} has not come back from a step or reset for "
                    f"{limit:g} seconds; set env.vectorization: async to lose that member alone, or raise "
                    "env.step_timeout"
                )
                pipe.send("error", fault)
                os._exit(1)


def _serve(shard: Shard, pipe: Pipe) -> None:
    while True:
        kind, arguments = pipe.receive()
        if kind == "halt":  # it crossed the answer of an update that had ended
            continue
        try:
            answer = _advance(shard, pipe, *arguments) if kind == "advance" else getattr(shard, kind)(*arguments)
        except Exception as error:
            pipe.send("error", _portable(error))
        else:
            pipe.send("answer", answer)


def _advance(shard: Shard, pipe: Pipe, updates: int) -> Advance:
    """Advances, and tells of every update.

    Shards stop at the same update: one that reads `halt` says how many it has taken, and is told when to stop.
    """
    taken, last = 0, updates

    def stop() -> bool:
        nonlocal taken, last
        taken += 1
        pipe.send("update")
        if pipe.connection.poll():
            pipe.receive()  # halt: nothing else is said during an advance
            pipe.send("halted", taken)
            (last,) = pipe.receive()[1]
        return taken == last

    return shard.advance(updates, stop)


def _portable(error: Exception) -> Exception:
    """An error that survives the way to another process, with the place where it was raised."""
    if isinstance(error, PopgraftError):
        return error
    place = "".join(traceback.format_exception(error))
    try:
        pickle.loads(cloudpickle.dumps(error))
    except Exception:
        error = RuntimeError(f"{type(error).__name__}: {error}")
    error.add_note(f"In the process of a shard:\n{place}")
    return error
