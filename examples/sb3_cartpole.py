"""CartPole without velocities: RL Baselines3 Zoo's settings for RecurrentPPO, and a limit on an update's divergence.

python examples/sb3_cartpole.py --steps 100000 --seed 0
"""

import argparse
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from popgraft import DistributionalPPO

POSITIONS = np.array([1, 0, 1, 0], np.float32)


def make_env() -> gym.Env[Any, Any]:
    """CartPole that shows positions and hides velocities."""
    env = gym.make("CartPole-v1")
    return gym.wrappers.TransformObservation(env, lambda seen: seen * POSITIONS, env.observation_space)


def main() -> None:
    """Trains and evaluates."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    env = VecNormalize(make_vec_env(make_env, n_envs=8, seed=given.seed), gamma=0.98)
    model = DistributionalPPO(
        "MlpLstmPolicy",
        env,
        n_steps=32,
        batch_size=256,
        n_epochs=20,
        gamma=0.98,
        gae_lambda=0.8,
        learning_rate=LinearSchedule(1e-3, 0.0, 1.0),
        clip_range=LinearSchedule(0.2, 0.0, 1.0),
        target_kl=0.03,  # not the Zoo's: twenty epochs on 256 samples go too far now and then
        seed=given.seed,
        device="cpu",
        policy_kwargs={
            "ortho_init": False,
            "activation_fn": nn.ReLU,
            "lstm_hidden_size": 64,
            "net_arch": {"pi": [64], "vf": [64]},
        },
    )
    model.learn(given.steps)
    fresh = VecNormalize(make_vec_env(make_env, n_envs=10, seed=1000 + given.seed), training=False, norm_reward=False)
    fresh.obs_rms = env.obs_rms
    mean, std = evaluate_policy(model, fresh, 20)
    print(f"return after {given.steps} steps: {mean:.1f} ± {std:.1f}")
    model.save("cartpole.zip")


if __name__ == "__main__":
    main()
