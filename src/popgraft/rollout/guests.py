"""What environments do besides stepping: they leave by the interpreter's door, hang on their way out, and change what
all code of a process shares.
"""

import contextlib
import mmap
import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch

from popgraft.messages import logger_of

logger = logger_of(__name__)

PATIENCE = 5.0
"""Seconds that environments have to close."""
NOBODY = -1


def is_ctrl_c(error: BaseException) -> bool:
    """Whether an interrupt may come from the keyboard, and not from an environment that raises it.

    In a shard's process, in a thread, and in a run that nobody has stopped yet, Ctrl-C raises nothing.
    """
    raises = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    return isinstance(error, KeyboardInterrupt) and raises and threading.current_thread() is threading.main_thread()


def close_in_time(closes: Sequence[Callable[[], Any]]) -> None:
    """Closes environments one after another; those that take too long are left to themselves, with a warning."""
    deadline, threads = time.monotonic() + PATIENCE, []
    for close in closes:
        threads.append(threading.Thread(target=_close, args=(close,), name="popgraft close", daemon=True))
        threads[-1].start()
        threads[-1].join(max(0.0, deadline - time.monotonic()))
    hanging = sum(thread.is_alive() for thread in threads)
    if hanging:
        logger.warning(
            "the environments of %d members have not closed within %g seconds and are left as they are; find out what "
            "their close() waits for", hanging, PATIENCE,
        )  # fmt: skip


def _close(close: Callable[[], Any]) -> None:
    with contextlib.suppress(BaseException):  # what fails on the way out has nothing left to spoil
        close()


class Turn:
    """Whose environments are at work in this process: a number that may lie where another process can read it, once
    this one is no more.
    """

    def __init__(self) -> None:
        self._number = memoryview(bytearray(NOBODY.to_bytes(4, sys.byteorder, signed=True))).cast("i")

    def publish(self, file: int) -> None:
        """Writes to an open file from now on."""
        os.ftruncate(file, 4)
        self._number = memoryview(mmap.mmap(file, 4)).cast("i")
        self.begin(NOBODY)

    def begin(self, number: int) -> None:
        """Says whose turn it is."""
        self._number[0] = number

    @staticmethod
    def read(file: int) -> int:
        """What another process has said last; `NOBODY` where it has not said anything."""
        said = os.pread(file, 4, 0)
        return int.from_bytes(said, sys.byteorder, signed=True) if said else NOBODY


turn = Turn()
"""Places of a shard, whose process this is; in a grid's order."""


class Shared:
    """What all code of a process shares, as it was when this was made.

    Args:
        names: of what is looked at, of `SHARED`; `IN_STEPS` takes microseconds.
    """

    def __init__(self, names: Iterable[str] | None = None) -> None:
        self._before = {name: SHARED[name][0]() for name in names or SHARED}

    def restore(self) -> list[str]:
        """Sets back what has been changed since; says what that was."""
        found = []
        for name, before in self._before.items():
            look, put = SHARED[name]
            now = look()
            if now != before:
                put(before)
                found.append(f"{name} to {now}")
        return found


def _folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been deleted
        return None


def _enter(folder: str | None) -> None:
    if folder is not None:
        os.chdir(folder)


def _errors() -> list[Any]:
    return [rule for rule in warnings.filters if rule[0] == "error"]


def _unfilter(before: list[Any]) -> None:
    for rule in _errors():
        if rule not in before:
            warnings.filters.remove(rule)  # type: ignore[attr-defined]
    warnings._filters_mutated()  # type: ignore[attr-defined]


def _handler(number: signal.Signals) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    def put(handler: Any) -> None:
        if threading.current_thread() is threading.main_thread() and handler is not None:
            signal.signal(number, handler)

    return lambda: signal.getsignal(number), put


SHARED: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    "PyTorch's default dtype": (torch.get_default_dtype, torch.set_default_dtype),
    "PyTorch's default device": (
        torch.get_default_device,
        lambda device: torch.set_default_device(None if device.type == "cpu" else device),
    ),
    "PyTorch's gradient mode": (torch.is_grad_enabled, torch.set_grad_enabled),
    "PyTorch's number of threads": (torch.get_num_threads, torch.set_num_threads),
    "NumPy's treatment of floating-point errors": (np.geterr, lambda rules: np.seterr(**rules)),
    "the warnings that are errors": (_errors, _unfilter),
    "the working folder": (_folder, _enter),
    **{f"the handler of {number.name}": _handler(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)},
}
"""How each is looked at, and set."""
IN_STEPS = ("PyTorch's default dtype", "PyTorch's gradient mode", "PyTorch's number of threads", "the working folder")
"""What the next operation of the engine depends on, and where files of the run are."""
