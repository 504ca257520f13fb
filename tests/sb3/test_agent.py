"""A model as an agent plays what the model itself would."""

import json

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import AttackConfig, ConfigError, DistributionalPPO, load_config
from popgraft.cli.evaluate import open_agent
from popgraft.rng import derive
from popgraft.sb3 import agent_of

ENVS = 3


@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_an_agent_scores_what_the_model_plays(env):
    small = {"lstm_hidden_size": 8, "net_arch": [6]}
    model = DistributionalPPO("MlpLstmPolicy", env, seed=0, device="cpu", n_steps=64, policy_kwargs=small).learn(64)
    model.policy.member.params.mul_(3)  # or an untrained agent does the same whatever it sees
    agent = agent_of(model, load_config({"env": {"id": env, "vectorization": "sync"}, "evaluation": {"max_steps": 60}}))
    scores = agent.evaluate(ENVS, seed=5)

    played = SyncVectorEnv([lambda: gym.make(env)] * ENVS, autoreset_mode=AutoresetMode.SAME_STEP)
    obs, _ = played.reset(seed=derive(5, "agent evaluation"))
    state, start = None, np.ones(ENVS, bool)
    total, playing = np.zeros(ENVS), np.ones(ENVS, bool)
    for _ in range(60):
        action, state = model.predict(obs, state, start, deterministic=True)
        obs, reward, terminated, truncated, _ = played.step(action)
        start = terminated | truncated
        total += reward * playing
        playing &= ~start
    assert scores.mean.item() == pytest.approx(total.mean(), rel=1e-4)
    attacked = agent.evaluate(ENVS, seed=5, attack=AttackConfig(method="critic", epsilon=2.0, steps=2))
    assert attacked.mean.item() != scores.mean.item()


def test_an_agent_acts_in_the_types_of_its_environment():
    class Steps(gym.Env):
        observation_space, action_space = gym.spaces.Box(-1, 1, (3,)), gym.spaces.Box(0, 5, (2,), np.int32)

        def reset(self, *, seed=None, options=None):
            return np.zeros(3, np.float32), {}

    model = DistributionalPPO("MlpLstmPolicy", Steps(), seed=0, device="cpu")
    agent = agent_of(model, load_config({"env": {"id": "CartPole-v1"}}))
    chosen, _ = agent.predict(np.zeros((4, 3), np.float32), deterministic=False)
    assert all(one in Steps.action_space for one in chosen)


ENCODER = """
from torch import nn

class Own(nn.Sequential):
    def __init__(self, observation_space):
        super().__init__(nn.Linear(observation_space.shape[0], 6), nn.LayerNorm(6))
"""


class Extractor(torch.nn.Flatten):
    """An extractor of the user's."""

    def __init__(self, observation_space):
        super().__init__()


def test_the_command_line_takes_an_encoder_from_the_configuration(tmp_path, monkeypatch):
    (tmp_path / "named_encoder.py").write_text(ENCODER)
    monkeypatch.syspath_prepend(tmp_path)
    own = {"env": {"id": "CartPole-v1"}, "model": {"network": {"encoder": "named_encoder:Own"}}}
    (tmp_path / "own.yaml").write_text(json.dumps(own))
    small = {"lstm_hidden_size": 8, "net_arch": [6]}
    paths = {name: tmp_path / f"{name}.zip" for name in ("own", "plain", "foreign")}
    model = DistributionalPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=small, encoder="named_encoder:Own")
    model.save(paths["own"])
    DistributionalPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=small).save(paths["plain"])
    foreign = {**small, "features_extractor_class": Extractor}
    DistributionalPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs=foreign).save(paths["foreign"])
    agent = open_agent(paths["own"], str(tmp_path / "own.yaml"))
    assert torch.equal(agent.member.params, model.member.params)
    open_agent(paths["plain"], str(tmp_path / "own.yaml"))
    with pytest.raises(ConfigError, match=r"encoder=named_encoder:Own.*--env .*whose model.network.encoder names"):
        open_agent(paths["own"], "CartPole-v1")
    with pytest.raises(ConfigError, match=r"=Extractor,.* give it again in Python: DistributionalPPO.load\("):
        open_agent(paths["foreign"], "CartPole-v1")
