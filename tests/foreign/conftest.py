"""A population of plain dictionaries of tensors, and what a trainer does with it."""

from collections.abc import Mapping

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


def same(one, other):
    """Bitwise equality of nested values."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    if isinstance(one, Mapping):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.fixture
def make(tmp_path):
    """Builds a scheduler with its population."""

    def build(seed=0, name="checkpoints", **settings):
        defaults = {"population_size": 4, "hyperparams": [RATE, GAMMA], "checkpoint_dir": tmp_path / name}
        scheduler = PBTScheduler(PBTConfig(**{**defaults, **settings}), seed)
        scheduler.initialize_population()
        return scheduler

    return build
