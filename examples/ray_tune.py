"""Ray Tune's PopulationBasedTraining on Stable-Baselines3 models, with this project's complete transfer.

    pip install 'popgraft[tune]'
    python examples/ray_tune.py
    python examples/ray_tune.py --members 8 --iterations 40

Tune decides who is replaced and perturbs the hyperparameters. `MemberTrainable` carries everything over that a
recipient inherits, VecNormalize's statistics and the optimizer included, and makes the new hyperparameters live.
"""

import argparse
import math
from typing import Any

import torch
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from popgraft.tune import Lineage, MemberTrainable

INTERVAL = 2
"""Iterations between two decisions of Tune."""


class Agent(MemberTrainable):
    """PPO on CartPole; an iteration is one rollout and the update from it."""

    def make(self, config: dict[str, Any]) -> PPO:
        """A model with the trial's hyperparameters, as Tune drew them."""
        torch.set_num_threads(1)
        env = VecNormalize(make_vec_env("CartPole-v1", 4), norm_reward=False)
        return PPO("MlpPolicy", env, n_steps=128, batch_size=128, n_epochs=4, device="cpu", **config)

    def learn(self, model: PPO) -> dict[str, Any]:
        """Trains once; the score is the mean return of the latest episodes."""
        model.learn(512, reset_num_timesteps=False)
        episodes = [episode["r"] for episode in model.ep_info_buffer]
        return {"score": sum(episodes) / len(episodes) if episodes else math.nan}


def main(words: list[str] | None = None) -> tune.ResultGrid:
    """Trains the population and prints who inherited from whom."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--members", type=int, default=4)
    parser.add_argument("--iterations", type=int, default=20)
    parser.add_argument("--folder", help="where Tune keeps its files; its own default if left out")
    arguments = parser.parse_args(words)
    space = {"learning_rate": tune.loguniform(1e-5, 1e-2), "ent_coef": tune.loguniform(1e-4, 1e-1)}
    scheduler = PopulationBasedTraining(
        time_attr="training_iteration", perturbation_interval=INTERVAL, hyperparam_mutations=space
    )
    lineage = Lineage()
    results = tune.Tuner(
        tune.with_resources(Agent, {"cpu": 1}),
        param_space=space,
        tune_config=tune.TuneConfig(
            metric="score", mode="max", scheduler=scheduler, num_samples=arguments.members, reuse_actors=True
        ),
        run_config=tune.RunConfig(
            storage_path=arguments.folder,
            stop={"training_iteration": arguments.iterations},
            callbacks=[lineage],
            checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=INTERVAL),  # only what is saved is inherited
            verbose=0,
        ),
    ).fit()
    for graft in lineage.grafts:
        rate = graft["hyperparams"]["learning_rate"]
        print(
            f"iteration {graft['iteration']}: {graft['trial']} went on as {graft['parent']}, learning rate {rate:.2g}"
        )
    print(f"best score {results.get_best_result().metrics['score']:.1f}")
    return results


if __name__ == "__main__":
    main()
