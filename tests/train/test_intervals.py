import math

import numpy as np
import pytest

from popgraft.train.intervals import interquartile_interval, interquartile_mean, mean_interval

TEN = np.array([12.0, 480.0, 500.0, 320.0, 450.0, 500.0, 75.0, 410.0, 495.0, 260.0])
FIVE = np.array([1.0, 2.0, 3.0, 4.0, 100.0])


def test_the_interquartile_mean_leaves_out_a_quarter_at_either_end() -> None:
    assert interquartile_mean(TEN) == (260 + 320 + 410 + 450 + 480 + 495) / 6
    assert interquartile_mean(FIVE) == 3
    assert interquartile_mean(np.array([1.0, 5.0, 9.0])) == 5  # ⌊3/4⌋ = 0
    assert interquartile_mean(np.stack([FIVE, 2 * FIVE])).tolist() == [3, 6]


@pytest.mark.parametrize(
    ("scores", "low", "high"),
    # rliable 1.2.0: get_interval_estimates({"": scores[:, None]}, aggregate_iqm, reps=50000)
    [(TEN, 225.333, 482.5), (FIVE, 1.3333, 68.0)],
)
def test_intervals_are_those_of_rliable(scores: np.ndarray, low: float, high: float) -> None:
    assert interquartile_interval(scores) == (
        pytest.approx(float(interquartile_mean(scores))),
        pytest.approx(low, rel=0.01),
        pytest.approx(high, rel=0.01),
    )
    assert interquartile_interval(scores) == interquartile_interval(scores)


def test_the_interval_of_a_mean_is_students() -> None:
    # mean 3, variance 2.5, t = 2.776445 for 4 degrees of freedom: half = 2.776445 · √(2.5/5)
    mean, low, high = mean_interval([1.0, 2.0, 3.0, 4.0, 5.0])
    assert (mean, low, high) == (3, pytest.approx(3 - 1.963243), pytest.approx(3 + 1.963243))
    assert mean_interval([4.0]) == (4, -math.inf, math.inf)
