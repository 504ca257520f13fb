"""What a rollout stores of a step is what the policy itself says of it, whatever network lies between."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft.config import load_config
from popgraft.errors import ConfigError
from popgraft.execute.inline import InlineExecutor
from popgraft.pbt import Evolution

from ..worlds import World

POP, STEPS, ENVS = 3, 8, 2
SPACES = {
    "vector": gym.spaces.Box(-np.inf, np.inf, (3,), np.float32),
    "image": gym.spaces.Box(0, 255, (3, 2, 4), np.uint8),
    "dict": gym.spaces.Dict(
        {
            "image": gym.spaces.Box(0, 255, (1, 2, 2), np.uint8),
            "place": gym.spaces.Discrete(3),
            "speed": gym.spaces.Box(-np.inf, np.inf, (2,), np.float32),
        }
    ),
}
ACTIONS = {"discrete": gym.spaces.Discrete(3), "box": gym.spaces.Box(-1, 1, (2,), np.float32)}


def drawn(seed):
    """A random network, what it sees, and how it trains: every list of layers may be empty."""
    pick = random.Random(seed).choice
    network = {
        "encoder": "mlp",
        "encoder_layers": pick([[], [], [5]]),
        "head_layers": pick([[], [], [6], [6, 5]]),
        "critic_head_layers": pick([None, [], [7]]),
        "share_encoder": pick([True, False]),
        "layer_norm": pick([False, True]),
        "activation": pick(["tanh", "relu", "silu"]),
        "recurrent": pick(["lstm", "gru", "mingru", "none"]),
        "recurrent_layers": pick([1, 2]),
        "hidden_size": pick([4, 16]),
        "critic_recurrent": pick(["separate", "shared", "detached", "none", "none"]),
        "critic": pick(["quantile", "categorical", "scalar"]),
        "twin_critics": pick([False, True]),
        "n_quantiles": 3,
    }
    scaled = pick(["reward", "returns", "nothing"])
    model = {
        "n_steps": STEPS,
        "n_epochs": 1,
        "n_minibatches": 1,
        "normalize_obs": pick([True, False]),
        "normalize_reward": scaled == "reward",
        "normalize_returns": scaled == "returns",
        "network": network,
    }
    length = pick([2, 4, 8])
    env = pick(["vector", "vector", "dict", "image", "tensors"]), pick(["discrete", "box"]), pick([*AutoresetMode])
    settings = {"model": model, "engine": {"sequence_length": length, "device": "cpu"}, "pbt": {"population_size": POP}}
    return settings, env


def executor_of(settings, env, shards):
    shown, taken, mode = env
    if shown == "tensors":
        factory, source = None, {"source": "tensor", "id": "CartPole", "kwargs": {"time_limit": 5}}
    else:

        def factory(num_envs):
            def make():
                return World(SPACES[shown], ACTIONS[taken])

            return SyncVectorEnv([make] * num_envs, autoreset_mode=mode)

        source = {"factory": "not:used"}
    config = load_config({**settings, "env": {**source, "num_envs": ENVS}})
    hyperparams = Evolution(config.pbt, 0).initial_hyperparams(config.model.hyperparams())
    return InlineExecutor(config, hyperparams, factory, shards)


@torch.no_grad()
def said_by_itself(shard, rollout, before, m, e):
    """Values and log-probabilities of one environment's steps, asked one by one, from copies of all that is stored."""
    policy, member = shard.policy, shard.member
    params, carry = policy.views(member.params[m : m + 1].clone()), before[m : m + 1, e : e + 1].clone()
    scale, said = member.returns, []
    for t in range(STEPS):
        obs = {}
        for key, values in {**rollout.obs, **rollout.raw_obs}.items():
            x = values[m, t, e].numpy().copy()
            if key in member.normalizer.obs:
                moments = member.normalizer.obs[key]
                mean, var = (leaf[m].numpy().astype(np.float64) for leaf in (moments.mean, moments.var))
                x = np.clip((x - mean) / np.sqrt(var + 1e-8), -10, 10).astype(np.float32)
            obs[key] = torch.from_numpy(x)[None, None, None]
        step = policy.unroll(params, obs, carry, rollout.start[m, t, e].view(1, 1, 1))
        carry = step.state
        value = policy.critic.value(policy.predict(params, step.critic)) * scale.std[m] + scale.mean[m]
        action = rollout.action[m, t, e].view(1, 1, 1, -1)
        said.append((value.item(), policy.head.log_prob(params["head"], step.outputs, action).item()))
    return torch.tensor(said)


def check(settings, env, shards):
    """Compares what is stored with what the policy says; False for a combination that is refused."""
    try:
        executor = executor_of(settings, env, shards)
    except ConfigError:
        return False
    for shard in executor.shards:
        for learn in (True, False):  # as at birth, and with statistics
            before = shard.seat.carry.clone()
            rollout = shard.collector.collect(shard.member, shard.seat, shard.generators)
            for m in range(len(shard.members)):
                stored = torch.stack([rollout.value[m, :, 1], rollout.log_prob[m, :, 1]], -1)
                said = said_by_itself(shard, rollout, before, m, 1)
                torch.testing.assert_close(stored, said, atol=2e-5, rtol=2e-5, msg=lambda text: f"{settings}: {text}")
                assert len(stored[:, 0].unique()) > 1
            if learn:
                shard.learner.learn_(shard.member, shard.seat, rollout, shard.generators)
    executor.close()
    return True


@pytest.mark.parametrize(
    ("shown", "network"),
    [
        ("vector", {"recurrent": "none"}),
        ("image", {"critic_recurrent": "none"}),
        ("dict", {"recurrent": "gru", "critic_recurrent": "none", "share_encoder": False}),
        ("tensors", {"critic_recurrent": "none"}),
    ],
)
def test_a_critic_without_layers_is_told_every_observation(shown, network):
    """Its features are the observation itself."""
    layers = {"encoder": "mlp", "encoder_layers": [], "head_layers": [], "critic": "scalar", "hidden_size": 4}
    model = {"n_steps": STEPS, "n_minibatches": 1, "normalize_obs": False, "network": {**layers, **network}}
    settings = {"model": model, "engine": {"sequence_length": 4, "device": "cpu"}, "pbt": {"population_size": 2}}
    assert check(settings, (shown, "box", AutoresetMode.SAME_STEP), 1)


def test_stored_values_are_the_policys_own():
    assert sum(check(*drawn(seed), 1) for seed in range(4)) >= 3


@pytest.mark.slow
@pytest.mark.parametrize("shards", [1, 2, 3])
def test_stored_values_are_the_policys_own_for_many_networks(shards):
    assert sum(check(*drawn(1000 * shards + seed), shards) for seed in range(40)) >= 20
