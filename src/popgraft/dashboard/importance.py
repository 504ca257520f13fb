"""How much of the members' progress goes with each hyperparameter.

For every member that trained for one generation: its score at the end, less what members of that generation reached who
had begun as well as it had. These residuals are ranked within the generation, and their variance is divided into that
between bins of a hyperparameter's values and the rest: the main effect of a functional analysis of variance (Hutter et
al. 2014, "An efficient approach for assessing hyperparameter importance", §4), as the unbiased share

    ε² = 1 − (1 − η²)(n − 1)/(n − k),  η² = between/total    (Kelley 1935)

over n residuals in k bins. It is 0 on average for a hyperparameter that does not matter, whatever the number of bins.
Its standard error is the jackknife's over generations, because members of one generation are not independent (Efron
and Stein 1981).
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from popgraft.dashboard.data import RunData

Array = np.ndarray

Z = 1.96
"""Standard errors on both sides of an estimate, for 95 %."""

BINS = 4
LEAST = 100
"""Residuals without which nothing is said."""


@dataclasses.dataclass(frozen=True)
class Importance:
    """One hyperparameter in one part of the run.

    Attributes:
        name: of the hyperparameter.
        first: number of the part's first generation.
        last: number of its last.
        share: ε², the part of progress that goes with it.
        stderr: its standard error.
        favours: rank correlation of value and progress: positive where high values do better.
    """

    name: str
    first: int
    last: int
    share: float
    stderr: float
    favours: float


def importance(data: RunData, parts: int = 3) -> list[Importance]:
    """Shares of every explored hyperparameter, in parts of the run of the same length.

    Fewer parts where there are too few data for so many; nothing where there are too few for one.
    """
    rows, members, progress = residuals(data)
    parts = min(parts, len(progress) // LEAST)
    names = [space.name for space in data.spaces if space.name in data.hyperparams]
    found = []
    for within in np.array_split(np.unique(rows), parts) if parts else []:
        chosen = np.isin(rows, within)
        first, last = int(data.generations[within[0]]), int(data.generations[within[-1]])
        for name in names:
            values = data.hyperparams[name][rows[chosen], members[chosen]]
            shares = _shares(rows[chosen], values, progress[chosen])
            found += [Importance(name, first, last, *numbers) for numbers in shares]
    return found


def residuals(data: RunData) -> tuple[Int[Array, "n"], Int[Array, "n"], Float[Array, "n"]]:
    """Row, member and progress of everybody who has a score, and had one when the generation began.

    Progress is the rank, within the generation and from −½ to ½, of what a linear fit of the score at the end by the
    score at the beginning leaves over. The slope is fitted to the whole run.
    """
    rows, pop = data.scores.shape
    before = np.full((rows, pop), math.nan)
    before[1:] = data.scores[:-1]
    for (row, member), donor in data.donors.items():
        if row + 1 < rows:
            before[row + 1, member] = data.scores[donor]
    known = np.isfinite(before) & np.isfinite(data.scores)
    known &= known.sum(1, keepdims=True) > 2
    x, y = (_centred(values, known) for values in (before, data.scores))
    slope = (x * y).sum() / max((x * x).sum(), 1e-30)
    left = np.where(known, y - slope * x, math.nan)
    ranks = [_ranks(row[there]) for row, there in zip(left, known, strict=True)]
    places = np.argwhere(known)
    return places[:, 0], places[:, 1], np.concatenate([np.zeros(0), *ranks])


def _shares(rows: Array, values: Array, progress: Array) -> Iterator[tuple[float, float, float]]:
    """Share, standard error and direction of one hyperparameter; nothing where values or ranks are all the same."""
    cuts = np.unique(np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    _, bins = np.unique(np.searchsorted(cuts, values, side="left"), return_inverse=True)
    if bins.max(initial=0) == 0 or not progress.any():
        return
    _, generation = np.unique(rows, return_inverse=True)
    shape = generation.max() + 1, bins.max() + 1
    counts, sums, squares = (np.zeros(shape) for _ in range(3))
    for table, weights in ((counts, 1.0), (sums, progress), (squares, progress**2)):
        np.add.at(table, (generation, bins), weights)
    whole = [table.sum(0) for table in (counts, sums, squares)]
    without = _epsilon_squared(*(all_ - table for all_, table in zip(whole, (counts, sums, squares), strict=True)))
    stderr = math.sqrt((len(without) - 1) * without.var())
    favours = np.corrcoef(_ranks(values), progress)[0, 1]
    yield float(_epsilon_squared(*whole)), stderr, float(favours)


def _epsilon_squared(
    counts: Float[Array, "*draw bin"], sums: Float[Array, "*draw bin"], squares: Float[Array, "*draw bin"]
) -> Float[Array, "*draw"]:
    """ε² from the number, the sum and the sum of squares in every bin."""
    n, k = counts.sum(-1), (counts > 0).sum(-1)
    correction = sums.sum(-1) ** 2 / n
    between = (sums**2 / np.maximum(counts, 1)).sum(-1) - correction
    total = squares.sum(-1) - correction
    return np.asarray(1 - (1 - between / np.maximum(total, 1e-30)) * (n - 1) / (n - k))


def _centred(values: Array, known: Array) -> Array:
    """Differences from the mean of the row's known values; 0 where unknown."""
    filled = np.where(known, values, 0.0)
    return np.where(known, filled - filled.sum(1, keepdims=True) / np.maximum(known.sum(1, keepdims=True), 1), 0.0)


def _ranks(values: Array) -> Array:
    """Ranks from −½ to ½, ties in the middle of theirs."""
    _, place, number = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(number) - (number + 1) / 2) / max(len(values) - 1, 1) - 0.5
    return np.asarray(ranks[place])
