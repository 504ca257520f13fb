"""Trains populations with and without state-adversarial PPO; prints a Markdown table of the best agents under attack.

    python benchmarks/learning/robustness.py cartpole pendulum --seeds 3 --out benchmarks/learning/results

All arms of a task have the same configuration, seeds and environment steps. `plain` and `sa_ppo` select by clean
return; half of the score of `selected` (plain PPO) and `both` (state-adversarial PPO) is the return under PGD. All are
evaluated on the same fresh episodes, with attacks of the radius that they were trained with.
"""

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import popgraft

CONFIGS = Path(__file__).parents[2] / "configs"
METHODS = ("random", "pgd", "critic")
STEPS = 10
"""Gradient steps of the attacks in evaluation; training has 3."""


@dataclasses.dataclass(frozen=True)
class Task:
    """What is trained.

    Attributes:
        config: file of the configuration.
        epsilon: radius of the attacks, in units of normalised observations.
        weight: of the robust term.
        settings: settings that win over the file's, in all arms.
        steps: gradient steps of the attack that arms select by.
        evolves: what the population of `both` tunes, where that is not what the others do.
    """

    config: str
    epsilon: float
    weight: float
    settings: tuple[str, ...] = ()
    steps: int = 10
    evolves: str = ""

    def arm(self, name: str) -> list[str]:
        """Settings of one arm."""
        perturbation = f"{{epsilon: {self.epsilon}, attack_lr: {0.4 * self.epsilon}}}"
        adversary = f"{{enabled: true, robust_kl_coef: {self.weight}, perturbation: {perturbation}}}"
        trained = [f"model.adversary={adversary}"]
        evolves = [f"pbt.hyperparams={self.evolves}"] if self.evolves else []
        attack = f"evaluation.attack={{method: pgd, epsilon: {self.epsilon}, steps: {self.steps}}}"
        selected = [attack, "evaluation.attack_weight=0.5", "pbt.fitness=evaluation"]
        return {"plain": [], "sa_ppo": trained, "selected": selected, "both": trained + selected + evolves}[name]


NO_ENTROPY_BONUS = (  # it asks for the flat distribution that the robust term is content with
    "pbt.hyperparams=[{name: learning_rate, min_value: 1e-4, max_value: 1e-2, is_log_scale: true}, "
    "{name: clip_range, min_value: 0.1, max_value: 0.4}]"
)
WEIGHT_TOO = (  # how much of the robust term an agent can bear is not known beforehand
    "[{name: learning_rate, min_value: 3e-4, max_value: 3e-3, is_log_scale: true}, "
    "{name: gamma, values: [0.9, 0.92, 0.94, 0.96]}, {name: gae_lambda, min_value: 0.9, max_value: 0.98}, "
    "{name: robust_kl_coef, min_value: 0.03, max_value: 1.0, is_log_scale: true}]"
)

TASKS = {
    "cartpole": Task("quickstart.yaml", 0.3, 0.1, (NO_ENTROPY_BONUS, "total_timesteps=400_000")),
    "pendulum": Task("pendulum_novel.yaml", 0.1, 0.1, ("total_timesteps=600_000",), 5, WEIGHT_TOO),
    "halfcheetah": Task("halfcheetah_novel.yaml", 0.3, 0.1, ("total_timesteps=1_000_000",)),
}
ARMS = ("plain", "sa_ppo", "selected", "both")


def measure(task: Task, arm: str, seed: int, episodes: int, overrides: Sequence[str]) -> dict[str, Any]:
    """Trains one population and evaluates its best agent: mean return by kind of attack."""
    began = time.monotonic()
    settings = [*task.settings, *task.arm(arm), *overrides, f"seed={seed}"]
    with tempfile.TemporaryDirectory() as folder:
        run = popgraft.train(CONFIGS / task.config, [*settings, f"run_dir={folder}/run"])
        trained = time.monotonic()
        attacks = [popgraft.AttackConfig(method=name, epsilon=task.epsilon, steps=STEPS) for name in METHODS]
        scores = [run.best.evaluate(episodes, seed, attack=attack) for attack in (None, *attacks)]
    returns = {name: float(score.mean[0]) for name, score in zip(("clean", *METHODS), scores, strict=True)}
    return {"seed": seed, "seconds": round(trained - began, 1), "returns": returns}


def cell(values: Sequence[float]) -> str:
    """Mean and its standard error over seeds."""
    if len(values) == 1:
        return f"{values[0]:.1f}"
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values) / len(values) ** 0.5:.1f}"


def table(results: Sequence[dict[str, Any]]) -> str:
    """A Markdown table with a line for every task and arm."""
    lines = [
        f"| task | ε | training | clean | {' | '.join(METHODS)} | seconds |",
        f"|---|---:|---|---:|{'---:|' * len(METHODS)}---:|",
    ]
    for result in results:
        runs = result["runs"]
        cells = [cell([run["returns"][name] for run in runs]) for name in ("clean", *METHODS)]
        seconds = statistics.median(run["seconds"] for run in runs)
        lines.append(
            f"| {result['task']} | {result['epsilon']:g} | {result['arm']} | {' | '.join(cells)} | {seconds:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", choices=TASKS, help="what to train")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS[:2], help="how to train it")
    parser.add_argument("--seeds", type=int, default=3, help="how many; they are counted from 0")
    parser.add_argument("--episodes", type=int, default=50, help="of every evaluation")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting that wins over all others"
    )
    parser.add_argument("--epsilon", type=float, help="radius, in place of the task's")
    parser.add_argument("--weight", type=float, help="weight of the robust term, in place of the task's")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    changes = {name: value for name in ("epsilon", "weight") if (value := getattr(options, name)) is not None}
    options.out.mkdir(parents=True, exist_ok=True)
    results: list[dict[str, Any]] = []
    for name in options.tasks:
        task = dataclasses.replace(TASKS[name], **changes)
        for arm in options.arms:
            runs = []
            for seed in range(options.seeds):
                runs.append(measure(task, arm, seed, options.episodes, options.set))
                print(f"{name} {arm} {runs[-1]}", file=sys.stderr, flush=True)
            results.append({"task": name, "arm": arm, "epsilon": task.epsilon, "weight": task.weight, "runs": runs})
            (options.out / "robustness.json").write_text(json.dumps(results) + "\n")
    of = f"{options.episodes} episodes per seed, {options.seeds} seeds"
    print(f"Attacks of {STEPS} steps, {of}; mean ± standard error over seeds\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
