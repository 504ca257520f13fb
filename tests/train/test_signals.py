"""Runs of every kind under signals at random moments, as `benchmarks/robustness/signals.py` counts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "robustness" / "signals.py"

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are found in /proc")


@pytest.mark.parametrize("runs", [pytest.param(1, marks=pytest.mark.heavy), pytest.param(200, marks=pytest.mark.slow)])
def test_signals_at_random_moments_change_nothing(tmp_path: Path, runs: int) -> None:
    command = [sys.executable, str(SCRIPT), "--runs", str(runs), "--out", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, check=False, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
    done = [json.loads(line) for line in (tmp_path / "signals.jsonl").read_text().splitlines()]
    assert len(done) == runs
    assert f"{runs} runs of 17 configurations" in (tmp_path / "signals.md").read_text()
