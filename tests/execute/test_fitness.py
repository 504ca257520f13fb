"""Who is selected: the agent with the higher return, or the one that keeps its own under attack."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft.config import load_config
from popgraft.errors import ConfigError
from popgraft.execute import Shard
from popgraft.pbt import Evolution, everybody
from popgraft.train import train

STEPS = 10
BRITTLE, ROBUST = 0, 1


class Sign(gym.Env):
    """Shows −½ or ½; naming its sign (0 or 1) pays 1, action 2 always 0.7."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.left = STEPS
        return self._observe(), {}

    def step(self, action):
        reward = 0.7 if action == 2 else float(action == self.sign)
        self.left -= 1
        return self._observe(), reward, self.left == 0, False, {}

    def _observe(self):
        self.sign = self.np_random.integers(2)
        return np.array([self.sign - 0.5], np.float32)


def make(num_envs):
    return SyncVectorEnv([Sign] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def settings(**evaluation):
    network = {"recurrent": "none", "critic_recurrent": "none", "encoder_layers": [], "head_layers": []}
    return load_config(
        {
            "env": {"factory": "not:used", "num_envs": 2},
            "model": {"normalize_obs": False, "n_steps": 8, "n_minibatches": 1, "network": network},
            "pbt": {"population_size": 2, "truncation_ratio": 0.5},
            "evaluation": {"episodes": 3, **evaluation},
            "execute": {"shards": 1},
        }
    )


@pytest.fixture
def scored():
    """Scores of a brittle and a robust agent, and who copies whom."""
    shards = []

    def score(**evaluation):
        config = settings(**evaluation)
        evolution = Evolution(config.pbt, config.seed)
        values = evolution.initial_hyperparams(config.model.hyperparams())
        shard = Shard(config, range(2), values, make)
        shards.append(shard)
        head = shard.policy.views(shard.member.params)["head"]["linear"]
        head["weight"].copy_(torch.tensor([[[-3.0], [3.0], [0.0]], [[-0.1], [0.1], [0.0]]]))
        head["bias"].copy_(torch.tensor([[0.0, 0.0, -9.0], [0.0, 0.0, 9.0]]))
        scores = shard.evaluate(seed=4)
        return scores.mean, evolution(everybody(0, scores, values, config.pbt, 0)).parents.tolist()

    yield score
    for shard in shards:
        shard.close()


def test_without_attacks_the_brittle_agent_is_the_better_one(scored):
    mean, parents = scored()
    torch.testing.assert_close(mean, torch.tensor([STEPS, 0.7 * STEPS]))
    assert parents == [BRITTLE, BRITTLE]


@pytest.mark.parametrize("method", ["pgd", "fgsm"])
def test_with_attacks_the_robust_agent_is(scored, method):
    """An attack beyond ½ turns every sign round: ½ · 10 + ½ · 0 < 0.7 · 10."""
    mean, parents = scored(attack_weight=0.5, attack={"method": method, "epsilon": 0.6})
    assert mean[BRITTLE] < 0.7 * STEPS
    torch.testing.assert_close(mean[ROBUST], torch.tensor(0.7 * STEPS))
    assert parents == [ROBUST, ROBUST]


def test_an_attack_that_does_not_reach_the_edge_selects_nobody_else(scored):
    mean, parents = scored(attack_weight=0.5, attack={"epsilon": 0.4})
    torch.testing.assert_close(mean, torch.tensor([STEPS, 0.7 * STEPS]))
    assert parents == [BRITTLE, BRITTLE]


def test_it_is_played_in_a_run(tmp_path):
    config = settings(attack_weight=1.0, attack={"epsilon": 0.6, "steps": 2}, final_episodes=2)
    run = train(config, {"run_dir": str(tmp_path / "run"), "total_timesteps": 1}, factory=make)
    assert run.is_finished
    assert "final_attacked_score" in run.summary


def test_images_cannot_be_attacked_and_that_is_said_at_once():
    class Picture(Sign):
        observation_space = gym.spaces.Box(0, 255, (36, 36, 1), np.uint8)

    def pictures(num_envs):
        return SyncVectorEnv([Picture] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    config = settings(attack_weight=0.5)
    values = Evolution(config.pbt, config.seed).initial_hyperparams(config.model.hyperparams())
    with pytest.raises(ConfigError, match=r"images only; do without .*evaluation\.attack_weight: 0"):
        Shard(config, range(2), values, pictures)
