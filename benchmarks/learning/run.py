"""Trains a configuration with several seeds; writes a JSON file and prints a Markdown table.

    python benchmarks/learning/run.py configs/quickstart.yaml --seeds 5 --out benchmarks/learning/results

A score is what the population is selected by: the mean return of a member's evaluation or training episodes. The final
score is the best member's over fresh episodes, played after training: the one that it was chosen by flatters.
"""

import argparse
import dataclasses
import json
import os
import platform
import shlex
import statistics
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import popgraft

PACKAGES = ("popgraft", "torch", "numpy", "gymnasium", "mujoco")
DIAGNOSTICS = ("approx_kl", "vgs/scaling_factor", "upgd_gate_mean", "upgd_gate_max")
"""Metrics that are kept beside the scores, where there are any: mean over a generation's updates."""


@dataclasses.dataclass
class Curve(popgraft.Observer):
    """Scores and grafts of a run, by generation.

    Attributes:
        seed: names the run on the terminal.
        generations: population steps, seconds since training began, the score of every member (None: not finite), and
            its diagnostics.
        grafts: who was overwritten with whom, and after which generation.
    """

    seed: int
    generations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    grafts: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def on_generation(self, generation: popgraft.Generation) -> None:
        """Keeps what the plots show."""
        mean = generation.scores.mean
        known = mean[mean.isfinite()]
        self.generations.append(
            {
                "steps": generation.steps,
                "seconds": round(generation.seconds, 2),
                "best": round(known.max().item(), 4),
                "mean": round(known.mean().item(), 4),
                "worst": round(known.min().item(), 4),
                "members": [round(score, 4) if score == score else None for score in mean.tolist()],
                "metrics": {
                    name: [float(f"{value:.3g}") for value in generation.metrics[name].mean(1).tolist()]
                    for name in DIAGNOSTICS
                    if name in generation.metrics
                },
            }
        )
        parents = generation.decision.parents.tolist()
        self.grafts += [
            {"generation": generation.number, "member": member, "parent": parents[member]}
            for member in generation.exploits.tolist()
        ]
        row = self.generations[-1]
        print(
            f"seed {self.seed}: {row['steps']:>10,} steps {row['seconds']:8.1f} s   "
            f"best {row['best']:8.2f}   mean {row['mean']:8.2f}   worst {row['worst']:8.2f}",
            file=sys.stderr,
            flush=True,
        )


def train_seed(config: str, overrides: Sequence[str], seed: int) -> dict[str, Any]:
    """One run in a temporary folder: its curve and its final score."""
    curve = Curve(seed)
    with tempfile.TemporaryDirectory() as folder:
        run = popgraft.train(config, [*overrides, f"seed={seed}", f"run_dir={folder}/run"], observer=curve)
        found = run.summary
    final = {"score": found["final_score"], "stderr": found["final_stderr"], "episodes": found["final_episodes"]}
    best = {"generation": found["generation"], "member": found["member"]}
    return {"seed": seed, "final": final, "best": best, "generations": curve.generations, "grafts": curve.grafts}


def benchmark(config: str, overrides: Sequence[str], seeds: int, label: str, threshold: float | None) -> dict[str, Any]:
    """All seeds of a configuration, and what is needed to repeat them."""
    options = [word for override in overrides for word in ("--set", override)] + ["--label", label]
    options += [] if threshold is None else ["--at-least", f"{threshold:g}"]
    return {
        "label": label,
        "threshold": threshold,
        "command": shlex.join(["python", "benchmarks/learning/run.py", config, "--seeds", str(seeds), *options]),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "machine": f"{platform.machine()}, {os.cpu_count()} logical cores",
        "runs": [train_seed(config, overrides, seed) for seed in range(seeds)],
    }


def reached(run: dict[str, Any], threshold: float) -> str:
    """Population steps after which some member first scores this much."""
    return next((f"{row['steps']:,}" for row in run["generations"] if row["best"] >= threshold), "never")


def table(result: dict[str, Any]) -> str:
    """A Markdown table, one row per seed and one over all of them (mean ± its standard error over seeds)."""
    threshold = result["threshold"]
    first = "" if threshold is None else f" steps to {threshold:g} |"
    lines = [
        f"| seed | population steps |{first} training, s | best member while training | final score | episodes |",
        f"|---:|---:|{'---:|' if first else ''}---:|---:|---:|---:|",
    ]
    for run in result["runs"]:
        last, final = run["generations"][-1], run["final"]
        best = max(generation["best"] for generation in run["generations"])
        when = "" if threshold is None else f" {reached(run, threshold)} |"
        lines.append(
            f"| {run['seed']} | {last['steps']:,} |{when} {last['seconds']:.0f} | {best:.2f} "
            f"| {final['score']:.2f} ± {final['stderr']:.2f} | {final['episodes']} |"
        )
    scores = [run["final"]["score"] for run in result["runs"]]
    if len(scores) > 1:
        mean, stderr = statistics.mean(scores), statistics.stdev(scores) / len(scores) ** 0.5
        lines.append(f"| **all** | |{' |' if first else ''} | | **{mean:.2f} ± {stderr:.2f}** | |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 1 if a final score falls short of `--at-least`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="a YAML file")
    parser.add_argument("--seeds", type=int, default=5, help="how many; they are counted from 0")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="setting that wins over the file"
    )
    parser.add_argument("--label", help="name of the JSON file, and of the curve in plots")
    parser.add_argument("--at-least", type=float, help="the final score that every seed must reach")
    parser.add_argument("--out", type=Path, required=True, help="folder of the JSON file")
    options = parser.parse_args(arguments)
    label = options.label or Path(options.config).stem
    options.out.mkdir(parents=True, exist_ok=True)
    result = benchmark(options.config, options.set, options.seeds, label, options.at_least)
    (options.out / f"{label}.json").write_text(json.dumps(result) + "\n")
    print(f"### {label}\n\n```\n{result['command']}\n```\n\n{table(result)}")
    if options.at_least is None:
        return 0
    passed = sum(run["final"]["score"] >= options.at_least for run in result["runs"])
    print(f"\n{passed} of {options.seeds} seeds reach {options.at_least:g}.")
    return 0 if passed == options.seeds else 1


if __name__ == "__main__":
    sys.exit(main())
