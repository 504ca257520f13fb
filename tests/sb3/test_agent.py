"""A model as an agent plays what the model itself would."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import AttackConfig, DistributionalPPO, load_config
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
