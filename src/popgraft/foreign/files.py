"""The files that members' records name, and whether they are still what a saved state was of."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from popgraft.disk import write_atomic
from popgraft.errors import StoreError
from popgraft.foreign.member import PopulationMember

NAMED_BY = ("checkpoint_path", "vecnormalize_stats_path")


def digests(records: list[PopulationMember | None]) -> dict[str, str | None]:
    """Checksums of all files that records name, by path; None where there is none."""
    paths: set[str] = set()
    while records:
        record = records.pop()
        if record is not None:
            paths |= {str(getattr(record, name)) for name in NAMED_BY if getattr(record, name) is not None}
            records.append(record.reported)
    return {path: _digest(Path(path)) for path in sorted(paths)}


def check(known: Mapping[str, str | None]) -> None:
    """Whether files are what they were when `digests` was taken.

    Raises:
        StoreError: one is not.
    """
    for path, checksum in known.items():
        if checksum is not None and _digest(Path(path)) != checksum:
            raise StoreError(
                f"{path} is not what this state was saved with: it is missing, or the run has gone on since; put back "
                "the checkpoint_dir of that time, or save and load the run as a whole (PBTTrainingCoordinator.save)"
            )


def moved(state: Mapping[str, Any], places: Mapping[str, str]) -> dict[str, Any]:
    """A scheduler's state whose files lie elsewhere.

    Args:
        state: the state.
        places: new path by old path.
    """

    def record(old: Any) -> Any:
        if not old:
            return old
        new = {name: places.get(str(old[name]), old[name]) for name in NAMED_BY}
        return {**old, **new, "reported": record(old["reported"])}

    return {
        **state,
        "population": [record(member) for member in state["population"]],
        "best": record(state["best"]),
        "files": {places.get(path, path): checksum for path, checksum in state["files"].items()},
    }


def contents(paths: Iterable[str]) -> dict[str, bytes | None]:
    """What files hold; None where there is none."""
    return {path: Path(path).read_bytes() if Path(path).is_file() else None for path in paths}


def put_back(held: Mapping[str, bytes | None]) -> None:
    """Makes files what `contents` found."""
    for path, blob in held.items():
        if blob is None:
            Path(path).unlink(missing_ok=True)
        else:
            write_atomic(Path(path), blob)


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return None
