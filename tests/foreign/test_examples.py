"""The examples run as they are."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(folder, *arguments):
    command = [sys.executable, "-W", "error", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout


@pytest.mark.heavy
def test_a_trainer_of_your_own(tmp_path):
    (line,) = run(tmp_path, ROOT / "examples/pbt_with_your_own_trainer.py", "--rounds", 15).splitlines()
    exploits, rest = line.split(" exploits; best error ")
    assert int(exploits) > 0
    assert float(rest.split()[0]) < 0.2
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["MlpPolicy", "MlpLstmPolicy"])
def test_stable_baselines3_in_several_processes(tmp_path, policy):
    # The shipped configuration, with shorter rollouts and a decision at every update.
    short = [
        "updates=3",
        "pbt.perturbation_interval=1",
        "model.n_steps=32",
        "model.n_epochs=1",
        f"model.policy={policy}",
        "adversarial.enabled=true",
        "adversarial.warmup_updates=1",
    ]
    overrides = [part for setting in short for part in ("--set", setting)]
    config = ROOT / "configs/config_pbt_adversarial.yaml"
    lines = run(tmp_path, ROOT / "examples/pbt_with_sb3.py", config, *overrides, "--seed", 0).splitlines()
    assert int(lines[3].split()[0]) > 0
    attacks = {name: float(value) for name, value in (line.split() for line in lines[4:])}
    assert attacks["avg_sa_ppo/enabled"] == 1
    assert attacks["avg_sa_ppo/update_count"] > 1
    assert attacks["avg_sa_ppo/robust_kl_penalty"] > 0
    assert len(list((tmp_path / "runs/config_pbt_adversarial").glob("member_?.pt"))) == 4
