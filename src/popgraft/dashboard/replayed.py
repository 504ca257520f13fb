"""What `popgraft replay` has found out of a run, where it was asked."""

import math
import shlex

import numpy as np

from popgraft.dashboard.data import RunData
from popgraft.dashboard.figure import Figure
from popgraft.dashboard.style import COLOURS, EDGE, SYMBOLS
from popgraft.train import readable

GROUPS = {"schedule": "the winner's schedule", "fixed": "its initial values, fixed", "population": "the population"}
"""Whose final scores are compared: fresh agents of two kinds, and the members that the run has left."""

HEAD = ("final scores", "agents", "mean", "95 % interval", "median")


def verdict(data: RunData) -> str:
    """Whether the schedule alone does what the population did; how to find out, where that is not known."""
    if data.replay:
        return str(data.replay["verdict"])
    return f"Not known yet: popgraft replay {shlex.quote(str(data.path))} trains fresh agents with the schedule alone."


def rows(data: RunData) -> list[tuple[str, ...]]:
    """Final scores of every group, for a table with the columns `HEAD`."""
    found: list[tuple[str, ...]] = []
    for name, (scores, mean, low, high, median) in _groups(data).items():
        interval = f"{readable(low)} to {readable(high)}" if math.isfinite(low) else "unknown"
        found.append((name, str(len(scores)), readable(mean), interval, readable(median)))
    return found


def replayed(data: RunData) -> Figure:
    """Every agent's final score, the means with their intervals, and the population's median as a line."""
    groups = _groups(data)
    figure = Figure.of([""], height=60 + 60 * len(groups))
    for place, (name, (scores, mean, low, high, _)) in enumerate(groups.items()):
        marker = {"color": COLOURS[place], "symbol": SYMBOLS[place]}
        figure.add(
            1,
            mode="markers",
            name=name,
            showlegend=False,
            x=scores,
            y=np.full(len(scores), place + 0.18),
            marker={**marker, "size": 7, "opacity": 0.6},
            hovertemplate=f"{name}: an agent with %{{x:,.4~g}}<extra></extra>",
        )
        figure.add(
            1,
            mode="markers",
            name=name,
            showlegend=False,
            x=np.array([mean]),
            y=[place - 0.12],
            error_x={"array": _finite(high - mean), "arrayminus": _finite(mean - low), "color": EDGE},
            marker={**marker, "size": 12},
            hovertemplate=f"{name}: %{{x:,.4~g}} on average<extra></extra>",
        )
    median = groups[GROUPS["population"]][-1]
    figure.line(1, x=(median, median), color=EDGE, dash="dash", width=1)
    figure.x(1, "score on fresh episodes; dashed: the population's median")
    names = list(groups)
    figure.y(1, range=[len(names) - 0.5, -0.5], tickvals=list(range(len(names))), ticktext=names, showgrid=False)
    return figure


def _groups(data: RunData) -> dict[str, tuple[np.ndarray, float, float, float, float]]:
    """Scores, their mean with both ends of its interval, and their median, by name."""
    parts = {**data.replay["arms"], "population": data.replay["population"]}
    return {
        title: (np.array(part["scores"], dtype=np.float64), part["mean"], *part["interval"], part["median"])
        for title, part in ((title, parts[name]) for name, title in GROUPS.items())
    }


def _finite(value: float) -> np.ndarray:
    """An error bar; NaN for one without an end."""
    return np.array([value if math.isfinite(value) else math.nan])
