"""What a rollout stores of a step is what `policy.evaluate_actions` says of it, whatever network lies between."""

import random

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import DummyVecEnv

from popgraft import DistributionalPPO

from ..worlds import World

STEPS, ENVS = 12, 2
BOX = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
SPACES = {"vector": BOX, "dict": gym.spaces.Dict({"speed": BOX, "place": gym.spaces.Discrete(3)})}


class Asking(BaseCallback):
    """Asks the policy, before it learns, about every environment's steps."""

    compared = 0

    def _on_rollout_end(self):
        policy, rollout = self.model.policy, self.model.rollout_buffer
        raw = {**rollout.obs, **rollout.raw_obs}
        for env in range(ENVS):
            obs = {key: x[0, :, env].clone() for key, x in raw.items()}
            if "place" in obs:
                obs["place"] = obs["place"].argmax(-1)
            obs = obs if "place" in obs else obs["obs"]
            with torch.no_grad():
                values, log_prob, _ = policy.evaluate_actions(
                    obs, rollout.action[0, :, env], policy.recurrent_initial_state, rollout.start[0, :, env]
                )
            torch.testing.assert_close(rollout.value[0, :, env], values[:, 0], atol=2e-5, rtol=2e-5)
            torch.testing.assert_close(rollout.log_prob[0, :, env], log_prob, atol=2e-5, rtol=2e-5)
            assert len(values.unique()) > 1
            self.compared += 1

    def _on_step(self):
        return True


def drawn(seed):
    """Arguments of RecurrentPPO and our own; every list of layers may be empty."""
    pick = random.Random(seed).choice
    own, shared = pick([(True, False), (False, True), (False, False)])
    layers = pick([[], [6], {"pi": [6], "vf": []}, {"pi": [], "vf": [5]}])
    policy = {"net_arch": layers, "enable_critic_lstm": own, "shared_lstm": shared, "lstm_hidden_size": pick([4, 16])}
    policy["share_features_extractor"] = shared or pick([True, False])
    policy["n_lstm_layers"] = pick([1, 2])
    settings = {"critic": pick(["scalar", "quantile", "categorical"]), "recurrent": pick(["lstm", "gru", "none"])}
    settings |= {"normalize_obs": pick([False, True]), "twin_critics": pick([False, True])}
    return pick(["vector", "dict"]), {"policy_kwargs": policy, **settings}


def check(shown, arguments):
    name = {"vector": "MlpLstmPolicy", "dict": "MultiInputLstmPolicy"}[shown]
    env = DummyVecEnv([lambda: World(SPACES[shown], gym.spaces.Discrete(2))] * ENVS)
    model = DistributionalPPO(name, env, n_steps=STEPS, batch_size=STEPS * ENVS, n_epochs=1, seed=1, **arguments)
    asking = Asking()
    model.learn(STEPS * ENVS, asking)
    assert asking.compared == ENVS


@pytest.mark.parametrize(
    "arguments",
    [
        {"policy_kwargs": {"net_arch": [], "enable_critic_lstm": False}, "critic": "scalar"},
        {"policy_kwargs": {"net_arch": []}, "recurrent": "none"},
    ],
)
def test_a_critic_without_layers_is_told_every_observation(arguments):
    check("vector", arguments)


def test_stored_values_are_the_policys_own():
    for seed in range(2):
        check(*drawn(seed))


@pytest.mark.slow
def test_stored_values_are_the_policys_own_for_many_networks():
    for seed in range(60):
        check(*drawn(seed))
