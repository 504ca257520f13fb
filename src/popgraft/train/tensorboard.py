"""TensorBoard event files: one folder for every member, one for the population."""

import contextlib
import logging
import math
import os
from collections.abc import Iterator
from pathlib import Path

from torch.utils.tensorboard import SummaryWriter

from popgraft.disk import reason
from popgraft.errors import StoreError
from popgraft.train.observer import Generation, Observer, Plan

logger = logging.getLogger(__name__)


def tag_of(metric: str) -> str:
    """Where a metric is found in TensorBoard."""
    if "/" in metric:
        return metric
    return f"rollout/{metric}" if metric.startswith("ep_") else f"train/{metric}"


class TensorBoard(Observer):
    """Writes `tensorboard/member_NN` and `tensorboard/population`; the x axis counts environment steps.

    Members are plotted over the steps taken at their own place, the population over the steps of all members together.
    Everything raises StoreError where the files cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._members: list[SummaryWriter] = []
        self._population: SummaryWriter | None = None

    def on_start(self, plan: Plan) -> None:
        """Opens the event files."""
        size = plan.config.pbt.population_size
        width = max(2, len(str(size - 1)))
        with self._writing():
            self._members = [SummaryWriter(str(self._folder / f"member_{i:0{width}d}")) for i in range(size)]
            self._population = SummaryWriter(str(self._folder / "population"))

    def on_generation(self, generation: Generation) -> None:
        """Writes every update of every member, and the population's scores."""
        with self._writing():
            self._write(generation)

    def _write(self, generation: Generation) -> None:
        assert self._population is not None
        pop = len(self._members)
        updates = next(iter(generation.metrics.values())).shape[1]
        per_update = generation.steps // pop / (updates * (generation.number + 1))
        for name, values in generation.metrics.items():
            for writer, row in zip(self._members, values.tolist(), strict=True):
                for update, value in enumerate(row):
                    step = round((generation.number * updates + update + 1) * per_update)
                    if math.isfinite(value):  # an update without finished episodes has no return, a bound may be off
                        writer.add_scalar(tag_of(name), value, step)
        scores = generation.scores.mean
        healthy = scores[scores.isfinite()]
        for writer, score in zip(self._members, scores.tolist(), strict=True):
            writer.add_scalar("pbt/score", score, generation.steps // pop)
        summary = {
            "population_size": float(pop),
            "ready_members": float(len(healthy)),
            **generation.statistics,
        }
        if len(healthy):
            summary |= {
                "mean_performance": healthy.mean().item(),
                "std_performance": healthy.std(correction=0).item(),
                "min_performance": healthy.min().item(),
                "max_performance": healthy.max().item(),
            }
        for name, value in summary.items():
            self._population.add_scalar(f"pbt/{name}", value, generation.steps)

    def sizes(self) -> dict[str, int]:
        """Bytes of every event file, with everything in it that has been written so far."""
        with self._writing():
            for writer in self._writers():
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

    def _writers(self) -> list[SummaryWriter]:
        return [*self._members, *([self._population] if self._population else [])]

    def on_end(self) -> None:
        """Closes the event files; whatever ends the run has been said already."""
        for writer in self._writers():
            try:
                writer.close()
            except OSError as error:
                logger.warning("the event file in %s may lack its end: %s", writer.log_dir, reason(error))

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            why = reason(error, self._folder)
            raise StoreError(f"cannot write the event files in {self._folder}: {why}") from None
