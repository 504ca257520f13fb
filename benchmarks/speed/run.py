"""Speed of a population against sb3-contrib's RecurrentPPO; prints a Markdown table, and writes it with a JSON file.

    python benchmarks/speed/run.py --out benchmarks/speed/results.md

Every measurement is a process of its own (worker.py). Other work on the machine disturbs a measurement, so a row is
measured right after the baseline, over and over, and what counts is the ratio of such a pair: its median and its range.
"""

import argparse
import dataclasses
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
PACKAGES = ("popgraft", "torch", "numpy", "gymnasium", "stable-baselines3", "sb3-contrib")
REQUIRED = {1: 5.0, 16: 15.0}
"""Smallest ratio to the baseline that a population of this size must reach."""

Measurement = dict[str, float]
Work = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of the table.

    Attributes:
        work: what worker.py is asked for.
        pairs: (baseline, own) measurements, one after the other.
    """

    work: Work
    pairs: list[tuple[Measurement, Measurement]]

    def own(self, name: str) -> list[float]:
        """All values of a measurement."""
        return [own[name] for _, own in self.pairs]

    def ratios(self, name: str) -> list[float]:
        """How many times the baseline's, pair by pair."""
        return [own[name] / baseline[name] for baseline, own in self.pairs]

    @property
    def cells(self) -> list[str]:
        """The row as it is printed."""
        return [
            str(self.work["population"]),
            str(self.work["sequence_length"]),
            str(self.work["quantiles"]),
            spread(self.own("steps_per_second"), ",.0f"),
            spread(self.ratios("steps_per_second"), ".1f"),
            spread(self.ratios("steps_per_cpu_second"), ".1f"),
            f"{max(self.own('peak_mib')):,.0f}",
        ]


MODELS = ["LSTM of", "RecurrentPPO, steps/s", "DistributionalPPO, steps/s", "ratio", "by processor time"]
HEADER = ["members", "sequence", "quantiles", "steps/s", "× sb3-contrib", "× by processor time", "peak MiB"]


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--populations", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--sequence-lengths", type=int, nargs="+", default=[128, 32, 16])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of one measurement, after an update to warm up")
    parser.add_argument("--out", type=Path, help="Markdown file; the measurements go beside it, as JSON")
    parser.add_argument("--quick", action="store_true", help="one member, once, one update: only to see that it works")
    args = parser.parse_args(arguments)
    if args.quick:
        args.populations, args.sequence_lengths, args.repetitions, args.seconds = [1], [32], 1, 0.0

    began, load = datetime.datetime.now(datetime.UTC), os.getloadavg()
    common = {"seconds": args.seconds, "updates": 1 if args.quick else 2}
    works: list[Work] = [
        {"engine": "popgraft", "population": population, "sequence_length": length, "quantiles": 21, **common}
        for length in args.sequence_lengths
        for population in args.populations
    ]
    if not args.quick:  # the price of the quantile critic
        works += [work | {"quantiles": 1} for work in works if work["population"] in REQUIRED]

    baselines = {
        threads: {"engine": "sb3-contrib", "threads": threads, **common} for threads in ([1] if args.quick else [1, 2])
    }
    trials: dict[int, list[Measurement]] = {threads: [] for threads in baselines}
    for _ in range(args.repetitions):
        for threads, work in baselines.items():
            trials[threads].append(measure(work))
    best = max(trials, key=lambda threads: statistics.median(trial["steps_per_second"] for trial in trials[threads]))

    rows = [Row(work, []) for work in works]
    widths = [16] if args.quick else [64, 256]
    models = [Row({"engine": "DistributionalPPO", "hidden": width, **common}, []) for width in widths]
    for _ in range(args.repetitions):
        for row in rows:
            row.pairs.append((measure(baselines[best]), measure(row.work)))
        for row in models:
            row.pairs.append((measure(row.work | {"engine": "RecurrentPPO"}), measure(row.work)))

    facts = machine() | {
        "date": began.strftime("%Y-%m-%d %H:%M UTC"),
        "load": f"{load[0]:.1f} at the start, {os.getloadavg()[0]:.1f} at the end",
    }
    text = report(facts, trials, best, rows, models)
    print(text)
    if args.out:
        args.out.write_text(text + "\n", encoding="utf-8")
        record = {
            "facts": facts,
            "baseline_threads": best,
            "baseline_trials": trials,
            "rows": [dataclasses.asdict(row) for row in (*rows, *models)],
        }
        args.out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def measure(work: Work) -> Measurement:
    """One measurement in a fresh process."""
    command = [sys.executable, str(WORKER), json.dumps(work)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    result: Measurement = json.loads(done.stdout.splitlines()[-1])
    label = " ".join(f"{key}={value}" for key, value in work.items() if key not in ("seconds", "updates"))
    print(f"{label}: {result['steps_per_second']:,.0f} steps/s", file=sys.stderr, flush=True)
    return result


def report(
    facts: dict[str, str],
    trials: dict[int, list[Measurement]],
    best: int,
    rows: Sequence[Row],
    models: Sequence[Row],
) -> str:
    """The Markdown text."""
    baseline = [first for row in rows for first, _ in row.pairs]
    lines = [f"- **{name}**: {value}" for name, value in facts.items()]
    lines += ["", "| sb3-contrib | steps/s | peak MiB |", "|---|--:|--:|"]
    for threads, own in trials.items():
        speed, peak = spread([trial["steps_per_second"] for trial in own], ",.0f"), max(t["peak_mib"] for t in own)
        lines.append(f"| {threads} thread{'s' * (threads > 1)}, alone | {speed} | {peak:,.0f} |")
    speed, peak = (
        spread([first["steps_per_second"] for first in baseline], ",.0f"),
        max(b["peak_mib"] for b in baseline),
    )
    lines.append(f"| {best} thread{'s' * (best > 1)}, before each row | {speed} | {peak:,.0f} |")
    lines += ["", f"| {' | '.join(HEADER)} |", f"|{'--:|' * len(HEADER)}"]
    lines += [f"| {' | '.join(row.cells)} |" for row in rows]
    lines += ["", *(verdict(row) for row in rows if row.work["population"] in REQUIRED)]
    lines += ["", f"| {' | '.join(MODELS)} |", f"|{'--:|' * len(MODELS)}"]
    for row in models:
        cells = [
            str(row.work["hidden"]),
            spread([baseline["steps_per_second"] for baseline, _ in row.pairs], ",.0f"),
            spread(row.own("steps_per_second"), ",.0f"),
            spread(row.ratios("steps_per_second"), ".1f"),
            spread(row.ratios("steps_per_cpu_second"), ".1f"),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines).rstrip()


def verdict(row: Row) -> str:
    """Whether a row reaches what is required of its population."""
    population, length, quantiles = (row.work[key] for key in ("population", "sequence_length", "quantiles"))
    ratio, required = statistics.median(row.ratios("steps_per_second")), REQUIRED[population]
    kept = "reached" if ratio >= required else "missed"
    return (
        f"- {population} member{'s' * (population > 1)}, sequences of {length}, {quantiles} "
        f"quantile{'s' * (quantiles > 1)}: {ratio:.1f} × sb3-contrib, required {required:g} ×: {kept}."
    )


def spread(values: Sequence[float], form: str) -> str:
    """Median, with the range in brackets where there is one."""
    middle = format(statistics.median(values), form)
    return middle if len(values) == 1 else f"{middle} ({min(values):{form}}–{max(values):{form}})"


def machine() -> dict[str, str]:
    """What the numbers depend on beside the code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "machine": f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {platform.system()}",
        "versions": f"Python {platform.python_version()}, " + ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


if __name__ == "__main__":
    main()
