"""What both libraries under Ray Tune's population-based training share."""

import logging
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import ray
from measuring import N_ENVS, N_STEPS, memory, tell
from ray import tune
from ray.tune.schedulers import PopulationBasedTraining


class Watch(tune.Stopper):
    """Tells the result after the measured seconds, which begin when every agent has made its first update."""

    def __init__(self, agents: int, seconds: float, packages: list[str]) -> None:
        self.agents, self.seconds, self.packages = agents, seconds, packages
        self.times: dict[str, list[float]] = defaultdict(list)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Notes that a trial has made an update."""
        self.times[trial_id].append(time.perf_counter())
        return False

    def stop_all(self) -> bool:
        """Looks at the clock."""
        if len(self.times) < self.agents:
            return False
        began = max(times[0] for times in self.times.values())
        seconds = time.perf_counter() - began
        known = [[time for time in times if time >= began] for times in self.times.values()]
        if seconds >= self.seconds and min(map(len, known)) > 1:
            updates = sum(len(times) - 1 for times in known)
            rate = sum((len(times) - 1) / (times[-1] - times[0]) for times in known)
            size = N_ENVS * N_STEPS
            tell(
                {"steps": updates * size, "seconds": seconds, "steps_per_second": rate * size, **memory()},
                ["ray", "torch", "gymnasium", "numpy", *self.packages],
            )
        return False


def measure(trainable: Callable[[dict[str, Any]], None], packages: list[str], agents: int, seconds: float) -> None:
    """Trains all agents at the same time, each in an actor of its own; they share the machine's cores evenly.

    Args:
        trainable: reports after every update.
        packages: whose versions to tell besides.
        agents: how many.
        seconds: time to measure for.
    """
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": min(1, 2 / agents)}),
            param_space={"lr": tune.loguniform(1e-4, 1e-3)},
            tune_config=tune.TuneConfig(
                scheduler=PopulationBasedTraining(
                    metric="score",
                    mode="max",
                    perturbation_interval=10**9,  # nobody copies: only collecting and learning are measured
                    hyperparam_mutations={"lr": tune.loguniform(1e-4, 1e-3)},
                ),
                num_samples=agents,
            ),
            run_config=tune.RunConfig(storage_path=folder, stop=Watch(agents, seconds, packages), verbose=0),
        ).fit()
