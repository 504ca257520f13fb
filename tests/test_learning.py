"""Learning runs: the shipped configurations reach what they promise, and memory is what does it."""

from pathlib import Path
from typing import Any

import pytest

import popgraft

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[1] / "configs"


def final_score(config: str, seed: int, folder: Path, **settings: Any) -> float:
    """The best member's mean return over fresh episodes."""
    common = {"seed": seed, "run_dir": str(folder / "run"), "engine.threads": 1}
    run = popgraft.train(CONFIGS / config, {**common, **settings})
    return float(run.summary["final_score"])


@pytest.mark.parametrize("seed", range(3))
def test_the_quickstart_balances_the_pole_without_seeing_velocities(seed: int, tmp_path: Path) -> None:
    assert final_score("quickstart.yaml", seed, tmp_path) >= 475  # Gymnasium's threshold; 500 is perfect


def test_memory_repeats_previous_cards(tmp_path: Path) -> None:
    assert final_score("repeat_previous.yaml", 0, tmp_path) >= 0.8


def test_a_feed_forward_network_cannot_repeat_previous_cards(tmp_path: Path) -> None:
    settings = {"model.network.recurrent": "none", "total_timesteps": 200_000}
    assert final_score("repeat_previous.yaml", 0, tmp_path, **settings) <= -0.3  # chance is -0.5
