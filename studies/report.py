"""Writes what a study has found: tables in Markdown and a figure.

    python studies/report.py studies/evolution.yaml studies/results/evolution.jsonl --out studies/evolution.md

Arms are compared over the seeds that all of them have.
"""

import argparse
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent))
from estimates import Interval, Scores, better, iqm, paired, stratified
from run import PILOT, Key, known
from study import Study, load

INK, BLUE, BAND = "#222222", "#0072b2", "#cfe3f1"


class Results:
    """The runs of a study that can be compared.

    Args:
        study: what was asked.
        rows: its lines, by task, arm and seed.

    Attributes:
        arms: those that have been run on every task, in the study's order.
        seeds: those that all of them have.
    """

    def __init__(self, study: Study, rows: dict[Key, dict[str, Any]]) -> None:
        self.study, self._rows = study, rows
        tasks = list(study.tasks)

        def seeds(arm: str) -> set[int]:
            return set.intersection(*({seed for t, a, seed in rows if (t, a) == (task, arm)} for task in tasks))

        self.arms = [arm for arm in study.arms if seeds(arm) - {PILOT}]
        self.seeds = sorted(set.intersection(*map(seeds, self.arms)) - {PILOT}) if self.arms else []

    def rows(self, task: str, arm: str) -> list[dict[str, Any]]:
        """The runs of an arm on a task, in the order of seeds."""
        return [self._rows[task, arm, seed] for seed in self.seeds]

    def finals(self, task: str, arm: str) -> np.ndarray:
        """What the delivered agents are worth; a run that was lost is worth the task's `low`."""
        return np.array([row.get("final", self.study.tasks[task].low) for row in self.rows(task, arm)])

    def scores(self, arm: str) -> Scores:
        """The same for all tasks, as shares of what is possible [task, seed]."""
        return np.array([task.normalised(self.finals(name, arm)) for name, task in self.study.tasks.items()])


def signed(interval: Interval, digits: int) -> str:
    """A difference with its interval."""
    return f"{interval.value:+.{digits}f} ({interval.low:+.{digits}f} to {interval.high:+.{digits}f})"


def ranged(interval: Interval, digits: int = 2) -> str:
    """An estimate with its interval."""
    return f"{interval.value:.{digits}f} ({interval.low:.{digits}f} to {interval.high:.{digits}f})"


def over_all_tasks(results: Results) -> list[str]:
    """One row an arm: all tasks together."""
    base = results.scores(results.study.baseline)
    lines = [
        f"| arm | interquartile mean | better than {results.study.baseline} | share of training | processor time, s |",
        "|---|---:|---:|---:|---:|",
    ]
    for arm in results.arms:
        scores = results.scores(arm)
        rows = [row for task in results.study.tasks for row in results.rows(task, arm) if "error" not in row]
        spent = sum(row["training_steps"] + row["evaluation_steps"] for row in rows)
        training, seconds = (
            sum(row["training_steps"] for row in rows) / spent,
            statistics.fmean(row["cpu_seconds"] for row in rows),
        )
        wins = "" if arm == results.study.baseline else ranged(stratified(better, scores, base))
        lines.append(f"| {arm} | {ranged(stratified(iqm, scores))} | {wins} | {training:.2f} | {seconds:.0f} |")
    return lines


def by_task(results: Results, task: str) -> list[str]:
    """One row an arm: one task, in its own units."""
    base = results.finals(task, results.study.baseline)
    digits = 0 if abs(results.study.tasks[task].high - results.study.tasks[task].low) > 100 else 2
    lines = [
        f"| {task} | mean | median | worst | mean difference from {results.study.baseline} | steps | lost |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for arm in results.arms:
        finals, rows = results.finals(task, arm), results.rows(task, arm)
        apart = "" if arm == results.study.baseline else signed(paired(finals, base), digits)
        steps = [row["training_steps"] + row["evaluation_steps"] for row in rows if "error" not in row]
        mean, median, worst = (f"{each:.{digits}f}" for each in (finals.mean(), np.median(finals), finals.min()))
        lost = len(rows) - len(steps)
        lines.append(f"| {arm} | {mean} | {median} | {worst} | {apart} | {statistics.fmean(steps):,.0f} | {lost} |")
    return lines


def delivered(results: Results) -> list[str]:
    """Whether what a run delivers is as good as the best that it has at the end, by episodes that chose neither."""
    lines = [
        "| arm | delivered agent: claim − worth | worth − last population's best | by more than its error |",
        "|---|---:|---:|---:|",
    ]
    for arm in results.arms:
        rows = [
            (results.study.tasks[task], row)
            for task in results.study.tasks
            for row in results.rows(task, arm)
            if "error" not in row
        ]
        claims = [task.normalised(row["score"]) - task.normalised(row["final"]) for task, row in rows]
        behind = [task.normalised(row["final"]) - task.normalised(max(row["population"])) for task, row in rows]
        worse = sum(row["final"] + row["stderr"] < max(row["population"]) for _, row in rows)
        lines.append(f"| {arm} | {np.mean(claims):+.3f} | {np.mean(behind):+.3f} | {worse} of {len(rows)} |")
    return lines


def document(results: Results, picture: str) -> str:
    """All of it, in Markdown."""
    study = results.study
    commits = sorted({row["commit"] for task in study.tasks for arm in results.arms for row in results.rows(task, arm)})
    tables = [over_all_tasks(results), *(by_task(results, task) for task in study.tasks), delivered(results)]
    head = [
        f"# {study.question}",
        f"{len(results.seeds)} seeds; {study.steps:,} environment steps a run, those of evaluations included; "
        f"made with {', '.join(commits)}.",
        f"Expected before: {study.hypothesis.strip()}",
        f"![Interquartile means]({picture})",
    ]
    return "\n\n".join([*head, *("\n".join(lines) for lines in tables)]) + "\n"


def picture(results: Results) -> Figure:
    """Interquartile mean of every arm with its interval, and every run."""
    rng = np.random.default_rng(0)
    with mpl.rc_context({"font.size": 11, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9, 0.6 * len(results.arms) + 1.2), layout="constrained")
        axes = figure.subplots()
        for place, arm in enumerate(reversed(results.arms)):
            scores = results.scores(arm)
            found = stratified(iqm, scores)
            axes.plot(
                scores.ravel(), place + rng.uniform(-0.22, 0.22, scores.size), ".", color=BAND, markersize=6, zorder=0
            )
            axes.plot([found.low, found.high], [place, place], color=BLUE, linewidth=5, solid_capstyle="round")
            axes.plot(found.value, place, "o", color=INK, markersize=6)
        axes.set_yticks(range(len(results.arms)), [*reversed(results.arms)])
        axes.set_xlim(-0.1, 1.1)
        axes.set_xlabel("score, 0: nothing learnt, 1: as good as is known to be possible")
        axes.set_title(
            f"Interquartile mean over {len(results.study.tasks)} tasks × {len(results.seeds)} seeds, 95 %", loc="left"
        )
    return figure


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path, help="its file")
    parser.add_argument("results", type=Path, help="what run.py has written")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file; the figure goes beside it")
    options = parser.parse_args(arguments)
    results = Results(load(options.study), known(options.results))
    if not results.seeds:
        parser.error(f"{options.results} has no seed that every arm has on every task")
    image = options.out.with_suffix(".png")
    options.out.write_text(document(results, image.name))
    picture(results).savefig(image, dpi=120)


if __name__ == "__main__":
    main()
