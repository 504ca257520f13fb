"""Aggregate environment steps per second and peak memory against population size, beside sb3-contrib's RecurrentPPO.

    python benchmarks/speed/run.py --out benchmarks/speed/results

Every row is measured in a process of its own, and all rows are repeated in turn, because the machine may be shared: a
round in which another program takes a core slows neighbouring rows alike, so their ratio says more than their speed.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
PACKAGES = ("popgraft", "torch", "numpy", "gymnasium", "sb3-contrib")


def rows(populations: list[int], threads: list[int]) -> list[dict[str, Any]]:
    """What is measured: the peer and every population, with whole-rollout and with short sequences."""
    peer = [{"engine": "sb3-contrib", "threads": n} for n in threads]
    ours = [
        {"engine": "popgraft", "population": population, "sequence_length": length, "threads": n}
        for population in populations
        for length in (128, 32)
        for n in threads
    ]
    return peer + ours


def measure(work: dict[str, Any]) -> dict[str, float]:
    """One measurement in a fresh process, in which OpenMP may use as many threads as the row says."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(work["threads"])}
    command = [sys.executable, str(WORKER), json.dumps(work)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown: medians over the rounds, ranges, and the ratio to the peer's fastest row."""
    peer = max(median(row, "steps_per_second") for row in results if row["work"]["engine"] == "sb3-contrib")
    lines = [
        "| engine | members | sequence | threads | steps/s (range) | ratio | steps per CPU second | peak MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results:
        work, speeds = row["work"], [sample["steps_per_second"] for sample in row["samples"]]
        middle = median(row, "steps_per_second")
        lines.append(
            f"| {work['engine']} | {work.get('population', 1)} | {work.get('sequence_length', 'episode')} "
            f"| {work['threads']} | {middle:,.0f} ({min(speeds):,.0f}–{max(speeds):,.0f}) | {middle / peer:.1f} "
            f"| {median(row, 'steps_per_cpu_second'):,.0f} | {median(row, 'peak_mib'):,.0f} |"
        )
    return "\n".join(lines)


def median(row: dict[str, Any], name: str) -> float:
    """Median of one number over a row's rounds."""
    return statistics.median(sample[name] for sample in row["samples"])


def main() -> None:
    """Measures all rows in turn, prints the table, and writes it beside the raw numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of measuring, per row and round")
    parser.add_argument("--n-steps", type=int, default=128, help="environment steps per environment and update")
    parser.add_argument("--out", type=Path, help="writes OUT.md and OUT.json")
    options = parser.parse_args()
    results: list[dict[str, Any]] = [
        {"work": work, "samples": []} for work in rows(options.populations, options.threads)
    ]
    for number in range(options.rounds):
        for row in results:
            sample = measure({**row["work"], "seconds": options.seconds, "n_steps": options.n_steps})
            row["samples"].append(sample)
            print(f"round {number + 1}: {row['work']} {sample['steps_per_second']:,.0f} steps/s", file=sys.stderr)
    print(table(results))
    if options.out:
        facts = {
            "date": datetime.date.today().isoformat(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "python": platform.python_version(),
            "packages": {name: version(name) for name in PACKAGES},
            "load_average": os.getloadavg()[0],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps({**facts, "results": results}, indent=1) + "\n")
        told = f"{facts['date']}, {facts['machine']}, {options.rounds} rounds, torch {facts['packages']['torch']}."
        options.out.with_suffix(".md").write_text(f"# Speed\n\n{told}\n\n{table(results)}\n")


if __name__ == "__main__":
    main()
