"""Where the folder of a run is while it trains, wherever guests of this process take the working folder."""

import contextlib
import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from popgraft.errors import PopgraftError, StoreError
from popgraft.store import RunFolder


@dataclasses.dataclass(frozen=True)
class Place:
    """The folder of a run.

    Attributes:
        given: as the user says it, and reads it in messages.
        folder: the same by its absolute path, for everything else.
    """

    given: Path
    folder: RunFolder

    @classmethod
    def of(cls, path: str | Path) -> "Place":
        """Where a path leads at this moment.

        Raises:
            StoreError: it leads nowhere, because the working folder has been deleted.
        """
        given = Path(path).expanduser()
        try:
            return cls(given, RunFolder(Path(os.path.abspath(given))))
        except OSError:
            raise StoreError(f"{given} leads nowhere: the current folder has been deleted; go to another one") from None

    def said(self, text: str) -> str:
        """A message with the folder as it was given."""
        return text.replace(str(self.folder.path), str(self.given))

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Says errors in the user's words, and goes back to the working folder in the end."""
        before = _working_folder()
        try:
            yield
        except PopgraftError as error:
            error.args = tuple(self.said(part) if isinstance(part, str) else part for part in error.args)
            raise
        finally:
            if before is not None:
                with contextlib.suppress(OSError):
                    os.chdir(before)

    @contextlib.contextmanager
    def used(self) -> Iterator[None]:
        """Says it where the folder has been taken away.

        Raises:
            StoreError: it is gone.
        """
        try:
            yield
        except StoreError as error:
            if self.folder.config.exists():
                raise
            raise StoreError(
                f"the run folder {self.given} is gone: it was deleted or moved while the run went on, which ends with "
                "that; if it was moved, go on with: popgraft resume ITS_NEW_PLACE"
            ) from error


def _working_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it has been deleted
        return None
