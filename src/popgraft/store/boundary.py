"""Where what a run holds meets those who read it: whatever it makes them raise is said in words."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from popgraft.disk import reason
from popgraft.errors import Damaged, PopgraftError, StoreError
from popgraft.messages import told

LONGEST = 300
"""Characters that are quoted of an error, which may quote the file."""


@contextlib.contextmanager
def reading(what: Path | str) -> Iterator[None]:
    """Reads the content of a run, which may be anything: checksums prove who wrote it, not what it means.

    Args:
        what: the run or the file, for messages.

    Raises:
        Damaged: it makes no sense.
        StoreError: it cannot be read.
    """
    try:
        yield
    except PopgraftError:
        raise
    except OSError as error:
        raise StoreError(f"{what} cannot be read: {reason(error)}") from error
    except Exception as error:
        text = told(error)[:LONGEST]
        raise Damaged(f"{what} is damaged: it holds what no run has written ({text})") from error
