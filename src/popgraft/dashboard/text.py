"""The report of a run for a terminal: the same facts in tables and small curves, also at 80 columns and in a pipe."""

import math

import numpy as np
from jaxtyping import Float
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from popgraft.dashboard import tables
from popgraft.dashboard.data import DISTANCES, LEARNING, RunData, quartiles
from popgraft.dashboard.importance import Z, importance
from popgraft.dashboard.replayed import HEAD, rows, verdict
from popgraft.dashboard.summary import summary
from popgraft.inheritance.success import HORIZONS
from popgraft.train.aftermath import summary as averages

Array = np.ndarray

LEVELS = "▁▂▃▄▅▆▇█"
WIDTH = 32
"""Characters of a curve."""
TERMINAL, GAP = 80, 2
"""Characters of a line, and between two columns."""


def text(data: RunData, other: RunData | None = None) -> Group:
    """What `rich` prints of a run.

    Args:
        data: the run.
        other: another run that it is compared with.
    """
    parts: list[RenderableType] = []
    for paragraph in summary(data, other):
        parts += [Text(paragraph), Text()]
    if data.replay:
        parts += [Text(verdict(data)), Text()]
    for table in (_replay(data), _curves(data), _exploits(data), _importance(data), *_members(data)):
        if table.row_count:
            parts += [table, Text()]
    return Group(*parts[:-1])


def sparkline(values: Float[Array, "n"]) -> str:
    """A curve in one line of at most `WIDTH` characters, from its least to its highest value; blank where unknown."""
    parts = np.array_split(values, min(len(values), WIDTH)) if len(values) else []
    means = [part[np.isfinite(part)].mean() if np.isfinite(part).any() else math.nan for part in parts]
    finite = [mean for mean in means if math.isfinite(mean)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = (len(LEVELS) - 1) / (high - low) if high > low else 0.0
    return "".join(LEVELS[round((mean - low) * scale)] if math.isfinite(mean) else " " for mean in means)


def _replay(data: RunData) -> Table:
    """What fresh agents reached with the schedule, where somebody has asked."""
    table = _table(*HEAD)
    for row in rows(data) if data.replay else ():
        table.add_row(*row)
    return table


def _curves(data: RunData) -> Table:
    """Scores, the schedule that led to the best agent, and what the median member's updates report."""
    table = _table("over generations", "first", "", "last")
    if not len(data.steps):
        return table

    def add(name: str, values: Array, log: bool = False) -> None:
        table.add_row(name, f"{values[0]:.4g}", sparkline(np.log(values) if log else values), f"{values[-1]:.4g}")

    add("best score", data.best)
    add("median score", data.quartiles[1])
    if data.ancestors:
        rows, members = np.array(data.ancestors).T
        for space in data.spaces:
            add(f"{space.name} of the best", data.hyperparams[space.name][rows, members], space.is_log_scale)
    for name in LEARNING:
        if name in data.metrics:
            add(name, quartiles(data.metrics[name])[1])
    for name in DISTANCES:
        if name in data.population and data.pop > 1:
            add(name, data.population[name])
    return table


def _exploits(data: RunData) -> Table:
    """What inheritance did, by what became of the optimizer state."""
    table = _table(
        "optimizer state", "grafts", "value loss ratio", *(f"no worse after {horizon}" for horizon in HORIZONS)
    )
    for strategy in sorted({graft.strategy for graft in data.grafts}):
        grafts = [graft.aftermath for graft in data.grafts if graft.strategy == strategy]
        found = averages(grafts, data.config.pbt.metric_mode)
        shares = (_shown(found[f"success_{horizon}"], ".0%") for horizon in HORIZONS)
        table.add_row(strategy, f"{found['grafts']:.0f}", _shown(found["value_loss_ratio"], ".3g"), *shares)
    return table


def _importance(data: RunData) -> Table:
    table = _table("share of progress", "generations", "share", "better")
    for each in importance(data):
        share = f"{each.share:.1%} ± {Z * each.stderr:.1%}"
        table.add_row(each.name, f"{each.first + 1}-{each.last + 1}", share, "higher" if each.favours > 0 else "lower")
    return table


def _members(data: RunData) -> list[Table]:
    """Everybody as its last generation left it; columns that do not fit go into further tables."""
    head, rows = tables.members(data)
    head = [name.replace("_", "_ ").replace(" ", "\n") for name in head]
    widths = [max(map(len, "\n".join(column).split("\n"))) + GAP for column in zip(head, *rows, strict=True)]
    groups: list[list[int]] = [[]]
    for column in range(1, len(head)):
        if widths[0] + sum(widths[each] for each in groups[-1]) + widths[column] > TERMINAL + GAP:
            groups.append([])
        groups[-1].append(column)
    found = []
    for group in groups:
        found.append(_table(*(head[column] for column in (0, *group))))
        for row in rows:
            found[-1].add_row(*(row[column] for column in (0, *group)))
    return found


def _table(*columns: str) -> Table:
    table = Table(box=None, padding=(0, GAP, 0, 0), header_style="bold", pad_edge=False)
    table.add_column(columns[0], overflow="fold")
    for column in columns[1:]:
        table.add_column(column, justify="right" if column else "left", overflow="fold")
    return table


def _shown(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "unknown"
