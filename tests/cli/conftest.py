import shutil
from pathlib import Path

import pytest

from popgraft import Run, train

TINY = """\
env: {id: popgraft/RepeatPrevious-v0, num_envs: 2, kwargs: {delay: 1, length: 6}}
model: {n_steps: 8, n_epochs: 1, n_minibatches: 1, network: {encoder_layers: [8], hidden_size: 8}}
pbt:
  population_size: 2
  perturbation_interval: 2
  hyperparams: [{name: learning_rate, min_value: 1e-4, max_value: 1e-2, is_log_scale: true}]
evaluation: {episodes: 3, max_steps: 20, final_episodes: 4}
execute: {shards: 1}
total_timesteps: 128
run_dir: run
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration that trains in a blink, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "tiny.yaml"
    path.write_text(TINY)
    return train(path, {"run_dir": str(path.with_name("run"))}).path


@pytest.fixture
def run(config: Path, _trained: Path) -> Run:
    """What `popgraft train` leaves of that configuration; a copy for every test."""
    return Run(shutil.copytree(_trained, "run"))
