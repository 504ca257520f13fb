"""TensorBoard event files: one folder for every member, one for the population."""

import contextlib
import io
import itertools
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from popgraft.disk import reason
from popgraft.errors import StoreError
from popgraft.messages import logger_of
from popgraft.train.observer import Generation, Observer, Plan
from popgraft.train.scalars import POPULATION, places, scalars

logger = logger_of(__name__)

PATIENCE = 10.0
"""Seconds for which points may be held back, until the next generation."""

_numbers = itertools.count()


class EventFile:
    """A new event file, which is open only while something is appended to it.

    TensorBoard's own writer has a thread for each, in which a folder that is gone is a traceback.

    Args:
        folder: where it lies.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        parts = f"{time.time():010.0f}", socket.gethostname(), str(os.getpid()), str(next(_numbers))
        self.path = folder / f"events.out.tfevents.{'.'.join(parts)}"
        self._held = io.BytesIO()
        self.add(Event(wall_time=time.time(), file_version="brain.Event:2"))
        self.flush()

    def add(self, event: Event) -> None:
        """Holds an event for the next `flush`."""
        RecordWriter(self._held).write(event.SerializeToString())

    def flush(self) -> None:
        """Appends what is held; where that fails it is lost. Raises OSError."""
        held, self._held = self._held.getvalue(), io.BytesIO()
        with self.path.open("ab") as file:
            file.write(held)


class TensorBoard(Observer):
    """Writes `tensorboard/member_NN` and `tensorboard/population`; the x axis counts environment steps.

    Members are plotted over the steps taken at their own place, the population over the steps of all members together.
    Everything raises StoreError where the files cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._open: dict[str, EventFile] = {}
        self._flushed = 0.0

    def on_start(self, plan: Plan) -> None:
        """Opens the event files."""
        self._begin([*places(plan.config.pbt.population_size), POPULATION])

    def on_generation(self, generation: Generation) -> None:
        """Writes every update of every member, and the population's scores."""
        points: dict[tuple[str, int], list[Any]] = {}  # an event each: it costs more than the values in it
        for place, tag, value, step in scalars(generation):
            points.setdefault((place, step), []).append(Summary.Value(tag=tag, simple_value=value))
        now = time.time()
        for (place, step), values in points.items():
            self._open[place].add(Event(wall_time=now, step=step, summary=Summary(value=values)))
        if time.monotonic() - self._flushed > PATIENCE:
            self._flush()

    def sizes(self) -> dict[str, int]:
        """Bytes of every event file, with everything in it that has been written so far."""
        self._flush()
        with self._writing():
            return {str(file.relative_to(self._folder)): file.stat().st_size for file in self._files()}

    def cut(self, sizes: dict[str, int]) -> None:
        """Goes back to event files of the sizes that `sizes` returned once; later ones are removed, and begun again."""
        begun = list(self._open)
        self.on_end()
        with self._writing():
            for file in self._files():
                size = sizes.get(str(file.relative_to(self._folder)), 0)
                if not size:
                    file.unlink()
                elif size < file.stat().st_size:
                    os.truncate(file, size)
        if begun:
            self._begin(begun)

    def _begin(self, names: list[str]) -> None:
        with self._writing():
            self._folder.mkdir(exist_ok=True)
            for name in names:
                self._open[name] = EventFile(self._folder / name)
        self._flushed = time.monotonic()

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*/events.out.tfevents.*"))

    def on_end(self) -> None:
        """Closes the event files; whatever ends the run has been said already."""
        files, self._open = self._open, {}
        for file in files.values():
            try:
                file.flush()
            except FileNotFoundError:  # the folder is no more
                continue
            except OSError as error:
                logger.warning("the event file in %s may lack its end: %s", file.path.parent, reason(error))

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        with self._writing():
            for file in self._open.values():
                file.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = reason(error, self._folder)
            raise StoreError(f"cannot write the event files in {self._folder}: {why}") from None
