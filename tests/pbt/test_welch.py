import math

import numpy as np
import pytest
import torch

from popgraft.pbt.welch import incomplete_beta, p_value


@pytest.mark.parametrize("x", [0.0, 1e-6, 0.2, 0.5, 0.9, 1 - 1e-9, 1.0])
@pytest.mark.parametrize("parameter", [0.5, 1.0, 3.7, 40.0])
def test_incomplete_beta_in_closed_form(parameter, x):
    assert incomplete_beta(parameter, 1.0, x) == pytest.approx(x**parameter, rel=1e-10, abs=1e-300)
    assert incomplete_beta(1.0, parameter, x) == pytest.approx(-math.expm1(parameter * math.log1p(-x)) if x < 1 else 1)
    assert incomplete_beta(parameter, parameter, 0.5) == pytest.approx(0.5, rel=1e-10)


@pytest.mark.parametrize("t", [0.01, 0.7, 2.0, 15.0])
def test_student_t_in_closed_form(t):
    # With one sample without spread, ν is the other's size less 1. ν = 1: Cauchy; ν = 2; ν → ∞: normal.
    assert p_value(t, 1.0, 2, 0.0, 0.0, 9) == pytest.approx(1 - 2 / math.pi * math.atan(t), rel=1e-10)
    assert p_value(t, 1.0, 3, 0.0, 0.0, 9) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-10)
    assert p_value(t, 1.0, 10**7, 0.0, 0.0, 9) == pytest.approx(math.erfc(t / math.sqrt(2)), rel=1e-4, abs=1e-15)


@pytest.mark.parametrize(("s_a", "n_a", "s_b", "n_b"), [(0.3, 10, 0.3, 10), (0.1, 5, 0.9, 20), (2.0, 30, 0.5, 3)])
def test_equals_the_integral_of_torchs_student_t(s_a, n_a, s_b, n_b):
    variance = s_a**2 + s_b**2
    freedom = variance**2 / (s_a**4 / (n_a - 1) + s_b**4 / (n_b - 1))
    for gap in (0.1, 0.8, 2.5):
        grid = torch.linspace(0, gap / math.sqrt(variance), 20001, dtype=torch.float64)
        inside = torch.trapezoid(
            torch.distributions.StudentT(torch.tensor(freedom, dtype=torch.float64)).log_prob(grid).exp(), grid
        )
        assert p_value(1 + gap, s_a, n_a, 1.0, s_b, n_b) == pytest.approx(1 - 2 * float(inside), abs=1e-7)


def test_false_alarms_are_as_rare_as_promised():
    draws = np.random.default_rng(0).normal(size=(3000, 2, 8)) * np.array([1.0, 4.0])[:, None]
    mean, stderr = draws.mean(-1), draws.std(-1, ddof=1) / math.sqrt(8)
    alarms = sum(p_value(m[0], s[0], 8, m[1], s[1], 8) < 0.05 for m, s in zip(mean, stderr, strict=True))
    assert abs(alarms / 3000 - 0.05) < 5 * math.sqrt(0.05 * 0.95 / 3000)


def test_invariances():
    p = p_value(3.0, 0.4, 7, 2.0, 0.3, 12)
    assert p == p_value(2.0, 0.3, 12, 3.0, 0.4, 7)
    for unit in (1e-90, 1e120):
        assert p_value(3 * unit, 0.4 * unit, 7, 2 * unit, 0.3 * unit, 12) == pytest.approx(p, rel=1e-12)


def test_samples_without_spread_or_size():
    assert p_value(1.0, 0.0, 2, 1.0, 0.0, 2) == 1
    assert p_value(1.0, 0.0, 2, 1.5, 0.0, 2) == 0
    assert p_value(1.0, 3.0, 2, 1.0, 0.0, 2) == 1
    assert math.isnan(p_value(1.0, 0.1, 1, 2.0, 0.1, 9))
    assert math.isnan(p_value(1.0, math.nan, 9, 2.0, 0.1, 9))
