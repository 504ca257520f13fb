import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
TINY = [
    "env={id: CartPole-v1, num_envs: 2}",
    "model={n_steps: 8, n_epochs: 1, n_minibatches: 1, network: {hidden_size: 4, encoder_layers: [4]}}",
    "pbt.population_size=4",
    "pbt.perturbation_interval=1",
    "evaluation={episodes: 2, max_steps: 20, final_episodes: 3}",
    "engine.threads=1",
    "execute.shards=1",
    "total_timesteps=192",
]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / "learning" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def arguments(out: Path) -> list[str]:
    settings = [word for setting in TINY for word in ("--set", setting)]
    return [str(ROOT / "configs" / "quickstart.yaml"), "--seeds", "2", *settings, "--label", "tiny", "--out", str(out)]


def test_a_benchmark_writes_its_curves_a_table_and_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("run").main(arguments(tmp_path)) == 0
    result = json.loads((tmp_path / "tiny.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    for run in result["runs"]:
        assert [row["steps"] for row in run["generations"]] == [64, 128, 192]  # 4 members x 2 environments x 8 steps
        for row in run["generations"]:
            assert (row["worst"], row["best"]) == (min(row["members"]), max(row["members"]))
            assert row["mean"] == pytest.approx(sum(row["members"]) / 4, abs=1e-3)
        assert run["final"]["episodes"] == 3
    shown = capsys.readouterr().out
    assert result["command"] in shown
    assert "| 0 | 192 |" in shown
    for kind in ("family", "curves"):
        picture = tmp_path / f"{kind}.png"
        assert script("plot").main([kind, str(tmp_path / "tiny.json"), "--out", str(picture)]) == 0
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_seed_that_falls_short_fails_the_benchmark(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert script("run").main([*arguments(tmp_path), "--at-least", "499"]) == 1
    assert "0 of 2 seeds reach 499." in capsys.readouterr().out


def test_the_ancestry_follows_grafts_back_to_the_first_generation() -> None:
    run = {
        "best": {"generation": 3, "member": 2},
        # member 2 was overwritten with 0 after generation 1, and 0 with 1 after generation 0
        "grafts": [
            {"generation": 0, "member": 0, "parent": 1},
            {"generation": 1, "member": 2, "parent": 0},
            {"generation": 2, "member": 1, "parent": 0},
        ],
    }
    assert script("plot").ancestry(run) == [1, 0, 2, 2]


@pytest.mark.parametrize("algorithm", ["adjusted", "scalar"])
def test_a_model_on_the_zoos_tasks(
    algorithm: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    benchmark = script("sb3")
    tiny = {"steps": 64, "n_envs": 2, "n_steps": 32, "n_epochs": 1, "batch_size": 32}
    monkeypatch.setitem(benchmark.TASKS, "pendulum", benchmark.TASKS["pendulum"] | tiny)
    monkeypatch.setattr(benchmark, "EPISODES", 2)
    monkeypatch.setattr(benchmark, "LOOKS", 2)
    assert benchmark.main(["pendulum", "--algorithm", algorithm, "--seeds", "2", "--out", str(tmp_path)]) == 0
    result = json.loads((tmp_path / f"sb3_pendulum_{algorithm}_0.json").read_text())
    assert [run["seed"] for run in result["runs"]] == [0, 1]
    for run in result["runs"]:
        assert all(-2000 < each["mean"] < 0 for each in (run, run["best"]))
        assert run["best"]["steps"] in (32, 64)
    at_the_end, best = capsys.readouterr().out.splitlines()
    assert at_the_end.startswith(f"| pendulum | {algorithm} | at the end | 2 |")
    assert best.startswith(f"| pendulum | {algorithm} | best | 2 |")
