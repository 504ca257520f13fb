"""Runs a study: every arm on every task with every seed; goes on where it was stopped.

    python studies/run.py studies/evolution.yaml --out studies/results/evolution.jsonl

Every run takes as many environment steps as the study says, those of evaluations included. How many of them are left
for training is found out by a run with a seed that nobody is compared by; its line is kept too. A line holds what its
run spent, what became of it, and the commit that it was made with.
"""

import argparse
import json
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import popgraft

sys.path.insert(0, str(Path(__file__).parent))
from study import ROOT, Study, load

PILOT = 1_000_000
"""The seed by which the share of evaluations is found out."""
FIGURES = 5
"""Significant digits that are kept of scores in curves."""

Key = tuple[str, str, int]
"""Task, arm and seed."""


@dataclass
class Curve(popgraft.Observer):
    """Scores by generation: steps of training and of evaluation so far, best, mean and worst."""

    points: list[list[float]] = field(default_factory=list)

    def on_generation(self, generation: popgraft.Generation) -> None:
        """Keeps a point."""
        scores = generation.scores.mean
        known = scores[scores.isfinite()]
        spread = [known.max(), known.mean(), known.min()] if len(known) else []
        spent = [generation.steps, int(generation.statistics["evaluation_steps"])]
        self.points.append([*spent, *map(short, spread)])


def one(study: Study, key: Key, steps: int) -> dict[str, Any]:
    """A whole run, and the true worth of all that it leaves behind: over fresh episodes, the same for everybody.

    Args:
        study: what is asked.
        key: which of its runs.
        steps: environment steps of training.
    """
    curve, wall, cpu = Curve(), time.monotonic(), time.process_time()
    result: dict[str, Any] = dict(zip(("task", "arm", "seed"), key, strict=True))
    with tempfile.TemporaryDirectory() as folder:
        try:
            run = popgraft.train(study.settings(*key, steps, Path(folder) / "run"), observer=curve)
        except popgraft.PopulationLost as error:
            return result | {"error": str(error)}
        result |= {"seconds": round(time.monotonic() - wall, 2), "cpu_seconds": round(time.process_time() - cpu, 2)}
        found, evaluation = run.summary, run.evaluation_steps
        population = [run.agent(member).evaluate(study.episodes, run.config.seed) for member in run.members]
    return result | {
        "training_steps": curve.points[-1][0],
        "evaluation_steps": evaluation,
        "claimed": found.get("claimed_score", found["score"]),
        "score": found["score"],
        "final": found["final_score"],
        "stderr": found["final_stderr"],
        "population": [short(scores.mean[0]) for scores in population],
        "curve": curve.points,
    }


def short(value: Any) -> float:
    """A number with as many digits as are kept."""
    return float(f"{float(value):.{FIGURES}g}")


def share(pilot: dict[str, Any]) -> float:
    """Of an arm's steps on a task, those of training."""
    if "error" in pilot:
        return 1.0
    return float(pilot["training_steps"] / (pilot["training_steps"] + pilot["evaluation_steps"]))


def commit() -> str:
    """What the code is, with a + where it has been changed since."""
    said = ("git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--abbrev=7", "--exclude=*")
    return subprocess.run(said, capture_output=True, text=True, check=True).stdout.strip()


def known(path: Path) -> dict[Key, dict[str, Any]]:
    """The lines that are there; one that was cut off by the end of a process is none."""
    found = {}
    for line in path.read_text().splitlines() if path.exists() else []:
        if line.endswith("}"):
            row = json.loads(line)
            found[row["task"], row["arm"], row["seed"]] = row
    return found


def conduct(study: Study, out: Path, seeds: Sequence[int], arms: Sequence[str], workers: int) -> None:
    """Runs what is not there yet: first the pilots, then everything else, seed by seed."""
    done, version = known(out), commit()
    out.parent.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context) as pool, out.open("a") as lines:
        if out.stat().st_size and not out.read_text().endswith("\n"):
            lines.write("\n")  # after what was cut off
        for numbers in ([PILOT], seeds):
            left = [
                (task, arm, seed)
                for seed in numbers
                for task in study.tasks
                for arm in arms
                if (task, arm, seed) not in done
            ]
            steps = {
                key: study.steps if key[2] == PILOT else round(study.steps * share(done[key[0], key[1], PILOT]))
                for key in left
            }
            jobs = [pool.submit(one, study, key, steps[key]) for key in left]
            for count, job in enumerate(as_completed(jobs), 1):
                row = job.result() | {"commit": version}
                done[row["task"], row["arm"], row["seed"]] = row
                lines.write(json.dumps(row) + "\n")
                lines.flush()
                told = row.get("error") or f"{row['final']:.4g} ± {row['stderr']:.2g} in {row['seconds']:.0f} s"
                print(f"{count}/{len(left)} {row['task']}, {row['arm']}, seed {row['seed']}: {told}", flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="its file")
    parser.add_argument("--out", type=Path, required=True, help="file of results, a line for each run")
    parser.add_argument("--seeds", type=int, help="how many, in place of those that the study says")
    parser.add_argument("--arms", nargs="+", help="some of its arms")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="runs at the same time")
    options = parser.parse_args(arguments)
    study = load(options.study)
    if unknown := set(options.arms or []) - set(study.arms):
        parser.error(f"the study has no arm {', '.join(sorted(unknown))}; its arms are {', '.join(study.arms)}")
    conduct(study, options.out, range(options.seeds or study.seeds), options.arms or [*study.arms], options.workers)


if __name__ == "__main__":
    main()
