"""TensorBoard event files: one folder for every member, one for the population."""

import contextlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import FileWriter

from popgraft.disk import reason
from popgraft.errors import StoreError
from popgraft.train.observer import Generation, Observer, Plan
from popgraft.train.scalars import POPULATION, places, scalars

logger = logging.getLogger(__name__)


class TensorBoard(Observer):
    """Writes `tensorboard/member_NN` and `tensorboard/population`; the x axis counts environment steps.

    Members are plotted over the steps taken at their own place, the population over the steps of all members together.
    Everything raises StoreError where the files cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[str, FileWriter] = {}

    def on_start(self, plan: Plan) -> None:
        """Opens the event files."""
        with self._writing():
            for place in (*places(plan.config.pbt.population_size), POPULATION):
                self._writers[place] = FileWriter(str(self._folder / place))

    def on_generation(self, generation: Generation) -> None:
        """Writes every update of every member, and the population's scores."""
        points: dict[tuple[str, int], list[Any]] = {}  # an event each: it costs more than the values in it
        for place, tag, value, step in scalars(generation):
            points.setdefault((place, step), []).append(Summary.Value(tag=tag, simple_value=value))
        with self._writing():
            for (place, step), values in points.items():
                self._writers[place].add_summary(Summary(value=values), step)

    def sizes(self) -> dict[str, int]:
        """Bytes of every event file, with everything in it that has been written so far."""
        with self._writing():
            for writer in self._writers.values():
                writer.flush()
            return {str(file.relative_to(self._folder)): file.stat().st_size for file in self._files()}

    def cut(self, sizes: dict[str, int]) -> None:
        """Goes back to event files of the sizes that `sizes` returned once; later ones are removed."""
        with self._writing():
            for file in self._files():
                size = sizes.get(str(file.relative_to(self._folder)), 0)
                if not size:
                    file.unlink()
                elif size < file.stat().st_size:
                    os.truncate(file, size)

    def _files(self) -> list[Path]:
        return sorted(self._folder.glob("*/events.out.tfevents.*"))

    def on_end(self) -> None:
        """Closes the event files; whatever ends the run has been said already."""
        for writer in self._writers.values():
            try:
                writer.close()
            except OSError as error:
                logger.warning("the event file in %s may lack its end: %s", writer.get_logdir(), reason(error))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = reason(error, self._folder)
            raise StoreError(f"cannot write the event files in {self._folder}: {why}") from None
