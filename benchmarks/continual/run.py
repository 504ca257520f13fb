"""Adam beside UPGD on CartPole whose sensors and motor are rewired every 16,384 steps; one JSON file per method.

    python benchmarks/continual/run.py --out benchmarks/continual/results
    python benchmarks/continual/report.py benchmarks/continual/results --picture docs/images/continual.png

The members of a population without exploitation are the seeds. The learning rate of every method is the one with the
highest mean return on tuning seeds, over five phases; the comparison runs on other seeds.
"""

import argparse
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import popgraft
from popgraft.execute import Shard

UPDATES, GENERATION, ENVS, STEPS = 64, 8, 8, 32
"""Updates in a phase and in a generation; environments of a member; steps of each in an update."""

UTILITY = {"utility_gain": 2.0}
VGS = {"enabled": True, "apply_to": "step", "alpha": 0.02}
RATES, SCALED_RATES = (1e-3, 3e-3, 1e-2, 3e-2), (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
METHODS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "adam": ({"optimizer": "adam"}, RATES),
    "adamw": ({"optimizer": "adamw", "optimizer_kwargs": {"weight_decay": 0.01}}, RATES),
    "upgd": ({"optimizer": "upgd", "optimizer_kwargs": UTILITY}, (0.03, 0.1, 0.3, 1.0)),
    "adaptive_upgd": ({"optimizer": "adaptive_upgd", "optimizer_kwargs": UTILITY}, RATES),
    "adam_vgs": ({"optimizer": "adam", "vgs": VGS}, SCALED_RATES),
    "adaptive_upgd_vgs": ({"optimizer": "adaptive_upgd", "optimizer_kwargs": UTILITY, "vgs": VGS}, SCALED_RATES),
}
"""Settings of every method, and the learning rates it is tried with."""


@dataclasses.dataclass
class Size:
    """How much is computed: phases of the comparison and of tuning, and seeds of each."""

    phases: int = 15
    tuning_phases: int = 5
    seeds: int = 8
    tuning_seeds: int = 4


QUICK = Size(phases=2, tuning_phases=1, seeds=2, tuning_seeds=2)


def stream(method: str, rates: Sequence[float], seeds: range, phases: int, updates: int) -> np.ndarray:
    """All learning rates and seeds as one population through all phases: mean return, [rate, seed, generation].

    A seed names weights, phases and action noise, and is the same under every learning rate.
    """
    members, generation = len(rates) * len(seeds), min(GENERATION, updates)
    settings = {
        "env": {"factory": "rewired_cartpole:make", "num_envs": ENVS, "kwargs": {"phase_steps": updates * STEPS}},
        "model": {
            "n_steps": STEPS,
            "n_epochs": 10,
            "n_minibatches": 1,
            "normalize_obs": False,  # the environment does
            "ent_coef": 0.01,  # a policy that has become certain of one phase has to try the other action in the next
            "gamma": 0.98,
            "gae_lambda": 0.9,
            "network": {"recurrent": "none", "encoder_layers": [64, 64], "critic": "scalar"},
            **METHODS[method][0],
        },
        "pbt": {"population_size": members, "exploit_method": "none"},
    }
    config = popgraft.load_config(settings)
    hyperparams = {name: torch.full((seeds.stop,), value) for name, value in config.model.hyperparams().items()}
    shard = Shard(config, [*seeds] * len(rates), hyperparams)
    shard.member.hyperparams["learning_rate"].copy_(torch.tensor(rates).repeat_interleave(len(seeds)))
    with contextlib.closing(shard):
        advances = [shard.advance(generation, lambda: False) for _ in range(phases * updates // generation)]
    returns = torch.stack([advance.scores.mean for advance in advances], 1)
    return returns.view(len(rates), len(seeds), -1).double().numpy().round(2)


def compare(method: str, rates: Sequence[float], size: Size, updates: int) -> dict[str, Any]:
    """Chooses the learning rate, then runs the comparison."""
    began = time.monotonic()
    tuning_seeds = range(size.seeds, size.seeds + size.tuning_seeds)
    scores = stream(method, rates, tuning_seeds, size.tuning_phases, updates).mean((1, 2)).tolist()
    rate = rates[int(np.argmax(scores))]
    print(f"{method}: mean return {scores} with learning rates {rates}", file=sys.stderr, flush=True)
    (returns,) = stream(method, [rate], range(size.seeds), size.phases, updates)
    print(f"{method}: {returns.mean():.1f}, {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return {
        "method": method,
        "settings": METHODS[method][0],
        "tuning": [{"learning_rate": rate, "mean_return": score} for rate, score in zip(rates, scores, strict=True)],
        "learning_rate": rate,
        "steps_per_phase": updates * STEPS * ENVS,
        "generations_per_phase": updates // min(GENERATION, updates),
        "returns": returns.tolist(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="default: all")
    parser.add_argument("--learning-rates", nargs="+", type=float, help="to choose from, instead of each method's own")
    parser.add_argument("--quick", action="store_true", help="a few updates only: does it run?")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON files")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for method in options.methods:
        rates = options.learning_rates or METHODS[method][1]
        result = compare(method, rates, QUICK if options.quick else Size(), 2 if options.quick else UPDATES)
        (options.out / f"{method}.json").write_text(json.dumps(result) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
