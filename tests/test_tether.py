"""A program that is killed takes the processes that it has forked along, and those that these have forked."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import popgraft.tether

PROGRAM = """
import importlib.util, os, sys, threading, time
spec = importlib.util.spec_from_file_location("tether", sys.argv[1])
tether = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tether)

def work():
    with tether.children_tied():
        child = os.fork()
        if child == 0:
            grandchild = os.fork()
            if grandchild:
                print(os.getpid(), grandchild, flush=True)
            time.sleep(1000)
    time.sleep(1000)

if sys.argv[2] == "in a thread":
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


def alive(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("how", ["in the main thread", "in a thread", "stopped"])
def test_no_process_outlives_a_killed_program(how: str) -> None:
    command = [sys.executable, "-c", PROGRAM, popgraft.tether.__file__, how]
    program = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert program.stdout is not None
    with program, program.stdout as output:
        pids = [int(pid) for pid in output.readline().split()]
        time.sleep(0.2)
        assert [alive(pid) for pid in pids] == [True, True]
        if how == "stopped" and popgraft.tether.can_tie():
            os.kill(pids[1], signal.SIGSTOP)
        program.kill()
    deadline = time.monotonic() + 60
    while any(alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [alive(pid) for pid in pids] == [False, False]
