"""A population of plain dictionaries of tensors, and what a trainer does with it."""

import random

import numpy as np
import pytest
import torch

from popgraft.foreign import PBTConfig, PBTScheduler
from popgraft.hyperparams import HyperparamConfig

RATE = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-2, is_log_scale=True)
GAMMA = HyperparamConfig("gamma", values=(0.9, 0.95, 0.99))


def parameters(mark, optimizer=True):
    """What a model with the weight `mark` reports."""
    data = {
        "policy": {"w": torch.full((3,), float(mark))},
        "kl_penalty_state": {"kl_beta": float(mark)},
        "vgs_state": {"step_count": mark},
        "return_stats_state": {"mean": torch.tensor(float(mark))},
    }
    return data | ({"optimizer_state": {"exp_avg": torch.full((3,), float(mark))}} if optimizer else {})


@pytest.fixture
def make(tmp_path):
    """Builds a scheduler with its population."""

    def build(seed=0, name="checkpoints", **settings):
        defaults = {"population_size": 4, "hyperparams": [RATE, GAMMA], "checkpoint_dir": tmp_path / name}
        scheduler = PBTScheduler(PBTConfig(**{**defaults, **settings}), seed)
        scheduler.initialize_population()
        return scheduler

    return build


@pytest.fixture
def global_generators_come_back():
    """Stable-Baselines3 seeds every global generator."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    yield
    random.setstate(before[0])
    np.random.set_state(before[1])
    torch.random.set_rng_state(before[2])
