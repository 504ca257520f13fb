"""What a few runs say about all runs: means with intervals."""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from popgraft.pbt.welch import CONFIDENCE, t_quantile
from popgraft.rng import numpy_generator

RESAMPLES = 20_000


def mean_interval(scores: Sequence[float]) -> tuple[float, float, float]:
    """Mean of independent scores and its 95 % interval by Student's law, which has no bounds for a single score."""
    mean = math.fsum(scores) / len(scores)
    if len(scores) < 2:
        return mean, -math.inf, math.inf
    half = float(np.std(scores, ddof=1)) / math.sqrt(len(scores)) * t_quantile(len(scores) - 1)
    return mean, mean - half, mean + half


def interquartile_mean(scores: Float[np.ndarray, "*batch runs"]) -> Float[np.ndarray, "*batch"]:
    """Mean of what is left without the ⌊n/4⌋ lowest and the ⌊n/4⌋ highest of n scores (Agarwal et al. 2021,
    arXiv:2108.13264).
    """
    runs = scores.shape[-1]
    cut = runs // 4
    return np.asarray(np.sort(scores, axis=-1)[..., cut : runs - cut].mean(-1))


def interquartile_interval(scores: Float[np.ndarray, "runs"], resamples: int = RESAMPLES) -> tuple[float, float, float]:
    """Interquartile mean and its 95 % interval by percentiles of the bootstrap; runs are drawn with replacement.

    The draws come from a stream of their own, so that the same scores always give the same interval.
    """
    rng = numpy_generator(0, "bootstrap")
    means = interquartile_mean(scores[rng.integers(len(scores), size=(resamples, len(scores)))])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(interquartile_mean(scores)), float(low), float(high)
