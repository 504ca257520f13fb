"""Files that are whole whatever happens, and errors of the disk in the user's words."""

import contextlib
import errno
import os
import shutil
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Writes a file so that a reader, and a crash at any moment, sees the old content or the new one, never a part.

    Raises:
        OSError: it cannot be written; an earlier one is as it was, unless the new one has already taken its place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes the names in a directory survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def reason(error: OSError, place: Path | None = None) -> str:
    """What went wrong, in lower case; on a full disk also how much is free there, and what to do.

    Args:
        error: what the system said.
        place: a path on the disk that was to be written.
    """
    words = (error.strerror or str(error)).lower()
    if place is not None and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{words}; {room(place)}: make room, or use another disk"
    return words


def room(place: Path) -> str:
    """How much is free on the disk that holds a path."""
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.is_dir())).free
    return f"{free / 1e6:,.0f} MB are free there"
