import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

GPU = Path(__file__).parents[1] / "benchmarks" / "speed" / "gpu.py"
TINY = ["model.n_steps=4", "env.num_envs=4", "model.n_minibatches=2"]


@pytest.fixture(scope="module")
def gpu() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu", GPU)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_measures_every_population(gpu: ModuleType, tmp_path: Path) -> None:
    settings = [word for setting in TINY for word in ("--set", setting)]
    out = tmp_path / "gpu.md"
    gpu.main(
        [
            "--device",
            "cpu",
            "--members",
            "1",
            "2",
            "--iterations",
            "1",
            "--repetitions",
            "1",
            "--out",
            str(out),
            *settings,
        ]
    )
    text = out.read_text()
    rows = [line for line in text.splitlines() if line.startswith("| 1 |") or line.startswith("| 2 |")]
    assert len(rows) == 2
    assert "| 1.00 |" in rows[0]


def test_useful_operations_are_those_of_the_workload(gpu: ModuleType) -> None:
    config = gpu.load_config(gpu.WORKLOAD, {**gpu.TENSORS, "engine.device": "meta", "model.n_steps": 8})
    encoder, memory, heads = 2 * 64, 4 * 64 * (64 + 64), 64 * 3
    forward = 2 * (encoder + memory + heads)
    # The rollout is one pass forward. Each of four epochs is one more and two backward, but for the observations'.
    expected = forward + 4 * (3 * forward - 2 * encoder)
    # One step more is looked at to bootstrap from, at the end of eight.
    assert gpu.operations(config) == pytest.approx(expected, rel=0.03)


def test_a_row_compares_with_the_first(gpu: ModuleType) -> None:
    rows = [gpu.Row(1, 0.5, 1000, 10), gpu.Row(64, 1.0, 64000, 20)]
    text = gpu.report("cpu", rows, per_step=1e6, top=1e12)
    assert "1.00 MFLOP" in text
    assert "| 64 | 64,000 | 2.00 | 20 | 6.4% |" in text
