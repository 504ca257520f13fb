import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

SPEED = Path(__file__).parents[1] / "benchmarks" / "speed" / "run.py"
TINY = {"n_steps": 8, "seconds": 0, "updates": 1}


@pytest.fixture(scope="module")
def speed() -> ModuleType:
    spec = importlib.util.spec_from_file_location("speed", SPEED)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_baseline_does_the_same_work(speed: ModuleType) -> None:
    own = speed.measure({"engine": "popgraft", "population": 2, "sequence_length": 4, "quantiles": 1, **TINY})
    baseline = speed.measure({"engine": "sb3-contrib", "sequence_length": 8, **TINY})
    assert own["steps_per_second"] > 0 < baseline["steps_per_second"]
    # The process must have loaded torch (> 100 MiB), and the unit must not be off by 1024.
    assert 100 < own["peak_mib"] < 4000
    # torch.nn.LSTM has a second bias [4 * 64]; all else is of the same size.
    assert baseline["parameters"] == own["parameters"] + 4 * 64
    # Encoder 2 -> 64, LSTM 64 -> 64, two logits, one value.
    assert own["parameters"] == (2 * 64 + 64) + (4 * 64 * (64 + 64) + 4 * 64) + (64 * 2 + 2) + (64 + 1)


def test_models_of_both_libraries_are_called_alike(speed: ModuleType) -> None:
    own, other = (speed.measure({"engine": name, **TINY}) for name in ("DistributionalPPO", "RecurrentPPO"))
    # Two torch.nn.LSTMs with a second bias; one value instead of 21 quantiles of 64 features and a bias.
    assert other["parameters"] == own["parameters"] + 2 * 4 * 64 - 20 * 65


def measured(speed: float, cpu: float, peak: float) -> dict[str, float]:
    return {"steps_per_second": speed, "steps_per_cpu_second": cpu, "peak_mib": peak}


def test_a_row_compares_pairs(speed: ModuleType) -> None:
    work = {"population": 16, "sequence_length": 128, "quantiles": 21}
    # Ratios by the clock 10, 30 and 12: their median is 12, although the ratio of the medians is 3000 / 200 = 15.
    pairs = [
        (measured(100, 200, 50), measured(1000, 3000, 300)),
        (measured(200, 200, 50), measured(6000, 4000, 310)),
        (measured(250, 200, 50), measured(3000, 5000, 305)),
    ]
    row = speed.Row(work, pairs)
    assert row.cells == [
        "16",
        "128",
        "21",
        "3,000 (1,000–6,000)",
        "12.0 (10.0–30.0)",
        "20.0 (15.0–25.0)",
        "310",
    ]
    model = speed.Row({"hidden": 64}, pairs)
    text = speed.report({"date": "today"}, {1: [pairs[0][0]]}, 1, [row], [model])
    assert "| 64 | 200 (100–250) | 3,000 (1,000–6,000) | 12.0 (10.0–30.0) | 20.0 (15.0–25.0) |" in text
    assert "| 16 | 128 | 21 | 3,000 (1,000–6,000) | 12.0 (10.0–30.0) |" in text
    assert "12.0 × sb3-contrib, required 15 ×: missed" in text
    faster = speed.Row(work, [(measured(100, 100, 50), measured(1500, 1, 1))])
    assert "15.0 × sb3-contrib, required 15 ×: reached" in speed.report({}, {1: [pairs[0][0]]}, 1, [faster], [])
