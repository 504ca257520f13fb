"""Work that goes on beside training."""

import threading
from collections.abc import Callable


class Background:
    """Pieces of work, one after another, in a thread of their own; what goes wrong in one is raised by `wait`.

    Work is given what nobody else will change, and is waited for before its result is relied on.
    """

    def __init__(self) -> None:
        self._latest: threading.Thread | None = None
        self._error: BaseException | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Begins a piece of work once those before have ended; it is left out if one of them has failed."""
        before = self._latest

        def run() -> None:
            if before is not None:
                before.join()
            try:
                if self._error is None:
                    work()
            except BaseException as error:
                self._error = error

        self._latest = threading.Thread(target=run, name="popgraft background")
        self._latest.start()

    def wait(self) -> None:
        """Waits for the end of all work.

        Raises:
            Exception: what went wrong in it; only once.
        """
        if self._latest is not None:
            self._latest.join()
            self._latest = None
        error, self._error = self._error, None
        if error is not None:
            raise error
