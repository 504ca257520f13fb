"""Seconds of training until a score is passed, and where the time of a run goes, in a process of its own.

    python benchmarks/speed/score.py '{"kind": "quickstart", "seed": 0}'

prints one line of JSON. `training` counts collecting and learning; `whole` adds evaluation and, for a population,
grafts, records and snapshots.
"""

import cProfile
import dataclasses
import json
import pstats
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.vec_env import VecNormalize

import popgraft

ROOT = Path(__file__).parents[2]
sys.path.append(str(ROOT / "benchmarks/learning"))
from sb3 import TASKS, Hidden  # noqa: E402

QUICKSTART = ROOT / "configs/quickstart.yaml"
REFERENCE = ROOT / "benchmarks/speed/workload.yaml"
EVOLVING = {
    "pbt.population_size": 16,
    "pbt.perturbation_interval": 25,
    "pbt.exploit_method": "truncation",
    "pbt.hyperparams": [{"name": "learning_rate", "min_value": 1e-4, "max_value": 3e-3, "is_log_scale": True}],
    "evaluation.max_steps": 500,
    "total_timesteps": 6 * 25 * 16 * 2048,
}
"""The reference work as a population that evolves: six generations of 25 updates, 51,200 environment steps a member."""
THRESHOLDS = {"quickstart": 475.0, "RecurrentPPO": 450.0, "DistributionalPPO": 450.0}
"""Mean return of ten episodes that ends the clock."""
EPISODES, INTERVAL = 10, 2560
"""Of a model's evaluation: episodes, and environment steps between two."""


@dataclasses.dataclass
class Clock(popgraft.Observer):
    """Seconds of a population's training.

    Attributes:
        training: from the beginning of a generation to its last update, over all generations.
        whole: all of it.
    """

    training: float = 0.0
    whole: float = 0.0
    _began: float = 0.0
    _updated: float = 0.0

    def on_start(self, plan: popgraft.Plan) -> None:
        """The environments are made; training begins."""
        self._began = time.perf_counter()

    def on_update(self, steps: int) -> None:
        """Remembers when."""
        self._updated = time.perf_counter()

    def on_generation(self, generation: popgraft.Generation) -> None:
        """Adds a generation."""
        now = time.perf_counter()
        self.training += self._updated - self._began
        self.whole += now - self._began
        self._began = now


def quickstart(seed: int, steps: int | None) -> dict[str, Any]:
    """The quickstart until its best member passes."""
    threshold = THRESHOLDS["quickstart"]
    with tempfile.TemporaryDirectory() as folder:
        overrides = {"seed": seed, "run_dir": f"{folder}/run", "stop_at_score": threshold, **_steps(steps)}
        clock = Clock()
        run = popgraft.train(QUICKSTART, overrides | {"evaluation.final_episodes": 1}, observer=clock)
        best, done = run.summary["score"], run.summary["steps"]
    return {"training": clock.training, "whole": clock.whole, "steps": done, "passed": best >= threshold}


def shares(config: Path, overrides: dict[str, Any]) -> dict[str, Any]:
    """Seconds of the loop's own calls in a whole run, as the loop's process sees them; shards do the work."""
    profile = cProfile.Profile()
    with tempfile.TemporaryDirectory() as folder:
        profile.runcall(popgraft.train, config, overrides | {"run_dir": f"{folder}/run"})
    stats = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent: dict[tuple[str, str], float] = {}
    for (file, _, name), row in stats.items():
        place = (Path(file).parent.name, name)
        spent[place] = max(spent.get(place, 0.0), row[3])
    called = {
        "whole": ("train", "_train"),
        "advance": ("execute", "advance"),
        "evaluation": ("execute", "evaluate"),
        "grafts": ("execute", "graft"),
        "fresh seats": ("execute", "restart"),
        "snapshots": ("train", "_save_point"),
        "last evaluation": ("train", "evaluate_best"),
    }
    found = {name: spent[place] for name, place in called.items()}
    return {**found, "snapshots": found["snapshots"] - found["fresh seats"]}


def model(kind: str, seed: int, steps: int | None) -> dict[str, Any]:
    """A model with RL Baselines3 Zoo's settings for CartPole without velocities."""
    from sb3_contrib import RecurrentPPO

    settings = dict(TASKS["cartpole"])
    name, seen, limit, n_envs = (settings.pop(key) for key in ("id", "seen", "steps", "n_envs"))

    def make(count: int, first: int) -> Any:
        import gymnasium as gym

        return make_vec_env(lambda: Hidden(gym.make(name), seen), n_envs=count, seed=first)

    class Passed(BaseCallback):
        """Evaluates between two rollouts, and stops once the score is passed."""

        seconds, score, next_at = 0.0, 0.0, INTERVAL

        def _on_rollout_start(self) -> None:
            if self.num_timesteps < self.next_at:
                return
            start = time.perf_counter()
            self.next_at += INTERVAL
            fresh.obs_rms = env.obs_rms
            self.score = float(np.mean(evaluate_policy(self.model, fresh, EPISODES, warn=False)[0]))
            self.seconds += time.perf_counter() - start

        def _on_step(self) -> bool:
            return self.score < THRESHOLDS[kind]

    env = VecNormalize(make(n_envs, seed), gamma=settings["gamma"])
    fresh = VecNormalize(make(EPISODES, 10_000 + 1_000 * seed), training=False, norm_reward=False)
    of = {"RecurrentPPO": RecurrentPPO, "DistributionalPPO": popgraft.DistributionalPPO}[kind]
    learner, passed = of("MlpLstmPolicy", env, seed=seed, device="cpu", **settings), Passed()
    start = time.perf_counter()
    learner.learn(steps or limit, callback=passed)
    whole = time.perf_counter() - start
    return {
        "training": whole - passed.seconds,
        "whole": whole,
        "steps": learner.num_timesteps,
        "passed": passed.score >= THRESHOLDS[kind],
    }


def _steps(steps: int | None) -> dict[str, int]:
    return {} if steps is None else {"total_timesteps": steps}


def measure(kind: str, seed: int = 0, steps: int | None = None) -> dict[str, Any]:
    """A measurement.

    Args:
        kind: "quickstart", "RecurrentPPO" or "DistributionalPPO"; "shares" of a quickstart, or "shares of reference".
        seed: of the run.
        steps: environment steps, in place of the usual number.
    """
    torch.set_num_threads(1)
    if kind == "quickstart":
        return quickstart(seed, steps)
    if kind == "shares":
        return shares(QUICKSTART, {"seed": seed, **_steps(steps)})
    if kind == "shares of reference":
        return shares(REFERENCE, EVOLVING | {"seed": seed, **_steps(steps)})
    return model(kind, seed, steps)


if __name__ == "__main__":
    print(json.dumps(measure(**json.loads(sys.argv[1]))))
