"""C12: the update equals the one that sb3-contrib's RecurrentPPO makes with the same weights from the same rollout."""

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.logger import configure
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv

from popgraft import tree

POP, STEPS, ENVS, HIDDEN, LAYERS = 3, 24, 4, 16, 2
LOGGED = {
    "policy_loss": "policy_gradient_loss",
    "value_loss": "value_loss",
    "entropy_loss": "entropy_loss",
    "approx_kl": "approx_kl",
    "clip_fraction": "clip_fraction",
    "explained_variance": "explained_variance",
}
"""Our names of what is logged, and theirs."""


class Extractor(BaseFeaturesExtractor):
    """An encoder of one dense layer."""

    def __init__(self, observation_space):
        super().__init__(observation_space, features_dim=8)
        self.linear = torch.nn.Linear(observation_space.shape[0], 8)

    def forward(self, x):
        return self.linear(x).tanh()


class Unplayed(gymnasium.Env):
    """Only its spaces are read."""

    def __init__(self, n_obs, action_space):
        self.observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (n_obs,), np.float32)
        self.action_space = action_space


def named(policy, flat):
    """What belongs to every parameter, under the parameter's name in sb3-contrib."""
    views = policy.views(flat)
    dense = {
        "features_extractor.linear": views["encoder"]["body"]["linear0"],
        "mlp_extractor.policy_net.0": views["actor_mlp"]["linear0"],
        "mlp_extractor.value_net.0": views["critic_mlp"]["linear0"],
        "action_net": views["head"]["linear"],
        "value_net": views["critic"],
    }
    found = {f"{name}.{part}": leaf for name, layer in dense.items() for part, leaf in layer.items()}
    for who in ("actor", "critic") if policy.critic_memory else ("actor",):
        for i in range(LAYERS):
            layer = views[f"{who}_memory"][f"layer{i}"]
            theirs = {"weight_ih": "weight_ih", "weight_hh": "weight_hh", "bias": "bias_ih"}
            found |= {f"lstm_{who}.{theirs[part]}_l{i}": leaf for part, leaf in layer.items()}
    return found | ({"log_std": views["head"]["log_std"]} if "log_std" in views["head"] else {})


def their_model(shard, n_obs, m, epochs):
    """RecurrentPPO with the weights and hyperparameters of member m; its second LSTM bias is 0 and stays so."""
    own = {name: float(values[m]) for name, values in shard.member.hyperparams.items()}
    same = ("learning_rate", "gamma", "gae_lambda", "clip_range", "ent_coef", "vf_coef", "max_grad_norm")
    discrete = hasattr(shard.policy.head, "sizes")
    space = gymnasium.spaces.Discrete(2) if discrete else gymnasium.spaces.Box(-2, 2, (1,), np.float32)
    with torch.random.fork_rng():
        model = RecurrentPPO(
            "MlpLstmPolicy",
            DummyVecEnv([lambda: Unplayed(n_obs, space)] * ENVS),
            n_steps=STEPS,
            batch_size=STEPS * ENVS,
            n_epochs=epochs,
            **{name: own[name] for name in same},
            policy_kwargs={
                "features_extractor_class": Extractor,
                "lstm_hidden_size": HIDDEN,
                "n_lstm_layers": LAYERS,
                "net_arch": {"pi": [5], "vf": [5]},
                "enable_critic_lstm": shard.policy.critic_memory is not None,
                "shared_lstm": shard.policy.critic_memory is None,
            },
            device="cpu",
        )
    model.set_logger(configure(None, []))
    ours, theirs = named(shard.policy, shard.member.params), dict(model.policy.named_parameters())
    second = {name for name in theirs if "bias_hh" in name}
    assert set(theirs) == set(ours) | second
    for name, parameter in theirs.items():
        parameter.data.copy_(0 * parameter if name in second else ours[name][m])
        parameter.requires_grad_(name not in second)
    return model


def fill_(buffer, rollout, m):
    """Puts a member's rollout into their buffer, which then computes advantages and returns."""
    carry = rollout.state[m, 0].view(ENVS, -1, LAYERS, 2, HIDDEN).permute(1, 3, 2, 0, 4)  # who, (h, c), layer, env
    states = RNNStates(*(tuple(carry[who]) for who in (0, -1)))
    # They bootstrap a truncated episode through its last reward.
    reward = rollout.reward + rollout.next_value * rollout.end * buffer.gamma
    for t in range(STEPS):
        arrays = (x[m, t].numpy() for x in (rollout.obs["obs"], rollout.action, reward, rollout.start))
        buffer.add(*arrays, rollout.value[m, t], rollout.log_prob[m, t], lstm_states=states)
    buffer.compute_returns_and_advantage(rollout.next_value[m, -1], rollout.end[m, -1].numpy())


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.parametrize("memory", ["separate", "detached"])
def test_the_update_is_theirs(memory, epochs, env, make, monkeypatch):
    """One minibatch an epoch: order does not matter, and the first Adam moment after one step is a tenth of the gradient."""
    _, shard = make(
        env,
        "model.network.critic=scalar",
        f"model.network.critic_recurrent={memory}",
        f"model.network.recurrent_layers={LAYERS}",
        "model.normalize_reward=false",
        f"model.n_epochs={epochs}",
        "model.n_minibatches=1",
        "model.max_grad_norm=2",
        "engine.sequence_length=null",
    )
    member, seat = shard.member, shard.seat
    for _ in range(2):
        shard.learner.learn_(member, seat, shard.collector.collect(member, seat, shard.generators), shard.generators)
    rollout = tree.map(torch.clone, shard.collector.collect(member, seat, shard.generators))
    tree.map(torch.Tensor.zero_, member.optimizer)
    # The policy has moved since it acted, so that ratios differ from 1 and some are clipped.
    member.params += 0.3 * torch.randn(member.params.shape, generator=torch.Generator().manual_seed(5))
    models = [their_model(shard, rollout.obs["obs"].shape[-1], m, epochs) for m in range(POP)]
    metrics, _ = shard.learner.learn_(member, seat, rollout, shard.generators)
    assert (metrics["clip_fraction"] > 0.1).any()
    assert (metrics["grad_norm"] > 2).any()
    assert rollout.end.any(dim=1).all()
    params, first = (named(shard.policy, flat) for flat in (member.params, member.optimizer.averages["exp_avg"]))
    # Their buffer begins at a random step, which cuts one environment's backpropagation in two.
    monkeypatch.setattr(np.random, "randint", lambda _: 0)
    for m, model in enumerate(models):
        fill_(model.rollout_buffer, rollout, m)
        model.train()
        for ours, theirs in LOGGED.items():
            if (ours, epochs) != ("approx_kl", 3):  # they log the last epoch's
                logged = float(model.logger.name_to_value[f"train/{theirs}"])
                assert float(metrics[ours][m]) == pytest.approx(logged, abs=1e-5, rel=1e-5), ours
        for name, parameter in model.policy.named_parameters():
            if parameter.requires_grad:
                torch.testing.assert_close(params[name][m], parameter.data, atol=1e-5, rtol=1e-5)
                moment = model.policy.optimizer.state[parameter]["exp_avg"]
                torch.testing.assert_close(first[name][m], moment, atol=1e-6, rtol=1e-5)
