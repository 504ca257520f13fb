"""Files that are whole whatever happens, and are files when they are read; errors of the disk in the user's words."""

import contextlib
import errno
import os
import shutil
import stat
from pathlib import Path

TEXT = 2**24
"""Bytes of a text at most, such as what lies beside a snapshot."""


def read_file(path: Path, most: int = TEXT) -> bytes:
    """The content of a regular file of at most so many bytes. Raises OSError, as `check_file` does."""
    check_file(path, most)
    return path.read_bytes()


def check_file(path: Path, most: int) -> None:
    """Looks at a file before it is opened: a pipe or a device may have no end.

    Args:
        path: the file.
        most: bytes that it may have.

    Raises:
        OSError: it cannot be read, is not a regular file, or is larger.
    """
    found = path.stat()
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is not a regular file")
    if found.st_size > most:
        raise OSError(errno.EFBIG, f"it has {found.st_size:,} bytes, which is more than {most:,}")


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
