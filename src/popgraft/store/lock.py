"""The lock of a run: one process at a time trains it.

The system gives the lock back when its holder ends, however it ends, so a lock is never stale.
"""

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol, runtime_checkable

from popgraft.disk import reason
from popgraft.errors import RunExists, StoreError

ATTEMPTS, PAUSE = 5, 0.02
"""Attempts at a lock, and seconds between them: someone who asks `holder` has it for a moment."""

_held: set[int] = set()


@runtime_checkable
class Lockable(Protocol):
    """The folder of a run."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def lock(self) -> Path:
        """The file that is locked."""
        ...


def _leave_to_the_parent() -> None:
    """Closes a forked process's copies, which would keep the lock beyond the parent's end."""
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_leave_to_the_parent)


@contextlib.contextmanager
def locked(folder: Lockable) -> Iterator[None]:
    """Holds the lock of a run.

    Raises:
        RunExists: another process, or this one, holds it already.
        StoreError: the file system cannot lock, or the lock cannot be written.
    """
    try:
        descriptor = os.open(folder.lock, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise StoreError(f"cannot lock {folder.path}: {reason(error, folder.path)}") from None
    _held.add(descriptor)
    try:
        _acquire(folder, descriptor)
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
        except OSError as error:
            raise StoreError(f"cannot write {folder.lock}: {reason(error, folder.path)}") from None
        yield
    finally:
        _held.discard(descriptor)
        os.close(descriptor)


def holder(folder: Lockable) -> str | None:
    """Which process trains a run, as "process 123 on host"; None if none does."""
    try:
        descriptor = os.open(folder.lock, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.read(descriptor, 1000).decode(errors="replace") or "another process"
    except OSError:
        return None
    finally:
        os.close(descriptor)
    return None


def _acquire(folder: Lockable, descriptor: int) -> None:
    for attempt in range(ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if attempt < ATTEMPTS - 1:
                time.sleep(PAUSE)
        except OSError as error:
            raise StoreError(
                f"cannot lock {folder.path}: {reason(error)}; keep runs on a file system that can lock files"
            ) from None
    who = os.read(descriptor, 1000).decode(errors="replace") or "another process"
    raise RunExists(f"{folder.path} is being trained by {who}; wait for it, or stop it first")
