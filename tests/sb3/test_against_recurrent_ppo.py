"""With a scalar critic and Adam, everything that RecurrentPPO computes from the same weights and the same rollout."""

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates as TheirStates
from stable_baselines3.common.logger import configure

from popgraft.sb3 import DistributionalPPO, RNNStates

STEPS, HIDDEN = 24, 6
LOGGED = ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "clip_fraction", "explained_variance")
SHARED = {
    "n_steps": STEPS,
    "n_epochs": 1,
    "gamma": 0.97,
    "gae_lambda": 0.9,
    "ent_coef": 0.01,
    "max_grad_norm": 0.1,
    "learning_rate": 0.01,
    "clip_range": 0.15,
    "device": "cpu",
}
NETWORKS = {
    "separate": {"n_lstm_layers": 2, "net_arch": {"pi": [5], "vf": [4, 3]}},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False, "net_arch": [5], "activation_fn": torch.nn.ReLU},
}
ACTIONS = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([3, 2]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-2, 2, (2,), np.float32),
    "box_sde": spaces.Box(-2, 2, (2,), np.float32),
}


def copy_weights(ours, theirs):
    """Gives RecurrentPPO our weights; its second LSTM bias is 0 and stays so. Returns the pairs of parameters."""
    own, pairs = dict(ours.policy.named_parameters()), []
    dense = {"action_net": "head.linear", "value_net": "critic"}
    for who, net in (("actor", "policy_net"), ("critic", "value_net")):
        dense |= {f"mlp_extractor.{net}.{2 * i}": f"{who}_mlp.linear{i}" for i in range(3)}
    for name, parameter in theirs.policy.named_parameters():
        if "bias_hh" in name:
            parameter.data.zero_()
            parameter.requires_grad_(False)
            continue
        if name.startswith("lstm_"):
            who, leaf = name.removeprefix("lstm_").split(".")
            weight, layer = leaf.rsplit("_l", 1)
            mine = f"{who}_memory.layer{layer}.{'bias' if weight == 'bias_ih' else weight}"
        elif name == "log_std":
            mine = "head.log_std"
        else:
            layer, leaf = name.rsplit(".", 1)
            mine = f"{dense[layer]}.{leaf}"
        parameter.data.copy_(own[mine])
        pairs.append((own[mine], parameter))
    assert len(pairs) == len(own)
    return pairs


def layers_of(network):
    return NETWORKS[network].get("n_lstm_layers", 1)


def fill(buffer, rollout, states):
    """Puts a rollout of ours into their buffer."""
    reward = rollout.reward + rollout.next_value * rollout.end * buffer.gamma  # how they bootstrap a truncated episode
    for t in range(STEPS):
        arrays = (x[0, t].numpy() for x in (rollout.obs["obs"], rollout.action, reward, rollout.start))
        buffer.add(*arrays, rollout.value[0, t], rollout.log_prob[0, t], lstm_states=states)
    buffer.compute_returns_and_advantage(rollout.next_value[0, -1], rollout.end[0, -1].numpy())


@pytest.mark.parametrize("envs", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("kind", [kind for kind in ACTIONS if kind != "multi_binary"])  # their buffer's integers fail
@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_update(network, kind, envs, played, unseeded, monkeypatch):
    shared = {**SHARED, "batch_size": STEPS * envs, "policy_kwargs": {"lstm_hidden_size": HIDDEN, **NETWORKS[network]}}
    shared |= {"use_sde": kind == "box_sde", "sde_sample_freq": 4}
    env = played(envs, action_space=ACTIONS[kind])
    ours = DistributionalPPO("MlpLstmPolicy", env, seed=0, critic="scalar", normalize_returns=False, **shared)
    theirs = RecurrentPPO("MlpLstmPolicy", played(envs, action_space=ACTIONS[kind]), **shared)
    theirs.set_logger(configure(None, []))
    ours.learn(STEPS * envs * 2)
    train, done = ours.train, []
    ours.train = lambda: done.append(ours.rollout_buffer)
    ours.learn(STEPS * envs, reset_num_timesteps=False)
    rollout = ours.rollout_buffer
    assert rollout.end.any()
    # The policy has moved since it acted, so that ratios differ from 1 and some are clipped.
    ours.member.params += 0.1 * torch.randn(ours.member.params.shape, generator=torch.Generator().manual_seed(5))
    ours.policy.optimizer.state.clear()
    ours.policy.optimizer.pull()
    pairs = copy_weights(ours, theirs)
    carry = rollout.state[0, 0].view(envs, -1, layers_of(network), 2, HIDDEN).permute(1, 3, 2, 0, 4).contiguous()
    states = [tuple(carry[0]), tuple(carry[-1])]
    monkeypatch.setattr(np.random, "randint", lambda _: 0)  # their buffer begins at a random step
    fill(theirs.rollout_buffer, rollout, TheirStates(*states))

    theirs.train()
    train()
    for name in LOGGED:
        logged = [model.logger.name_to_value[f"train/{name}"] for model in (ours, theirs)]
        assert logged[0] == pytest.approx(logged[1], abs=1e-5, rel=1e-5), name
    for mine, other in pairs:
        torch.testing.assert_close(mine.data, other.data, atol=1e-5, rtol=1e-5)
        moments = [model.policy.optimizer.state[p]["exp_avg"] for model, p in ((ours, mine), (theirs, other))]
        torch.testing.assert_close(*moments, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ACTIONS)
@pytest.mark.parametrize("network", NETWORKS)
def test_the_same_predictions(network, kind, played, unseeded):
    kwargs = {"policy_kwargs": {"lstm_hidden_size": HIDDEN, **NETWORKS[network]}, "device": "cpu", "n_steps": 8}
    kwargs["use_sde"] = kind == "box_sde"
    env = played(2, action_space=ACTIONS[kind])
    ours = DistributionalPPO("MlpLstmPolicy", env, seed=0, critic="scalar", **kwargs)
    theirs = RecurrentPPO("MlpLstmPolicy", env, **kwargs)
    ours.member.params += 0.3 * torch.randn(ours.member.params.shape, generator=torch.Generator().manual_seed(5))
    copy_weights(ours, theirs)
    generator = np.random.default_rng(0)
    state = their_state = start = None
    for _ in range(4):
        observation = generator.uniform(-1, 1, (2, 3)).astype(np.float32)
        action, state = ours.predict(observation, state, start, deterministic=True)
        their_action, their_state = theirs.predict(observation, their_state, start, deterministic=True)
        np.testing.assert_allclose(action, their_action, atol=1e-5)
        np.testing.assert_allclose(state, their_state, atol=1e-5)
        start = np.array([True, False])
    obs, layers = torch.from_numpy(generator.uniform(-1, 1, (12, 3)).astype(np.float32)), layers_of(network)
    starts = torch.zeros(12)
    starts[[0, 4, 6]] = 1
    memories = [tuple(torch.from_numpy(generator.normal(size=(2, layers, 2, HIDDEN)).astype(np.float32))) for _ in "pv"]
    memories = [tuple(part.contiguous() for part in memory) for memory in memories]
    if network == "shared":
        memories[1] = memories[0]
    actions = torch.as_tensor(np.array([ACTIONS[kind].sample() for _ in range(12)]))
    actions = actions.float() if kind == "multi_binary" else actions
    found = ours.policy.evaluate_actions(obs, actions, RNNStates(*memories), starts)
    expected = theirs.policy.evaluate_actions(obs, actions, TheirStates(*memories), starts)
    for mine, other in zip(found, expected, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-5)
    drawn = [p.get_distribution(obs, memories[0], starts) for p in (ours.policy, theirs.policy)]
    for look in (lambda d: d.mode(), lambda d: d.log_prob(actions), lambda d: d.entropy()):
        torch.testing.assert_close(*(look(distribution) for distribution, _ in drawn), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(*(state for _, state in drawn), atol=1e-5, rtol=1e-5)
    assert drawn[0][0].sample().shape == drawn[1][0].sample().shape
    values = [p.predict_values(obs[:2], memories[1], starts[:2]) for p in (ours.policy, theirs.policy)]
    torch.testing.assert_close(*values, atol=1e-5, rtol=1e-5)
    sum(part.sum() for part in found).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in ours.policy.parameters())


def one_hot(choices, sizes):
    return np.concatenate([np.eye(size)[column] for size, column in zip(sizes, choices.T, strict=True)], axis=1)


@pytest.mark.parametrize(
    ("seen", "flat"),
    [
        (spaces.Discrete(4, start=2), lambda obs: np.eye(4)[obs - 2]),
        (spaces.MultiDiscrete([3, 2, 4]), lambda obs: one_hot(obs, [3, 2, 4])),
        (spaces.MultiBinary(3), lambda obs: obs),
        (spaces.Box(-3, 3, (2, 2), np.float64), lambda obs: obs.reshape(3, 4)),
    ],
    ids=["discrete", "multi_discrete", "multi_binary", "box"],
)
def test_the_same_view_of_every_kind_of_observation(seen, flat, played, unseeded):
    kwargs = {"policy_kwargs": {"lstm_hidden_size": HIDDEN, "net_arch": [5]}, "device": "cpu", "n_steps": 8}
    seen.seed(0)
    batches = [np.stack([seen.sample() for _ in range(3)]) for _ in range(4)]
    numbers, choices = spaces.Box(-3, 3, flat(batches[0]).shape[1:]), spaces.MultiDiscrete([3, 2])
    ours = DistributionalPPO("MlpLstmPolicy", played(3, seen, choices), seed=0, critic="scalar", **kwargs)
    theirs = RecurrentPPO("MlpLstmPolicy", played(3, numbers, choices), **kwargs)
    ours.member.params += torch.randn(ours.member.params.shape, generator=torch.Generator().manual_seed(5))
    copy_weights(ours, theirs)
    zeros, starts = tuple(torch.zeros(1, 3, HIDDEN) for _ in "hc"), torch.zeros(3)
    for obs in batches:
        found, _ = ours.policy.get_distribution(obs, zeros, starts)
        expected, _ = theirs.policy.get_distribution(torch.as_tensor(flat(obs), dtype=torch.float32), zeros, starts)
        for mine, other in zip(found.distribution, expected.distribution, strict=True):
            torch.testing.assert_close(mine.logits, other.logits, atol=1e-5, rtol=1e-5)
