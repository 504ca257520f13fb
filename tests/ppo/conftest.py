"""Small populations on real environments."""

import pytest
import torch

from popgraft import tree
from popgraft.config import load_config
from popgraft.execute import Shard

CARTPOLE = {
    "id": "CartPole-v1",
    "vectorization": "sync",
    "num_envs": 4,
    "kwargs": {"max_episode_steps": 23},
    "wrappers": [{"name": "hide", "kwargs": {"indices": [1, 3]}}],
}
PENDULUM = {"id": "Pendulum-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 23}}


@pytest.fixture(scope="module", params=[CARTPOLE, PENDULUM], ids=["CartPole", "Pendulum"])
def env(request):
    return request.param


@pytest.fixture(scope="module")
def make():
    """Makes (config, shard) of three members with hyperparameters of their own."""
    shards = []

    def make(env, *overrides, pop=3):
        settings = {
            "env": env,
            "model": {
                "n_steps": 24,
                "n_epochs": 2,
                "n_minibatches": 2,
                "network": {"encoder_layers": [8], "hidden_size": 16, "head_layers": [5], "n_quantiles": 5},
            },
            "pbt": {"population_size": pop},
            "engine": {"sequence_length": 8, "device": "cpu"},
        }
        config = load_config(settings, overrides)
        hyperparams = {name: torch.full((pop,), value) for name, value in config.model.hyperparams().items()}
        for name, factor in {"learning_rate": 2.0, "clip_range": 1.3, "gamma": 0.98}.items():
            hyperparams[name] *= factor ** torch.arange(pop)
        hyperparams["ent_coef"] += 0.01 * torch.arange(pop)
        shard = Shard(config, range(pop), hyperparams)
        shards.append(shard)
        return config, shard

    yield make
    for shard in shards:
        shard.close()


def double(leaf):
    return leaf.double() if leaf.is_floating_point() else leaf


@pytest.fixture(params=[torch.clone, double], ids=["single", "double"])
def precision(request):
    """Makes a copy of a leaf; memories are compiled in single precision alone."""
    return request.param


@pytest.fixture
def doubled(single):
    """What `single` is, in double precision, where the kernels' rounding is far below what counts.

    Batched products choose their blocks by the size of the batch, so single and stacked runs differ in the last digits;
    in single precision Adam's division by the root of the second moment would magnify them, and so would an attack
    where a gradient is nearly zero: its sign decides.
    """
    *place, member, seat, rollout = single
    return *place, *(tree.map(double, t) for t in (member, seat, rollout))
