"""What a study says in numbers.

After Agarwal et al. 2021, NeurIPS, "Deep reinforcement learning at the edge of the statistical precipice",
arXiv:2108.13264.

Scores of an arm are an array [task, seed], each as a share of what is possible on its task. Runs are drawn again within
their task only, so that an interval says what other seeds would have given, not other tasks.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from popgraft.pbt.welch import CONFIDENCE
from popgraft.train.intervals import interquartile_mean

Scores = NDArray[np.float64]
DRAWS = 5_000


class Interval(NamedTuple):
    """An estimate with its interval at 95 %.

    Attributes:
        value: of the scores as they are.
        low, high: between which 95 % of the redrawn ones lie.
    """

    value: float
    low: float
    high: float


def iqm(scores: Scores) -> float:
    """Interquartile mean: of the half of all runs that remains without the best and the worst quarter."""
    return float(interquartile_mean(scores.ravel()))


def better(scores: Scores, others: Scores) -> float:
    """Probability that a run is better than another arm's on the same task, ties counting half, averaged over tasks."""
    wins = np.sign(scores[:, :, None] - others[:, None, :])
    return float(0.5 + wins.mean() / 2)


def stratified(statistic: Callable[..., float], *scores: Scores, seed: int = 0) -> Interval:
    """Interval of a statistic of one arm or several, by drawing runs again within every task (percentiles)."""
    rng = np.random.default_rng(seed)
    drawn = []
    for _ in range(DRAWS):
        again = [np.take_along_axis(each, rng.integers(each.shape[1], size=each.shape), axis=1) for each in scores]
        drawn.append(statistic(*again))
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(statistic(*scores), float(low), float(high))


def paired(scores: NDArray[np.float64], others: NDArray[np.float64], seed: int = 0) -> Interval:
    """Mean difference of two arms on one task over runs with the same seeds (bias-corrected and accelerated)."""
    apart = scores - others
    value = float(apart.mean())
    if np.ptp(apart) == 0:
        return Interval(value, value, value)
    found = stats.bootstrap((apart,), np.mean, n_resamples=DRAWS, rng=np.random.default_rng(seed)).confidence_interval
    return Interval(value, float(found.low), float(found.high))
