"""The folder of one run.

RUN/
├── config.yaml     every setting of the run; written last, so a folder that has it is complete
├── identity        which run it is, as all its snapshots say
├── report.html     what the run has done, as a page; any time anew
├── lock            held by the process that trains the run (`popgraft.store.lock`)
├── run.sqlite      scores, grafts, metrics and events (`RunDatabase`)
├── snapshots/      one folder per snapshot (`popgraft.store.snapshot`)
└── tensorboard/    event files
"""

import contextlib
import dataclasses
import errno
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path

from popgraft.disk import read_file, reason, sync_directory, write_atomic
from popgraft.errors import Damaged, RunExists, StoreError
from popgraft.store import connection as connections
from popgraft.store.database import RunDatabase
from popgraft.store.integrity import COLUMNS
from popgraft.store.lock import locked

IDENTITY = re.compile(r"[0-9a-f]{32}")
MAKING = re.compile(
    r"config\.yaml|identity|lock|snapshots|tensorboard|run\.sqlite(-wal|-shm|-journal)?|\.(config\.yaml|identity)\.\d+\.tmp"
)
"""Names of all that is in a folder before its run begins."""
UNFINISHED = re.compile(r"\..*\.new")
"""Names of folders that are being made."""


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

    @property
    def identity(self) -> str | None:
        """Which run it is; None for one of an earlier version.

        Raises:
            Damaged: the file says nothing.
            OSError: it cannot be read.
        """
        file = self.path / "identity"
        try:
            text = read_file(file).decode(errors="replace").strip()
        except FileNotFoundError:
            return None
        if not IDENTITY.fullmatch(text):
            raise Damaged(f"{file} is damaged: it does not say which run this is")
        return text

    @classmethod
    def create(cls, path: str | Path, config_yaml: str, versions: Mapping[str, str] | None = None) -> "RunFolder":
        """Makes the folder of a new run; one that does not exist yet appears whole or not at all.

        Args:
            path: a folder that does not exist yet, an empty one, or one in which this has been begun and cut short.
            config_yaml: every setting of the run.
            versions: of the packages that results depend on.

        Raises:
            RunExists: the folder holds a run, or something else.
            StoreError: the folder cannot be written.
        """
        folder = cls(Path(path).expanduser())
        new = cls(folder.path.with_name(f".{folder.path.name}.new"))
        try:
            if folder.path.is_dir():
                folder._fill(config_yaml, versions or {})
                return folder
            new.path.mkdir(parents=True, exist_ok=True)
            new._fill(config_yaml, versions or {}, nameless=True)
            os.rename(new.path, folder.path)
            sync_directory(folder.path.parent)
        except RunExists:
            raise
        except OSError as error:
            if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
                raise RunExists(
                    f"cannot make the run folder {folder.path}: file exists; set run_dir to another folder"
                ) from None
            raise StoreError(
                f"cannot make the run folder {folder.path}: {reason(error, folder.path)}; set run_dir to another folder"
            ) from None
        return folder

    def _fill(self, config_yaml: str, versions: Mapping[str, str], nameless: bool = False) -> None:
        """Makes all that is in the folder of a new run; the configuration comes last.

        Args:
            config_yaml: every setting of the run.
            versions: of the packages that results depend on.
            nameless: whether the folder gets its name afterwards, so that no run can have begun in it.
        """
        self._check_free(nameless)
        with locked(self):
            self._check_free(nameless)
            for file in self.path.iterdir():  # what somebody has left who was killed, or out of room
                if file != self.lock:
                    shutil.rmtree(file) if file.is_dir() else file.unlink()
            self.snapshots.mkdir()
            self.tensorboard.mkdir()
            RunDatabase.create(self.database)
            with RunDatabase(self.database) as database:
                database.record_session(config_yaml, versions)
            write_atomic(self.path / "identity", secrets.token_hex(16).encode())
            write_atomic(self.config, config_yaml.encode())

    def _check_free(self, nameless: bool) -> None:
        """Raises RunExists where there is more than a run that was not made to its end."""
        complete = self.config.is_file() and not nameless
        if complete or not self._is_half_made():
            what = "already holds a run" if complete else "is not empty"
            raise RunExists(f"{self.path} {what}; set run_dir to another folder, or delete this one")

    def _is_half_made(self) -> bool:
        """Whether nothing is there but what `create` makes, none of which has been used yet."""
        folders = {self.snapshots, self.tensorboard}
        for file in self.path.iterdir():
            kind = file.is_dir() if file in folders else file.is_file()
            if not MAKING.fullmatch(file.name) or not kind or file.is_symlink():
                return False
        if any(any(each.iterdir()) for each in folders if each.is_dir()):
            return False
        if not self.database.is_file() or not self.database.stat().st_size:
            return True
        try:
            with connections.in_words(self.database), contextlib.closing(connections.reader(self.database)) as opened:
                tables = [
                    name.decode() for (name,) in opened.execute("SELECT name FROM sqlite_master WHERE sql NOTNULL")
                ]
                if not {*tables} <= {*COLUMNS, "checksums"}:
                    return False
                counts: list[int] = [opened.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0] for table in tables]
        except StoreError:
            return False
        return sum(counts) <= 2  # the first session, and its checksum

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
            folders[:] = [name for name in folders if not UNFINISHED.fullmatch(name)]
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
        if any(folder.path.iterdir()) and folder._is_half_made():
            hint = "; it was not made to its end: train again with this run_dir"
        raise StoreError(f"{folder.path} holds no complete run: it lacks {missing}{hint}")
