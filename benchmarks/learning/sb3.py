"""Trains DistributionalPPO, or sb3-contrib's RecurrentPPO, with RL Baselines3 Zoo's tuned settings; prints a table.

    python benchmarks/learning/sb3.py cartpole --algorithm adjusted --out benchmarks/learning/results
    python benchmarks/learning/sb3.py cartpole --algorithm contrib --out benchmarks/learning/results

The environments hide velocities, so that a memory is needed. Observations and rewards are normalised by VecNormalize,
as in the Zoo. The score is the mean return of `EPISODES` deterministic episodes, on seeds of their own: of the agent at
the end of training, and of the one that EvalCallback found best of `LOOKS` on the way, as the Zoo keeps it.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from popgraft import DistributionalPPO

EPISODES = 100
"""Of an evaluation."""
LOOKS = 20
"""Evaluations while training."""

POLICY = {"ortho_init": False, "lstm_hidden_size": 64, "net_arch": {"pi": [64], "vf": [64]}}
TASKS: dict[str, dict[str, Any]] = {
    "cartpole": {
        "id": "CartPole-v1",
        "seen": [1, 0, 1, 0],
        "steps": 100_000,
        "n_envs": 8,
        "n_steps": 32,
        "batch_size": 256,
        "n_epochs": 20,
        "gamma": 0.98,
        "gae_lambda": 0.8,
        "learning_rate": LinearSchedule(1e-3, 0.0, 1.0),
        "clip_range": LinearSchedule(0.2, 0.0, 1.0),
        "policy_kwargs": {**POLICY, "activation_fn": nn.ReLU},
    },
    "pendulum": {
        "id": "Pendulum-v1",
        "seen": [1, 1, 0],
        "steps": 100_000,
        "n_envs": 4,
        "n_steps": 1024,
        "n_epochs": 10,
        "gamma": 0.9,
        "gae_lambda": 0.95,
        "learning_rate": 1e-3,
        "use_sde": True,
        "sde_sample_freq": 4,
        "policy_kwargs": {**POLICY, "activation_fn": nn.ReLU},
    },
    "mountaincar": {
        "id": "MountainCarContinuous-v0",
        "seen": [1, 0],
        "steps": 300_000,
        "n_envs": 8,
        "n_steps": 1024,
        "batch_size": 256,
        "n_epochs": 10,
        "gamma": 0.9999,
        "gae_lambda": 0.9,
        "learning_rate": 7.77e-5,
        "ent_coef": 0.00429,
        "clip_range": 0.1,
        "max_grad_norm": 5,
        "vf_coef": 0.19,
        "use_sde": True,
        "sde_sample_freq": 8,
        "policy_kwargs": {**POLICY, "lstm_hidden_size": 32, "log_std_init": 0.0},
    },
}
"""`id` and `seen` name the environment and what is not hidden of it; the rest are RL Baselines3 Zoo's settings."""

OWN: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    "adjusted": {
        "cartpole": {"target_kl": 0.03},
        "pendulum": {"policy_kwargs": {**TASKS["pendulum"]["policy_kwargs"], "log_std_init": 0.5}},
    },
    "scalar": {task: {"critic": "scalar", "normalize_returns": False} for task in TASKS},
}
"""What DistributionalPPO is given beside the Zoo's settings, or in their place: nothing, what it gains from, or what
makes it a RecurrentPPO."""


class Hidden(gym.ObservationWrapper):  # type: ignore[type-arg]
    """Multiplies observations with a mask."""

    def __init__(self, env: gym.Env[Any, Any], seen: Sequence[int]) -> None:
        super().__init__(env)
        self._seen = np.array(seen, np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """What is not hidden."""
        return observation * self._seen


class Keep(BaseCallback):
    """Remembers the agent, and the statistics of what it sees."""

    def _on_step(self) -> bool:
        env: Any = self.model.get_env()
        self.policy, self.statistics = copy.deepcopy((self.model.policy.state_dict(), env.obs_rms))
        self.steps = self.num_timesteps
        return True


def run(task: str, algorithm: str, seed: int) -> dict[str, Any]:
    """Trains and evaluates one agent."""
    settings = dict(TASKS[task])
    name, seen, steps, n_envs = (settings.pop(key) for key in ("id", "seen", "steps", "n_envs"))

    def make(count: int, first: int) -> Any:
        return make_vec_env(lambda: Hidden(gym.make(name), seen), n_envs=count, seed=first)

    def evaluated(first: int, statistics: Any) -> VecNormalize:
        fresh = VecNormalize(make(10, first + 1_000 * seed), training=False, norm_reward=False)
        fresh.obs_rms = statistics
        return fresh

    env = VecNormalize(make(n_envs, seed), gamma=settings["gamma"])
    began = time.perf_counter()
    if algorithm == "contrib":
        model: Any = RecurrentPPO("MlpLstmPolicy", env, seed=seed, device="cpu", **settings)
    else:
        settings |= OWN[algorithm].get(task, {})
        model = DistributionalPPO("MlpLstmPolicy", env, seed=seed, device="cpu", **settings)
    on_the_way = {"n_eval_episodes": EPISODES, "eval_freq": steps // LOOKS // n_envs, "verbose": 0}
    best = Keep()
    model.learn(steps, EvalCallback(evaluated(50_000, env.obs_rms), callback_on_new_best=best, **on_the_way))
    seconds = time.perf_counter() - began

    def score(statistics: Any) -> dict[str, float]:
        returns, _ = evaluate_policy(model, evaluated(10_000, statistics), EPISODES, return_episode_rewards=True)
        return {"mean": round(float(np.mean(returns)), 2), "std": round(float(np.std(returns)), 2)}

    result = {"seed": seed, **score(env.obs_rms), "seconds": round(seconds, 1)}
    model.policy.load_state_dict(best.policy)
    return result | {"best": score(best.statistics) | {"steps": best.steps}}


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--algorithm", choices=[*OWN, "contrib"], default="default")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        rows.append(run(options.task, options.algorithm, seed))
        print(f"{options.task} {options.algorithm} {rows[-1]}", file=sys.stderr, flush=True)
    packages = ("popgraft", "torch", "stable-baselines3", "sb3-contrib", "gymnasium")
    result = {
        "task": options.task,
        "algorithm": options.algorithm,
        "machine": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in packages},
        "runs": rows,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    file = options.out / f"sb3_{options.task}_{options.algorithm}_{options.first}.json"
    file.write_text(json.dumps(result, indent=1) + "\n")
    seconds = statistics.median(row["seconds"] for row in rows)
    for name, scores in (("at the end", rows), ("best", [row["best"] for row in rows])):
        means = [score["mean"] for score in scores]
        spread = statistics.stdev(means) if len(means) > 1 else 0.0
        perfect = sum(score["std"] == 0 for score in scores)
        cells = [options.task, options.algorithm, name, len(rows), f"{statistics.mean(means):.1f} ± {spread:.1f}"]
        cells += [f"{statistics.median(means):.1f}", f"{min(means):.1f}", perfect, f"{seconds:.0f} s"]
        print(f"| {' | '.join(map(str, cells))} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
