"""What `popgraft compare` shows: how good groups of runs are, and how soon; a table, a picture."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
from jaxtyping import Float

from popgraft.cli.picture import save
from popgraft.cli.progress import clock
from popgraft.cli.table import table
from popgraft.config import flat_config
from popgraft.dashboard.data import elapsed
from popgraft.errors import StoreError
from popgraft.messages import one_line
from popgraft.store import RunDatabase
from popgraft.store.boundary import reading
from popgraft.train import Run, readable
from popgraft.train.intervals import interquartile_interval

IGNORED = ("seed", "run_dir", "code_dir", "execute.", "snapshots.", "tracking.", "report.", "observers")
"""Settings in which runs of one group may differ."""
LONGEST = 40
"""Characters of a value in a group's name."""
DRAWN = 2_000
"""Resamples for every point of a curve."""
SHORT = 10
"""Points of a curve up to which each is marked: a single one would not be seen."""
WIDTH, LINE = 120, 0.17
"""Characters of a line below the picture, and its height in inches."""


@dataclasses.dataclass(frozen=True)
class Course:
    """One run as its generations went by.

    Attributes:
        final: score of its best agent over fresh episodes.
        steps: environment steps of the whole population up to every generation, those of members behind it included.
        seconds: for which the run had been training then.
        best: score of the best member of every generation.
    """

    final: float
    steps: list[int]
    seconds: list[float]
    best: list[float]

    def reached(self, threshold: float, sign: int) -> int | None:
        """The first generation whose best member was that good; None: never."""
        return next((i for i, score in enumerate(self.best) if sign * score >= sign * threshold), None)


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs that differ in their seeds alone.

    Attributes:
        name: in which settings it differs from other groups.
        sign: 1 where high scores are good, -1 where low ones are.
        runs: its runs.
    """

    name: str
    sign: int
    runs: list[Course]

    @property
    def finals(self) -> Float[np.ndarray, "runs"]:
        """Every run's final score."""
        return np.array([run.final for run in self.runs])


def groups_of(paths: Sequence[Path]) -> list[Group]:
    """Runs with the same settings but for the seed, together.

    Raises:
        StoreError: there is no run, or its training has not ended.
    """
    found: dict[str, tuple[dict[str, Any], int, list[Course]]] = {}
    for path in {path.resolve(): path for path in paths}.values():  # a run that is named twice counts once
        run = Run(path)
        settings = {key: value for key, value in flat_config(run.config).items() if not key.startswith(IGNORED)}
        sign = 1 if run.config.pbt.metric_mode == "max" else -1
        found.setdefault(json.dumps(settings), (settings, sign, []))[2].append(course(run))
    every = [settings for settings, _, _ in found.values()]
    keys = [key for key in dict.fromkeys(key for settings in every for key in settings) if not _same(every, key)]
    return [Group(_name(settings, keys), sign, runs) for settings, sign, runs in found.values()]


def course(run: Run) -> Course:
    """Reads a run.

    Raises:
        StoreError: its training has not ended.
    """
    with reading(run.path):
        return _course(run)


def _course(run: Run) -> Course:
    if "final_score" not in run.summary:
        raise StoreError(
            f"{run.path} has no final score, because its training has not ended; run: popgraft resume {run.path}"
        )
    with RunDatabase(run.folder.database, read_only=True) as database:
        scores, ends = database.scores(), [record.time for record in database.metrics()]
        begins, written = [session.time for session in database.sessions()], [event.time for event in database.events()]
    sign = 1 if run.config.pbt.metric_mode == "max" else -1
    best: dict[int, float] = {}
    steps: dict[int, int] = {}
    taken: dict[int, int] = {}  # by member, since the run began: who is behind has no row in a generation
    everybody = 0
    for record in scores:
        everybody += record.steps - taken.get(record.member, 0)
        taken[record.member], steps[record.generation] = record.steps, everybody
        known = best.get(record.generation, -sign * np.inf)
        best[record.generation] = max(known, record.score, key=lambda x: -np.inf if np.isnan(x) else sign * x)
    seconds = elapsed(begins, ends + written, ends)
    return Course(run.summary["final_score"], list(steps.values()), seconds, list(best.values()))


def said(groups: Sequence[Group], threshold: float | None) -> str:
    """The table."""
    header = ["", "runs", "interquartile mean", "95 % interval", "lowest", "highest"]
    if threshold is not None:
        header += [f"reached {threshold:g}", "steps until then", "time until then"]
    rows = [_cells(group, threshold) for group in groups]
    until = "; until then: medians of the runs that reached it" if threshold is not None else ""
    return f"final scores of the best agents{until}\n\n{table(header, rows)}"


def draw(groups: Sequence[Group], threshold: float | None, path: Path) -> None:
    """Interquartile mean of the best members over steps, and of the final scores, with 95 % intervals.

    Curves end where the shortest run of the group ends.

    Raises:
        ConfigError: the picture cannot be written there, or not in that format.
    """
    from matplotlib.figure import Figure

    names = [fill(f"{row + 1}: {group.name}", WIDTH, break_on_hyphens=False) for row, group in enumerate(groups)]
    lines = "\n".join(names).count("\n") + 1
    figure = Figure(figsize=(9.6, 4 + LINE * lines), layout="constrained")
    curves, finals = figure.subplots(1, 2, width_ratios=(2, 1))
    for row, group in enumerate(groups):
        length = min(len(run.steps) for run in group.runs)
        scores = np.array([run.best[:length] for run in group.runs])
        mean, low, high = np.array([interquartile_interval(each, DRAWN) for each in scores.T]).T
        steps = np.median([run.steps[:length] for run in group.runs], axis=0)
        curves.plot(steps, mean, "o-" if length <= SHORT else "-", markersize=4, label=names[row])
        curves.fill_between(steps, low, high, alpha=0.15, linewidth=0)
        mean, low, high = interquartile_interval(group.finals)
        finals.plot([low, high], [row, row], linewidth=6, alpha=0.3, color=f"C{row % 10}", solid_capstyle="butt")
        finals.plot([mean], [row], "o", color=f"C{row % 10}")
    if threshold is not None:
        curves.axhline(threshold, color="gray", linestyle=":")
    curves.set_xlabel("environment steps of the population")
    curves.set_ylabel("interquartile mean of the best member's score")
    finals.set_yticks(range(len(groups)), [str(row + 1) for row in range(len(groups))])
    finals.set_ylim(len(groups) - 0.5, -0.5)
    finals.yaxis.tick_right()
    finals.set_xlabel("final score (bar: 95 % confidence)")
    figure.legend(loc="outside lower left", frameon=False, fontsize="small")
    save(figure, path)


def _cells(group: Group, threshold: float | None) -> list[str]:
    mean, low, high = interquartile_interval(group.finals)
    interval = f"{readable(low)} to {readable(high)}" if len(group.runs) > 1 else "one run"
    lowest, highest = readable(group.finals.min()), readable(group.finals.max())
    cells = [group.name, str(len(group.runs)), readable(mean), interval, lowest, highest]
    if threshold is None:
        return cells
    reached = [(run, when) for run in group.runs if (when := run.reached(threshold, group.sign)) is not None]
    cells.append(f"{len(reached)} of {len(group.runs)}")
    if not reached:
        return [*cells, "", ""]
    steps = np.median([run.steps[when] for run, when in reached])
    seconds = np.median([run.seconds[when] for run, when in reached])
    return [*cells, f"{steps:,.0f}", clock(float(seconds))]


def _same(every: Sequence[dict[str, Any]], key: str) -> bool:
    return all(settings.get(key) == every[0].get(key) for settings in every)


def _name(settings: dict[str, Any], keys: Sequence[str]) -> str:
    """The settings in which a group differs; where there is but one group, the environment."""
    if not keys:
        return one_line(str(settings.get("env.id") or settings.get("env.factory")))
    values = {key: json.dumps(settings.get(key)).strip('"') for key in keys}
    return ", ".join(
        f"{key}={value if len(value) <= LONGEST else value[: LONGEST - 1] + '…'}" for key, value in values.items()
    )
