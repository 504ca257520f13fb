from pathlib import Path

import gymnasium
import pytest

from popgraft.config import dump_config, load_config
from popgraft.envs import ENVS

FILES = sorted(
    path
    for path in (Path(__file__).parents[2] / "configs").glob("*.yaml")
    if path.stem != "config_pbt_adversarial"  # for models trained elsewhere: tests/pbt/test_adversarial_config.py
)
WRAPPERS = {"hide", "flicker"}


def test_the_shipped_configurations_are_found() -> None:
    names = {path.stem for path in FILES}
    assert {"quickstart", "pendulum_novel", "halfcheetah_novel", "repeat_previous", "config_train"} <= names


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_configuration_loads_and_is_plausible(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert config.env.id is not None
    known = ENVS if config.env.source == "tensor" else gymnasium.registry
    assert config.env.id.startswith("popgraft/") or config.env.id in known
    assert {wrapper.name for wrapper in config.env.wrappers} <= WRAPPERS
    assert config.run_dir == Path("runs") / path.stem
    assert config.pbt.hyperparams or config.pbt.population_size == 1, (
        "a shipped configuration shows what a population tunes"
    )
    copy = tmp_path / "config.yaml"
    copy.write_text(dump_config(config))
    assert load_config(copy) == config


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_shipped_configuration_says_what_it_is_for(path: Path) -> None:
    assert path.read_text().startswith("# ")
