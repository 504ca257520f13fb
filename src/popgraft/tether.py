"""Processes that end with the one that made them, however that ends.

Linux kills a process when the *thread* that made it ends, so it is asked to only where that is the main thread.
Elsewhere a thread looks every second whether the parent is still there.
"""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator

PAUSE = 1.0
"""Seconds between two looks."""
TIE = "import ctypes; ctypes.CDLL(None).prctl(1, 9); "
"""What an interpreter is to begin with to be killed with its parent from the start: PR_SET_PDEATHSIG, SIGKILL."""

_forking = threading.local()
_prctl = ctypes.CDLL(None).prctl if sys.platform == "linux" else None


def can_tie() -> bool:
    """Whether the system kills what this thread makes with this process."""
    return _prctl is not None and threading.current_thread() is threading.main_thread()


def tie(parent: int, by_system: bool) -> None:
    """Has this process killed as soon as its parent is gone.

    Args:
        parent: its process id.
        by_system: what `can_tie` says in the thread that made this process.
    """
    if by_system and _prctl is not None:
        _prctl(1, int(signal.SIGKILL))
        if os.getppid() != parent:  # it was gone before
            _end()
    else:
        threading.Thread(target=_watch, args=(parent,), name="popgraft tether", daemon=True).start()


@contextlib.contextmanager
def children_tied() -> Iterator[None]:
    """Ties processes that this thread forks meanwhile, and all that are forked by these."""
    before = getattr(_forking, "parent", None)
    _forking.parent = os.getpid(), can_tie()
    try:
        yield
    finally:
        _forking.parent = before


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(PAUSE)
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _in_child() -> None:
    made_by = getattr(_forking, "parent", None)
    if made_by is not None:
        _forking.parent = os.getpid(), True  # the forking thread is the child's main one
        tie(*made_by)


os.register_at_fork(after_in_child=_in_child)
