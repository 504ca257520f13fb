"""Every call of a run that changes the disk is made to fail in turn."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
COMPILER = shutil.which("cc") or shutil.which("gcc")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the faults are preloaded as the Linux loader does it"),
    pytest.mark.skipif(COMPILER is None, reason="the faults are a library in C, and there is no compiler"),
]


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    assert COMPILER is not None
    path = tmp_path_factory.mktemp("library") / "faults.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-o", path, HERE / "faults.c", "-ldl"], check=True)
    return path


@pytest.fixture
def faulty(tiny: Callable[..., dict[str, Any]], library: Path, tmp_path: Path) -> Callable[..., None]:
    """Checks that a run of five generations survives faults at every `stride`-th call."""

    def check(stride: int, offset: int, besides: str, *faults: str) -> None:
        settings = tiny(
            pbt__perturbation_interval=1,
            model__n_epochs=1,
            model__network={"encoder_layers": [4], "hidden_size": 4},
            evaluation={"episodes": 2, "max_steps": 20, "final_episodes": 2},
            total_timesteps=160,
            snapshots={"interval": 2},
        )
        command = [sys.executable, HERE / "faulty.py", tmp_path, json.dumps(settings), stride, offset, besides, *faults]
        environment = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1"}
        found = subprocess.run(
            [str(part) for part in command], check=False, env=environment, capture_output=True, text=True
        )
        assert found.returncode == 0, found.stderr
        count, *problems = found.stdout.splitlines()
        assert int(count.removesuffix(" calls")) > 250
        assert not problems, found.stdout

    return check


@pytest.mark.heavy
def test_a_fault_at_some_calls_costs_nothing_that_was_saved(faulty: Callable[..., None]) -> None:
    faulty(149, 60, "/tensorboard/", "kill", "EIO", "ENOSPC")


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["kill", "EIO", "ENOSPC"])
def test_a_fault_at_any_call_costs_nothing_that_was_saved(faulty: Callable[..., None], fault: str) -> None:
    faulty(1, 0, "/tensorboard/", fault)


@pytest.mark.slow
def test_a_fault_at_any_file_of_a_curve_costs_nothing_that_was_saved(faulty: Callable[..., None]) -> None:
    faulty(23, 0, "", "kill", "EIO", "ENOSPC")
