"""The folder of one run.

RUN/
├── config.yaml     every setting of the run; written last, so a folder that has it is complete
├── report.html     what the run has done, as a page; any time anew
├── lock            held by the process that trains the run (`popgraft.store.lock`)
├── run.sqlite      scores, grafts, metrics and events (`RunDatabase`)
├── snapshots/      one folder per snapshot (`popgraft.store.snapshot`)
└── tensorboard/    event files
"""

import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path

from popgraft.disk import reason, write_atomic
from popgraft.errors import RunExists, StoreError
from popgraft.store.database import RunDatabase


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """Where the files of a run lie.

    Attributes:
        path: the folder.
    """

    path: Path

    @property
    def config(self) -> Path:
        """Every setting of the run, as YAML."""
        return self.path / "config.yaml"

    @property
    def database(self) -> Path:
        """The SQLite file of `RunDatabase`."""
        return self.path / "run.sqlite"

    @property
    def lock(self) -> Path:
        """The file that `popgraft.store.lock` locks."""
        return self.path / "lock"

    @property
    def snapshots(self) -> Path:
        """Folder of the snapshots."""
        return self.path / "snapshots"

    @property
    def tensorboard(self) -> Path:
        """Folder of the event files."""
        return self.path / "tensorboard"

    @classmethod
    def create(cls, path: str | Path, config_yaml: str, versions: Mapping[str, str] | None = None) -> "RunFolder":
        """Makes the folder of a new run.

        Args:
            path: a folder that does not exist yet, or an empty one.
            config_yaml: every setting of the run.
            versions: of the packages that results depend on.

        Raises:
            RunExists: the folder holds a run, or something else.
            StoreError: the folder cannot be written.
        """
        folder = cls(Path(path).expanduser())
        try:
            folder.path.mkdir(parents=True, exist_ok=True)
            if any(folder.path.iterdir()):
                what = "already holds a run" if folder.config.is_file() else "is not empty"
                raise RunExists(f"{folder.path} {what}; set run_dir to another folder, or delete this one")
            folder.snapshots.mkdir()  # of two processes that found the folder empty, one fails here
            folder.tensorboard.mkdir()
            RunDatabase.create(folder.database)
            with RunDatabase(folder.database) as database:
                database.record_session(config_yaml, versions or {})
            write_atomic(folder.config, config_yaml.encode())
        except RunExists:
            raise
        except OSError as error:
            raise StoreError(
                f"cannot make the run folder {folder.path}: {reason(error, folder.path)}; set run_dir to another folder"
            ) from None
        return folder

    @classmethod
    def find(cls, path: Path) -> "list[RunFolder]":
        """All runs below a folder, sorted, those that lack their database or their configuration included."""
        names, found = cls(path), []
        for place, folders, files in os.walk(path):
            folder = cls(Path(place))
            has_database, has_config = (file.name in files for file in (names.database, names.config))
            if has_database or (has_config and folder.snapshots.name in folders):
                found.append(folder)
                # What the run writes and removes meanwhile holds no runs.
                folders[:] = set(folders) - {names.snapshots.name, names.tensorboard.name}
        return sorted(found, key=lambda folder: folder.path)

    @classmethod
    def open(cls, path: str | Path) -> "RunFolder":
        """Finds the folder of an earlier run.

        Raises:
            StoreError: there is no run at `path`; names the runs directly below it, if any.
        """
        folder = cls(Path(path).expanduser())
        parts = {file.name: file.exists() for file in (folder.config, folder.snapshots)}
        if all(parts.values()):
            return folder
        if not folder.path.is_dir():
            raise StoreError(f"{folder.path} is not a folder; give the folder of a run")
        missing = ", ".join(name for name, found in parts.items() if not found)
        runs = sorted(str(file.parent) for file in folder.path.glob(f"*/{folder.config.name}"))
        hint = f"; did you mean {' or '.join(runs)}?" if runs else "; give the folder of a run (its run_dir)"
        raise StoreError(f"{folder.path} holds no complete run: it lacks {missing}{hint}")
