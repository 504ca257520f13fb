"""Curves that are compared where they overlap, by hand."""

import math

import numpy as np
import pytest
import torch

from popgraft.pbt.curves import Curve, Overlap, best_score_difference, chance, overlap


def plain(*values):
    """A curve without noise, smoothed by nobody."""
    points = torch.tensor(values, dtype=torch.float64)
    return Curve(points, points)


SLOW, FAST = plain(0.0, 1.0, 2.0, 3.0, 4.0), plain(2.0, 4.0, 6.0)


def test_curves_overlap_from_where_the_lower_one_has_come_to_the_other():
    assert overlap(SLOW, FAST) == Overlap(2, 0, 3)
    assert overlap(FAST, SLOW) == Overlap(0, 2, 3)
    assert overlap(plain(1.0, 3.0, 3.0, 9.0), plain(1.0, 2.0)) == Overlap(0, 0, 2)
    assert overlap(plain(0.0, 1.0), plain(5.0, 6.0)) is None
    assert overlap(plain(0.0, 1.0, 2.0, 3.0), plain(1.4, 9.0)) == Overlap(1, 0, 2)
    assert overlap(plain(0.0, 1.0, 2.0, 3.0), plain(1.6, 9.0)) == Overlap(2, 0, 2)


def test_the_difference_is_of_the_best_scores_since_then():
    # From a score of 2 on, three generations: 2, 4, 6 and 2, 3, 4.
    assert best_score_difference(FAST, SLOW) == 2.0
    assert best_score_difference(SLOW, FAST) == -2.0


def test_a_curve_above_all_of_another_is_lowered_as_serves_it_best():
    # The least shift, by 10 - 3 = 7, leaves one generation of both: 3 against 3. The larger ones leave two or three.
    above, below = plain(10.0, 14.0, 18.0), plain(1.0, 2.0, 3.0)
    tried = [7 + 2 * step / 10 for step in range(10)]  # up to 10 - 1 = 9, which is not among them
    by_hand = []
    for shift in tried:
        start = int(10 - shift - 1 + 0.5)  # where 1, 2, 3 is nearest
        length = 3 - start
        by_hand.append(max((10.0, 14.0, 18.0)[:length]) - shift - 3.0)
    assert best_score_difference(above, below) == pytest.approx(max(by_hand))
    assert best_score_difference(below, above) == 0.0


def test_the_sign_test_is_the_binomial_distributions_tail():
    assert chance(FAST, SLOW) == 0.5  # above in two of three generations: (3 + 1)/8
    assert chance(plain(*range(1, 9)), plain(*[1.0] * 8)) == (8 + 1) / 2**8  # seven of eight
    assert chance(plain(0.0, 1.0), plain(5.0, 6.0)) == 1.0
    assert chance(plain(5.0, 6.0), plain(0.0, 1.0)) == 0.25
    wins = plain(*[1.0, 0.0, 1.0, 1.0, 0.0, 1.0]), plain(*[0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    expected = sum(math.comb(6, k) for k in (4, 5, 6)) / 64
    assert chance(Curve(wins[0].raw, torch.ones(6)), Curve(wins[1].raw, torch.ones(6))) == expected


def test_smoothing_takes_the_noise_and_leaves_the_slope():
    rng = np.random.default_rng(0)
    x = np.linspace(0, 1, 40)
    truth = 500 * x**2
    curve = Curve.of(torch.from_numpy(truth + rng.normal(0, 30, 40)))
    error = (curve.smooth.numpy() - truth).std()
    assert error < 15 < (curve.raw.numpy() - truth).std()
    shifted = Curve.of(curve.raw - 77.0)
    torch.testing.assert_close(shifted.smooth, curve.lowered(77.0).smooth)
    for few in ([3.0], [3.0, 5.0], [2.0] * 5):
        assert Curve.of(torch.tensor(few)).smooth.tolist() == few
