import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from popgraft import load_config

ROOT = Path(__file__).parents[1]
TINY = [
    "env.num_envs=2",
    "model.n_steps=16",
    "model.n_epochs=1",
    "model.n_minibatches=1",
    "model.network.hidden_size=4",
    "engine.sequence_length=null",
    "pbt.population_size=2",
    "pbt.perturbation_interval=1",
    "evaluation.episodes=2",
    "evaluation.max_steps=6",
    "evaluation.final_episodes=2",
    "total_timesteps=64",
    "execute.shards=1",
]


@pytest.fixture
def script() -> ModuleType:
    path = ROOT / "benchmarks" / "learning" / "robustness.py"
    spec = importlib.util.spec_from_file_location("robustness", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_it_writes_what_it_prints(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = [word for setting in TINY for word in ("--set", setting)]
    arguments = ["cartpole", "--arms", "plain", "both", "--seeds", "2", "--episodes", "3", "--epsilon", "0.5"]
    assert script.main([*arguments, *settings, "--out", str(tmp_path)]) == 0
    results = json.loads((tmp_path / "robustness.json").read_text())
    assert [(result["arm"], [run["seed"] for run in result["runs"]]) for result in results] == [
        ("plain", [0, 1]),
        ("both", [0, 1]),
    ]
    shown = capsys.readouterr().out
    for result in results:
        a, b = (run["returns"]["pgd"] for run in result["runs"])
        assert f"| cartpole | 0.5 | {result['arm']} |" in shown
        assert f"{(a + b) / 2:.1f} ± {abs(a - b) / 2:.1f}" in shown  # of two: half their distance


def test_every_arm_of_every_task_is_a_configuration(script: ModuleType) -> None:
    for task in script.TASKS.values():
        for arm in script.ARMS:
            config = load_config(script.CONFIGS / task.config, [*task.settings, *task.arm(arm)])
            assert config.model.adversary.enabled == (arm in ("sa_ppo", "both"))
            assert (config.evaluation.attack_weight > 0) == (arm in ("selected", "both"))
            if config.model.adversary.enabled:
                assert config.model.adversary.perturbation.epsilon == task.epsilon
