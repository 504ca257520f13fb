from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from popgraft import Run


@pytest.fixture(scope="module")
def kept() -> dict[str, Run]:
    """Runs that the tests of a module share, by name; who needs one first trains it."""
    return {}


@pytest.fixture
def tiny(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """A configuration that trains in a blink: two members, two environments, 16 steps to a generation."""

    def make(**changes: Any) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "env": {"id": "popgraft/RepeatPrevious-v0", "num_envs": 2, "kwargs": {"delay": 1, "length": 6}},
            "model": {
                "n_steps": 8,
                "n_epochs": 2,
                "n_minibatches": 1,
                "network": {"encoder_layers": [8], "hidden_size": 16},
            },
            "pbt": {
                "population_size": 2,
                "perturbation_interval": 2,
                "hyperparams": [{"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}],
            },
            "evaluation": {"episodes": 3, "max_steps": 20, "final_episodes": 4},
            "total_timesteps": 192,
            "execute": {"shards": 1},
            "run_dir": str(tmp_path / "run"),
        }
        for path, value in changes.items():
            node, (*sections, name) = settings, path.split("__")
            for section in sections:
                node = node.setdefault(section, {})
            node[name] = value
        return settings

    return make
