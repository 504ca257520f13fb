"""Two runs compared leaf by leaf, row by row and point by point."""

import contextlib
import json
import sqlite3
from pathlib import Path
from typing import Any

import safetensors.torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor

from popgraft import Run
from popgraft.store import snapshot
from popgraft.train.points import LASTING


def rows(run: Run, query: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(run.folder.database)) as connection:
        return connection.execute(query).fetchall()


def curves(folder: Path) -> dict[str, Any]:
    accumulator = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    accumulator.Reload()
    tags = accumulator.Tags()["scalars"]
    return {tag: sorted((event.step, repr(event.value)) for event in accumulator.Scalars(tag)) for tag in tags}


def tensors(run: Run, name: str) -> dict[str, Tensor]:
    """The tensors of a snapshot, by dotted path."""
    (file,) = (run.path / "snapshots" / name).glob("*.safetensors")
    return safetensors.torch.load_file(file)


def contents(run: Run, name: str) -> tuple[Any, ...]:
    leaves, metadata = tensors(run, name), snapshot.verified(run.folder, name)
    for local in ("tensorboard", "events"):
        metadata.pop(local, None)
    return {path: leaf.numpy().tobytes() for path, leaf in leaves.items()}, json.dumps(metadata)


def check_same(found: Run, expected: Run) -> None:
    assert found.state == expected.state == "finished"
    for table in ("members", "grafts"):
        assert rows(found, f"SELECT * FROM {table}") == rows(expected, f"SELECT * FROM {table}")
    metrics = "SELECT generation, members, population FROM metrics"
    assert rows(found, metrics) == rows(expected, metrics)
    kept = ", ".join(f"'{kind}'" for kind in LASTING)
    events = f"SELECT generation, kind, text FROM events WHERE kind NOT IN ({kept}) ORDER BY rowid"
    assert rows(found, events) == rows(expected, events)
    assert snapshot.names(found.folder) == snapshot.names(expected.folder)
    for name in snapshot.names(expected.folder):
        assert contents(found, name) == contents(expected, name), name
    for folder in expected.folder.tensorboard.iterdir():
        assert curves(found.folder.tensorboard / folder.name) == curves(folder), folder.name
