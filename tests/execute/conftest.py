"""Small populations on real environments."""

import pytest
import torch

from popgraft.config import load_config
from popgraft.pbt import Evolution

ENVS = {
    "CartPole": {
        "id": "CartPole-v1",
        "num_envs": 4,
        "wrappers": [{"name": "hide", "kwargs": {"indices": [1, 3]}}],
    },
    "Pendulum": {"id": "Pendulum-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 11}},
    "tensors": {"source": "tensor", "id": "CartPole", "num_envs": 4, "kwargs": {"time_limit": 11}},
}
HIDDEN = {"Pendulum": 6}
"""Units of an LSTM that cannot be compiled; all others' fill the vector registers of any processor."""
SPACES = [
    {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True},
    {"name": "clip_range", "min_value": 0.1, "max_value": 0.4},
]


@pytest.fixture
def configured():
    """Makes the configuration of a small population."""

    def make(env="CartPole", *overrides, pop=3):
        settings = {
            "env": ENVS[env],
            "model": {
                "n_steps": 16,
                "n_epochs": 2,
                "n_minibatches": 2,
                "ent_coef": 0.01,
                "network": {"encoder_layers": [8], "hidden_size": HIDDEN.get(env, 16), "n_quantiles": 5},
            },
            "pbt": {"population_size": pop, "hyperparams": SPACES},
            "evaluation": {"episodes": 3, "max_steps": 30},
            "engine": {"sequence_length": 8, "device": "cpu"},
            "seed": 5,
        }
        return load_config(settings, overrides)

    return make


@pytest.fixture
def initial():
    """Hyperparameters with which a configuration begins; a member's do not depend on the population's size."""

    def make(config) -> dict[str, torch.Tensor]:
        return Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())

    return make


@pytest.fixture(scope="module")
def cluster():
    """A Ray cluster of four cores, whatever the machine has."""
    ray = pytest.importorskip("ray")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        patch.setenv("RAY_worker_niceness", "0")  # a busy machine would starve its actors
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            object_store_memory=200 * 2**20,
            configure_logging=False,
            log_to_driver=False,
        )
        yield
        ray.shutdown()
