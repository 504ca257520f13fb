import multiprocessing
import os
import signal
import subprocess
import sys

import pytest

from popgraft.errors import RunExists, StoreError
from popgraft.store import RunFolder
from popgraft.store.lock import holder, locked

HOLD = """
import sys, os
from popgraft.store import RunFolder
from popgraft.store.lock import locked
with locked(RunFolder.open(sys.argv[1])):
    child = os.fork() if sys.argv[2:] else 1
    if child:
        print(child, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "")


def test_one_holder_at_a_time(folder):
    assert holder(folder) is None
    with locked(folder):
        assert holder(folder).startswith(f"process {os.getpid()} on ")
        with pytest.raises(RunExists, match=f"run is being trained by process {os.getpid()} on "), locked(folder):
            pytest.fail("two hold it")
        assert holder(folder) is not None
    assert holder(folder) is None
    with locked(folder):
        pass


def test_asking_does_not_disturb_the_holder_or_leave_a_trace(folder):
    folder.lock.unlink(missing_ok=True)
    assert holder(folder) is None
    assert not folder.lock.exists()
    with locked(folder):
        for _ in range(3):
            assert holder(folder) is not None
        with pytest.raises(RunExists), locked(folder):
            pass


@pytest.mark.heavy
@pytest.mark.parametrize("arguments", [pytest.param([], marks=pytest.mark.slow), ["fork"]])
def test_a_killed_holder_holds_nothing_even_where_its_children_live_on(folder, arguments):
    command = [sys.executable, "-c", HOLD, str(folder.path), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        child = int(process.stdout.readline())
        assert holder(folder).startswith(f"process {process.pid} on ")
        with pytest.raises(RunExists, match=f"by process {process.pid} on "), locked(folder):
            pass
        process.kill()
        process.wait()
        with locked(folder):
            assert holder(folder).startswith(f"process {os.getpid()} on ")
        if arguments:
            os.kill(child, signal.SIGKILL)


def test_a_folder_that_cannot_be_locked(folder):
    folder.lock.unlink(missing_ok=True)
    folder.lock.mkdir()
    with pytest.raises(StoreError, match=r"cannot lock .*run: is a directory"), locked(folder):
        pass


def test_processes_that_are_started_meanwhile_hold_nothing(folder):
    with locked(folder):
        process = multiprocessing.get_context("spawn").Process(target=sys.exit)
        process.start()
    assert holder(folder) is None
    process.join()
