"""Tables and a picture of what `run.py` has written.

    python benchmarks/continual/report.py benchmarks/continual/results --picture docs/images/continual.png

Intervals are 95 % bootstrap intervals over seeds. Seed by seed, every method sees the same phases and begins with the
same weights as Adam, so that seeds are drawn in pairs.
"""

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

NAMES = {
    "adam": "Adam",
    "adamw": "AdamW",
    "upgd": "UPGD",
    "adaptive_upgd": "AdaptiveUPGD",
    "adam_vgs": "Adam + VGS",
    "adaptive_upgd_vgs": "AdaptiveUPGD + VGS",
}
COLOURS = dict(zip(NAMES, ("#222222", "#e69f00", "#cc79a7", "#0072b2", "#009e73", "#d55e00"), strict=True))
RESAMPLES = 10_000


def interval(statistic: Callable[[np.ndarray], np.ndarray], seeds: int, digits: int = 1) -> str:
    """The statistic with its bootstrap interval; it is called with indices of seeds, [resamples, seeds]."""
    drawn = np.random.default_rng(0).integers(seeds, size=(RESAMPLES, seeds))
    low, high = np.quantile(statistic(drawn), [0.025, 0.975])
    value = float(statistic(np.arange(seeds)[None])[0])
    return f"{value:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def mean(values: np.ndarray) -> str:
    """Mean over seeds."""
    return interval(lambda index: values[index].mean(1), len(values))


def phased(result: dict[str, Any]) -> np.ndarray:
    """Mean return, [seed, phase, generation of the phase]."""
    returns = np.array(result["returns"])
    return returns.reshape(len(returns), -1, result["generations_per_phase"])


def tables(results: dict[str, dict[str, Any]]) -> str:
    """The comparison, and the learning rates that were tried."""
    adam = phased(results["adam"])
    third = max(adam.shape[1] // 3, 1)
    lines = [
        f"{len(adam)} seeds, {adam.shape[1]} phases of {results['adam']['steps_per_phase']:,} steps. Mean return of "
        "training episodes, 95 % bootstrap intervals over seeds.\n",
        "| | learning rate | whole stream | × Adam | begin of a phase | "
        f"end of phases 1–{third} | end of the last {third} | last − first |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for method, result in results.items():
        returns = phased(result)
        whole, base = returns.mean((1, 2)), adam.mean((1, 2))
        early, late = returns[:, :third, -1].mean(1), returns[:, -third:, -1].mean(1)
        ratio = (
            interval(lambda i, a=whole, b=base: a[i].mean(1) / b[i].mean(1), len(whole), 2) if method != "adam" else "1"
        )
        cells = [NAMES[method], f"{result['learning_rate']:g}", mean(whole), ratio, mean(returns[:, 1:, 0].mean(1))]
        lines.append(f"| {' | '.join([*cells, mean(early), mean(late), mean(late - early)])} |")
    lines += ["\nMean return on the tuning seeds:\n", "| | learning rate: mean return |", "|---|---|"]
    for method, result in results.items():
        tried = "; ".join(f"{row['learning_rate']:g}: {row['mean_return']:.1f}" for row in result["tuning"])
        lines.append(f"| {NAMES[method]} | {tried} |")
    return "\n".join(lines)


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Mean return by phase, and within a phase; bands are standard errors over seeds."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    by_phase, within = figure.subplots(1, 2, sharey=True, width_ratios=[2, 1])
    for method, result in results.items():
        returns, colour = phased(result), COLOURS[method]
        phases, parts = (1 + np.arange(count) for count in returns.shape[1:])
        for axes, x, values in ((by_phase, phases, returns.mean(2)), (within, parts, returns[:, 1:].mean(1))):
            middle, stderr = values.mean(0), values.std(0, ddof=1) / len(values) ** 0.5
            axes.fill_between(x, middle - stderr, middle + stderr, color=colour, alpha=0.15, linewidth=0)
            axes.plot(x, middle, color=colour, linewidth=2, marker=".", label=NAMES[method])
    by_phase.set(xlabel="phase", ylabel="mean return of an episode", title="mean over a phase")
    within.set(xlabel="eighth of a phase", title="within a phase, all but the first")
    for axes in (by_phase, within):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#ececec")
        axes.set_axisbelow(True)
        axes.xaxis.get_major_locator().set_params(integer=True)
    by_phase.legend(loc="lower left", ncols=3, frameon=False, fontsize=9)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where run.py has written")
    parser.add_argument("--picture", type=Path, help="the PNG file")
    options = parser.parse_args(arguments)
    found = {path.stem: json.loads(path.read_text()) for path in options.folder.glob("*.json")}
    results = {method: found[method] for method in NAMES if method in found}
    print(tables(results))
    if options.picture:
        with mpl.rc_context({"font.size": 11}):
            draw(results, options.picture)
    return 0


if __name__ == "__main__":
    sys.exit(main())
