"""Ctrl-C, SIGTERM and SIGHUP: the first one ends a run after the update in progress."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from popgraft.errors import EnvironmentFault, PopulationLost, ShardLost
from popgraft.train.observer import Observer

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
GRACE = 0.5
"""Seconds within which a signal to a whole job reaches every process of it."""

_handling = threading.Event()


def _be_terminated_again() -> None:
    """A forked process, such as one of asynchronous environments, ends at SIGTERM as ever."""
    if _handling.is_set():
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


os.register_at_fork(after_in_child=_be_terminated_again)


@contextlib.contextmanager
def signals_first(stop: threading.Event) -> Iterator[None]:
    """Judges losses that end a run once a signal to the whole job, which may have caused them, has had its time.

    It may end a process of environments, and this process may hear of that before it gets its own signal.

    Raises:
        KeyboardInterrupt: there was a stop.
    """
    try:
        yield
    except (EnvironmentFault, PopulationLost, ShardLost) as error:
        if stop.wait(GRACE):
            raise KeyboardInterrupt from error
        raise


@contextlib.contextmanager
def beginning(stop: threading.Event) -> Iterator[None]:
    """What comes before training, of which a stop leaves nothing.

    Raises:
        KeyboardInterrupt: there was a stop.
    """
    with signals_first(stop):
        yield
    if stop.is_set():
        raise KeyboardInterrupt


@contextlib.contextmanager
def stop_on_signal(observer: Observer) -> Iterator[threading.Event]:
    """An event that the first Ctrl-C, SIGTERM or SIGHUP sets; the second one interrupts at once.

    A terminal sends Ctrl-C, and SIGHUP when it is closed, to every process of the run: those of asynchronous
    environments, which are made under this handler and inherit it, outlive the first one, so that the update in
    progress can end. A run that was started to ignore SIGHUP (`nohup`) goes on ignoring it.
    """
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    previous, process = {number: signal.getsignal(number) for number in SIGNALS}, os.getpid()
    if previous[signal.SIGHUP] == signal.SIG_IGN:
        del previous[signal.SIGHUP]

    def on_signal(*_: Any) -> None:
        stop.set()
        for number in previous:
            signal.signal(number, signal.default_int_handler)
        if os.getpid() == process:
            observer.on_interrupt()

    _handling.set()
    for number in previous:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        _handling.clear()
        for number, handler in previous.items():
            signal.signal(number, handler)
