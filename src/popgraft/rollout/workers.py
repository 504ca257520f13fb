"""Processes of asynchronous environments: waited for as long as a limit says, and ended whatever they do."""

import contextlib
import select
import time
from collections.abc import Iterable, Sequence
from typing import Any

from popgraft.errors import EnvironmentFault

GRACE = 1.0
"""Seconds that a process has at least while it is waited for: the one that waits may have been stopped itself."""
PATIENCE = 5.0
"""Seconds that processes have to end when they are asked to, and again when they are told to."""


class Answering:
    """The pipe to an environment's process, for a vector environment in place of its own: answers are due in time.

    A process that has died is noticed too where its siblings, forked after it, hold its end of the pipe open.

    Args:
        pipe: the connection.
        process: at its other end.
        limit: seconds from a request to its answer; None: as long as the process lives.
    """

    def __init__(self, pipe: Any, process: Any, limit: float | None) -> None:
        self._pipe, self._process, self._limit = pipe, process, limit
        self._asked = time.monotonic()
        self._poll = select.poll()
        self._poll.register(pipe.fileno(), select.POLLIN)
        self._poll.register(process.sentinel, select.POLLIN)

    def send(self, message: Any) -> None:
        """Sends a request, from which the time is taken."""
        self._asked = time.monotonic()
        try:
            self._pipe.send(message)
        except ConnectionError:
            raise self._lost() from None

    def recv(self) -> Any:
        """The answer.

        Raises:
            EnvironmentFault: the process has ended, or the time is over.
        """
        left = None if self._limit is None else 1000 * max(self._asked + self._limit - time.monotonic(), GRACE)
        ready = [descriptor for descriptor, _ in self._poll.poll(left)]
        if not ready:
            raise EnvironmentFault(
                f"an environment's process has not answered for {self._limit:g} seconds; find out what it waits for, "
                "or allow it more with env.step_timeout"
            )
        if self._pipe.fileno() not in ready:
            raise self._lost()
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionError):
            raise self._lost() from None

    def _lost(self) -> EnvironmentFault:
        self._process.join(GRACE)  # for its exit status
        return EnvironmentFault(f"an environment's process has ended with exit status {self._process.exitcode}")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pipe, name)


def answering(pipes: Sequence[Any], processes: Sequence[Any], limit: float | None) -> list[Any]:
    """Every pipe with its time limit."""
    return [Answering(pipe, process, limit) for pipe, process in zip(pipes, processes, strict=True)]


def close(pipes: Iterable[Any], processes: Sequence[Any]) -> None:
    """Ends processes and closes their pipes: they are asked, then terminated, and killed where that does not help."""
    pipes = [pipe for pipe in pipes if pipe is not None]  # Gymnasium's name for the pipe of one that has raised
    for pipe in pipes:
        with contextlib.suppress(OSError, EnvironmentFault):  # closed, or its process is gone
            pipe.send(("close", None))
    _await_end(processes)
    for process in processes:
        process.terminate()
    _await_end(processes)
    for process in processes:
        process.kill()
        process.join()
    for pipe in pipes:
        pipe.close()


def _await_end(processes: Sequence[Any]) -> None:
    deadline = time.monotonic() + PATIENCE
    for process in processes:
        process.join(max(0.0, deadline - time.monotonic()))
