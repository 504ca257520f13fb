"""Ray Tune's population-based training of RLlib's PPO.

python ray_tune_rllib.py '{"agents": 8, "seconds": 15}'
"""

import contextlib
import json
import sys
from typing import Any

import ray_tune
from measuring import N_ENVS, N_EPOCHS, N_MINIBATCHES, N_STEPS, WIDTH, cartpole
from ray import tune
from ray.rllib.algorithms.ppo import PPOConfig
from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig


def trainable(config: dict[str, Any]) -> None:
    """One agent."""
    tune.register_env("cartpole", lambda _: cartpole())
    settings = (
        PPOConfig()
        .environment("cartpole")
        .env_runners(num_env_runners=0, num_envs_per_env_runner=N_ENVS, rollout_fragment_length=N_STEPS)
        .training(
            lr=config["lr"],
            train_batch_size_per_learner=N_ENVS * N_STEPS,
            minibatch_size=N_ENVS * N_STEPS // N_MINIBATCHES,
            num_epochs=N_EPOCHS,
            use_kl_loss=False,
        )
        .rl_module(
            model_config=DefaultModelConfig(
                fcnet_hiddens=[WIDTH],
                fcnet_activation="tanh",
                use_lstm=True,
                lstm_cell_size=WIDTH,
                max_seq_len=N_STEPS,
                head_fcnet_hiddens=[],
                vf_share_layers=True,
            )
        )
        .reporting(min_time_s_per_iteration=0, metrics_num_episodes_for_smoothing=1)
    )
    algorithm = settings.build_algo()
    while True:
        algorithm.train()
        tune.report({"score": 0.0})


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        ray_tune.measure(trainable, [], **json.loads(sys.argv[1]))
