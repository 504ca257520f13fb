"""Who hears what happens in a run: its record, and those who watch it."""

from collections.abc import Sequence
from typing import Any

from popgraft.messages import logger_of
from popgraft.store import RunDatabase
from popgraft.train.observer import Observer
from popgraft.train.place import Place

logger = logger_of(__name__)


class Announcer:
    """Tells of a run.

    Args:
        place: of the run, as the user says it.
        database: where events are recorded.
        observers: those who watch, the user's own last.
    """

    def __init__(self, place: Place, database: RunDatabase, observers: Sequence[Observer]) -> None:
        self._place, self._database, self._observers = place, database, observers

    def tell(self, what: str, *arguments: Any) -> None:
        """Calls a method of every observer."""
        for observer in self._observers:
            getattr(observer, what)(*arguments)

    def event(self, kind: str, text: str, generation: int | None = None) -> None:
        """Records that something has happened, and says so."""
        text = self._place.said(text)
        self._database.record_event(kind, text, generation)
        self.tell("on_event", kind, text)

    def caution(self, texts: Sequence[str]) -> None:
        """Warns of what is worth it, and records what is not on record yet."""
        known = {event.text for event in self._database.events() if event.kind == "caution"}
        for text in texts:
            logger.warning("%s", text)
            if text not in known:
                self._database.record_event("caution", text)

    def warn(self, text: str) -> None:
        """Warns of something."""
        logger.warning("%s", self._place.said(text))

    def damage(self, text: str) -> None:
        """Warns of damage that is on record already."""
        self.warn(text)
        self._observers[-1].on_event("damaged", self._place.said(text))
