"""Trains a small run again and again, while `faults.c`, which is preloaded, makes one of its calls to the disk fail.

    LD_PRELOAD=faults.so python faulty.py FOLDER SETTINGS_JSON STRIDE OFFSET BESIDES FAULT…

Every FAULT is "kill", "EIO" or "ENOSPC". Prints the number of calls, and one line for every case in which something is
wrong afterwards. Each case is a process forked from this one, in which everything is imported already.
"""

import contextlib
import ctypes
import errno
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from same import check_same, contents

from popgraft import PopgraftError, Run, train
from popgraft.errors import StoreError
from popgraft.store import snapshot
from popgraft.train import resume
from popgraft.train.points import points

torch.set_num_threads(1)
LIBRARY = ctypes.CDLL(None)


def arm(where: Path, besides: str, call: int, fault: str) -> None:
    error = -1 if fault == "kill" else getattr(errno, fault)
    LIBRARY.faults_arm(str(where).encode(), besides.encode(), call, error, fault == "ENOSPC")


def in_a_fork(work: Callable[[], None], output: Path) -> int:
    """Exit status of a child that does something: 0, 1 for an error that is not popgraft's, −9 where it was killed."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    status = 1
    try:
        with output.open("w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            try:
                work()
                status = 0
            except PopgraftError as error:
                print(f"{type(error).__name__}: {error}", flush=True)
                status = 2
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
    finally:
        os._exit(status)


class Cases:
    """One run and all the ways in which it can fail.

    Args:
        folder: an empty one.
        settings: of the run.
        besides: part of the names of files whose calls are not counted.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], besides: str) -> None:
        self.folder, self.settings, self.besides, self.output = folder, settings, besides, folder / "output"
        self.straight, self.whole = (self.trained(name, keep) for name, keep in (("straight", 1), ("whole", 1000)))

    def named(self, name: str, keep: int) -> dict[str, Any]:
        snapshots = {**self.settings["snapshots"], "keep": keep}
        return {**self.settings, "run_dir": str(self.folder / name), "snapshots": snapshots}

    def trained(self, name: str, keep: int) -> Run:
        assert in_a_fork(lambda: train(self.named(name, keep)) and None, self.output) == 0, self.output.read_text()
        return Run(self.folder / name)

    def calls(self) -> int:
        """How many there are; printed by a child, for its threads to end with it."""

        def work() -> None:
            arm(self.folder / "counted", self.besides, 0, "EIO")
            train(self.named("counted", 1))
            print(LIBRARY.faults_calls(), flush=True)

        assert in_a_fork(work, self.output) == 0, self.output.read_text()
        return int(self.output.read_text())

    def problem(self, call: int, fault: str) -> str | None:
        """What is wrong after a fault at a call, if anything."""
        path, settings = self.folder / "broken", self.named("broken", 1)
        shutil.rmtree(path, ignore_errors=True)

        def work() -> None:
            arm(path, self.besides, call, fault)
            train(settings)

        status = in_a_fork(work, self.output)
        said = self.output.read_text()
        if status == 1 or (status == -signal.SIGKILL) != (fault == "kill"):
            return f"ended with {status}: {said}"
        if fault == "ENOSPC" and status == 2 and "MB are free there: make room" not in said:
            return f"does not say that the disk is full: {said}"
        try:
            if (path / "config.yaml").is_file():
                self.check_snapshots(Run(path))
            else:  # there was no run yet
                shutil.rmtree(path, ignore_errors=True)
            if in_a_fork(lambda: self.complete(path), self.output):
                return f"resume: {self.output.read_text()} after: {said}"
            check_same(Run(path), self.straight)
        except (AssertionError, StoreError):
            return f"{traceback.format_exc()} after: {said}"
        return None

    def complete(self, path: Path) -> None:
        """Goes on with a run as far as there is anything left to do."""
        if not path.exists():
            train(self.named(path.name, 1))
        elif Run(path).state != "finished":
            resume(path)

    def check_snapshots(self, run: Run) -> None:
        """What verifies is right, and the newest of it is not too old."""
        newest = 0
        for generation, name in points(run.folder).items():
            with contextlib.suppress(StoreError):
                snapshot.verified(run.folder, name)
                assert contents(run, name) == contents(self.whole, name), name
                newest = max(newest, generation)
        assert run.generations - newest <= self.settings["snapshots"]["interval"], (run.generations, newest)


def main(folder: str, settings: str, stride: str, offset: str, besides: str, *faults: str) -> None:
    cases = Cases(Path(folder), json.loads(settings), besides)
    count = cases.calls()
    print(f"{count} calls", flush=True)
    for call in range(1 + int(offset), count + 1, int(stride)):
        for fault in faults:
            if problem := cases.problem(call, fault):
                print(f"{fault} at call {call}: {problem}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
