"""Draws what `run.py` has written.

    python benchmarks/learning/plot.py family RESULT.json --seed 0 --out docs/images/quickstart.png
    python benchmarks/learning/plot.py curves RESULT.json ... --out curves.png

`family` shows one run: every member's score, every graft, and the ancestry of the best agent. `curves` shows all seeds
of every file: the best member of each seed, the mean over members and seeds, and the band from worst to best member.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

INK, QUIET, BLUE, VERMILLION = "#222222", "#a8a8a8", "#0072b2", "#d55e00"
COLOURS = (BLUE, VERMILLION, "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Okabe and Ito's palette, which colour-blind readers tell apart."""

ARROW = {"arrowstyle": "->", "color": VERMILLION, "linewidth": 1.1, "alpha": 0.7, "shrinkA": 0, "shrinkB": 0}

STYLE = {
    "figure.facecolor": "white",
    "font.size": 11,
    "axes.edgecolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ececec",
    "legend.frameon": False,
}


def ancestry(run: dict[str, Any]) -> list[int]:
    """The place at which the best agent, or the ancestor that it was grafted from, stood in every generation."""
    parents = {(graft["generation"], graft["member"]): graft["parent"] for graft in run["grafts"]}
    places = [run["best"]["member"]]
    for generation in reversed(range(run["best"]["generation"])):
        places.append(parents.get((generation, places[-1]), places[-1]))
    return places[::-1]


def draw_family(axes: Axes, run: dict[str, Any]) -> None:
    """Score of every member; a member that is overwritten ends in a cross, and goes on from its donor's score."""
    generations = run["generations"]
    steps = [generation["steps"] for generation in generations]
    scores = [[float("nan") if score is None else score for score in row["members"]] for row in generations]
    origin = {(graft["generation"], graft["member"]): graft["parent"] for graft in run["grafts"]}

    def segment(now: int, member: int, **style: Any) -> None:
        before = origin.get((now - 1, member), member)
        axes.plot(steps[now - 1 : now + 1], [scores[now - 1][before], scores[now][member]], **style)

    for now in range(1, len(steps)):
        for member in range(len(scores[0])):
            segment(now, member, color=QUIET, linewidth=1.3, zorder=2)
    line = ancestry(run)
    for now in range(1, len(line)):
        segment(now, line[now], color=BLUE, linewidth=3, zorder=4, solid_capstyle="round")
    for (now, member), parent in origin.items():
        low, high = scores[now][member], scores[now][parent]
        axes.plot(steps[now], low, "x", color=VERMILLION, markersize=6, markeredgewidth=1.8, zorder=5)
        axes.annotate("", (steps[now], high), (steps[now], low), arrowprops=ARROW, zorder=3)
    for label, style in {
        "score of a member": {"color": QUIET, "linewidth": 1.3},
        "ancestry of the best agent": {"color": BLUE, "linewidth": 3},
        "graft: overwritten with a better member": {"color": VERMILLION, "linewidth": 1, "marker": "x"},
    }.items():
        axes.plot([], [], label=label, **style)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize=10, handlelength=1.6, columnspacing=2)


def draw_curves(axes: Axes, result: dict[str, Any], name: str, colour: str) -> None:
    """Best member of every seed, mean over members and seeds, and the band from worst to best member."""
    runs = result["runs"]
    length = min(len(run["generations"]) for run in runs)
    steps = [generation["steps"] for generation in runs[0]["generations"][:length]]

    def over_seeds(key: str) -> list[list[float]]:
        return [[run["generations"][now][key] for run in runs] for now in range(length)]

    worst, best = [min(row) for row in over_seeds("worst")], [max(row) for row in over_seeds("best")]
    axes.fill_between(steps, worst, best, color=colour, alpha=0.12, linewidth=0)
    for run in runs:
        axes.plot(steps, [row["best"] for row in run["generations"][:length]], color=colour, linewidth=0.8, alpha=0.6)
    mean = [statistics.mean(row) for row in over_seeds("mean")]
    axes.plot(steps, mean, color=colour, linewidth=2.5, label=f"{name}: mean of all members and seeds")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["family", "curves"], help="one run, or all seeds")
    parser.add_argument("files", nargs="+", type=Path, help="what run.py has written; one for a family")
    parser.add_argument("--seed", type=int, default=0, help="the run that a family is of")
    parser.add_argument("--names", nargs="+", help="of the curves, in the order of the files; default: their labels")
    parser.add_argument("--out", type=Path, required=True, help="the picture")
    options = parser.parse_args(arguments)
    results = [json.loads(path.read_text()) for path in options.files]
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(9, 4.6), layout="constrained")
        axes = figure.subplots()
        if options.kind == "family":
            draw_family(axes, next(run for run in results[0]["runs"] if run["seed"] == options.seed))
        else:
            names = options.names or [result["label"] for result in results]
            for result, name, colour in zip(results, names, COLOURS, strict=False):
                draw_curves(axes, result, name, colour)
            axes.legend(loc="best", fontsize=10)
        axes.set_xlabel("environment steps of the whole population")
        axes.set_ylabel("score (mean return of an episode)")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        figure.savefig(options.out, dpi=160)
    return 0


if __name__ == "__main__":
    sys.exit(main())
