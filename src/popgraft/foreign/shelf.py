"""What a scheduler keeps of its members' reports: files in one folder, and records that are read back."""

import dataclasses
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from popgraft.foreign import checkpoint
from popgraft.foreign.checkpoint import Format
from popgraft.foreign.member import PopulationMember
from popgraft.hyperparams import HyperparamConfig, from_lists

logger = logging.getLogger(__name__)


class Shelf:
    """The files.

    Args:
        folder: where; made when the first one is written.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def keep(self, report: PopulationMember, form: Format, data: dict[Any, Any]) -> None:
        """Writes a report's checkpoint; one with bad weights has failed."""
        judge(report, data)
        about = {name: getattr(report, name) for name in ("member_id", "step", "performance", "hyperparams")}
        report.checkpoint_path = self.write(f"member_{report.member_id}.pt", checkpoint.encode(form, data, **about))

    def copied(self, record: PopulationMember, name: str) -> PopulationMember:
        """The record with files that stay as they are when the member writes its next."""
        return dataclasses.replace(
            record,
            checkpoint_path=self.copied_file(record.checkpoint_path, f"{name}.pt"),
            vecnormalize_stats_path=self.copied_file(record.vecnormalize_stats_path, f"{name}_vecnormalize.pt"),
        )

    def copied_file(self, path: str | Path | None, name: str) -> str | Path | None:
        """A copy of a file, if there is one."""
        return self.write(name, Path(path).read_bytes()) if path is not None and Path(path).is_file() else path

    def write(self, name: str, blob: bytes) -> str:
        """Writes a file, whole or not at all."""
        path = self._folder / name
        checkpoint.write(path, blob)
        return str(path)


def judge(report: PopulationMember, data: dict[Any, Any]) -> None:
    """Fails a report with bad weights."""
    wrong = checkpoint.not_finite(data)
    if wrong is not None and report.is_healthy:
        logger.warning(checkpoint.NOT_FINITE, report.member_id, wrong)
        report.performance = math.nan


def restored(record: Mapping[str, Any], spaces: Sequence[HyperparamConfig]) -> PopulationMember:
    """A member of its record, with choices as the spaces list them."""
    values: dict[str, Any] = checkpoint.plain(record)
    if values.get("reported"):
        values["reported"] = restored(values["reported"], spaces)
    for hyperparams in (values["hyperparams"], *(report["hyperparams"] for report in values["history"])):
        for space in spaces:
            if space.name in hyperparams:
                hyperparams[space.name] = from_lists(space, hyperparams[space.name])
    return PopulationMember(**values)
