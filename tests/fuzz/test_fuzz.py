"""Mutated files of every kind are read, or refused in words; nothing else happens."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is limited, and measured, as on Linux")


def fuzz(folder: Path, cases: int, seed: int, script: str = "fuzzer.py") -> dict[str, Any]:
    command = [sys.executable, str(Path(__file__).with_name(script)), str(folder), str(cases), str(seed)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, f"{found.stdout}\n{found.stderr}"
    *lines, counts = found.stdout.splitlines()
    assert not [line for line in lines if line.startswith("case ")]  # the others are a verbose model's
    return dict(json.loads(counts))


@pytest.mark.heavy
def test_some_mutated_files(tmp_path: Path) -> None:
    counts = fuzz(tmp_path, 300, 1)
    assert sum(sum(count.values()) for count in counts.values()) == 300
    assert all(count["refused"] > 20 for kind, count in counts.items() if kind != "database")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_thousands_of_mutated_files(tmp_path: Path, seed: int) -> None:
    assert all(count["read"] for count in fuzz(tmp_path, 2000, 10 + seed).values())


@pytest.mark.heavy
@pytest.mark.parametrize("cases", [9, pytest.param(500, marks=pytest.mark.slow)])
def test_every_command_reads_a_mutated_run_or_refuses_it(tmp_path: Path, cases: int) -> None:
    found = fuzz(tmp_path, cases, 1, "runs.py")
    assert found["megabytes"] < 500
    outcomes = found["outcomes"].values()
    assert sum(each["cases"] for each in outcomes) == cases
    assert all(each.get("refused") or each["done"] for each in outcomes)
    assert not any(each["problems"] for each in outcomes)
