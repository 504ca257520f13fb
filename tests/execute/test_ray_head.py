"""A cluster whose head, or whose node that the run is on, is gone."""

import subprocess
import sys

import pytest

from popgraft import Run
from popgraft.train import resume

ray = pytest.importorskip("ray")
pytestmark = pytest.mark.slow

from .disturbed import SMALL  # noqa: E402  # needs ray

PROGRAM = """
import os, signal, sys, time
from pathlib import Path
from popgraft import Observer, PopgraftError, train
from popgraft.execute import ray_head

ray_head.WITHOUT_HEAD = 3.0
name, settings = sys.argv[1], eval(sys.argv[2])

class Killing(Observer):
    updates = 0

    def on_update(self, steps):
        self.updates += 1
        if self.updates == 6:
            for stat in Path("/proc").glob("[0-9]*/stat"):
                pid, _, rest = stat.read_text().partition(" (")
                if rest.startswith(f"{name})") and int(rest.rpartition(")")[2].split()[1]) == os.getpid():
                    os.kill(int(pid), signal.SIGKILL)

try:
    train(settings, observer=Killing())
except PopgraftError as error:
    print(f"{type(error).__name__}: {error}")
    sys.exit(2)
"""


@pytest.mark.parametrize(("name", "what"), [("gcs_server", "its head"), ("raylet", "the node of this process")])
def test_a_cluster_that_is_gone_is_named_and_the_run_can_be_resumed(name, what, tmp_path):
    settings = {**SMALL, "seed": 3, "run_dir": str(tmp_path / "run"), "execute": {"kind": "ray", "shards": 2}}
    settings["total_timesteps"] = 20 * 256
    command = [sys.executable, "-c", PROGRAM, name, repr(settings)]
    found = subprocess.run(command, check=False, capture_output=True, text=True, errors="replace", timeout=200)
    assert found.returncode == 2, found.stdout + found.stderr
    assert f"ShardLost: the Ray cluster is gone: {what} (" in found.stdout
    run = Run(tmp_path / "run")
    assert "the Ray cluster is gone" in next(event.text for event in run.events if event.kind == "stopped")
    assert resume(run.path, {"execute": {"kind": "local", "shards": 2}}).is_finished
