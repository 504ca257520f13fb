import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("ray")

SCALE = Path(__file__).parents[1] / "benchmarks" / "scale" / "run.py"


def test_rows_that_cross_are_counted_as_a_graft_moves_them() -> None:
    spec = importlib.util.spec_from_file_location("scale", SCALE)
    scale = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(scale)
    recipients, crossing = scale.traffic(1, 40)
    assert (recipients, crossing) == (10, 0)  # a quarter of 40 is replaced, within the shard
    assert scale.traffic(40, 40) == (10, 10)  # every recipient has its donor elsewhere
    costs = scale.Costs(1000, 100, 1010, {40: 0.5}, {40: 0.25}, 1e-3, 1e-3, 1e-3, 1e6)
    row = scale.counted(costs, 40, 40)
    # 5 updates and 5 commands with their answers for each of 40 shards, a millisecond each
    assert row[:5] == ["40", "40", "500 ms", "250 ms", "600 (0.60 s)"]
