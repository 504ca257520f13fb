"""Welch's t-test: whether two means differ, of samples whose variances may differ too (Welch 1947, Biometrika 34)."""

import math

CONFIDENCE = 0.95
SMALLEST = 1e-300
"""Stands for 0 in the denominators of the continued fraction."""


def p_value(mean_a: float, stderr_a: float, n_a: int, mean_b: float, stderr_b: float, n_b: int) -> float:
    """Probability that two means drawn from equal ones differ at least this much (two-sided).

    t = (x̄ₐ − x̄_b) / √(sₐ² + s_b²),  ν = (sₐ² + s_b²)² / (sₐ⁴/(nₐ − 1) + s_b⁴/(n_b − 1)),
    p = I_{ν/(ν + t²)}(ν/2, ½), where s is the standard error of a mean.

    Args:
        mean_a: mean of one sample.
        stderr_a: standard error of that mean.
        n_a: size of the sample.
        mean_b: mean of the other sample.
        stderr_b: standard error of that mean.
        n_b: size of the sample.

    Returns:
        The probability; NaN where a spread is not known, as of a sample of less than 2. Two samples without any spread
        differ for certain (0) unless their means are equal (1).
    """
    if min(n_a, n_b) < 2 or not math.isfinite(mean_a + mean_b + stderr_a + stderr_b):
        return math.nan
    gap, largest = abs(mean_a - mean_b), max(stderr_a, stderr_b)
    if gap == 0 or largest == 0:
        return float(gap == 0)
    # In units of the larger error, so that no fourth power overflows or vanishes.
    a, b, t = (stderr_a / largest) ** 2, (stderr_b / largest) ** 2, gap / largest
    freedom = (a + b) ** 2 / (a**2 / (n_a - 1) + b**2 / (n_b - 1))
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t / (a + b)))


def t_quantile(freedom: int) -> float:
    """t with P(|T| ≤ t) = 95 % for Student's law, by halving: P(|T| > t) = I_{ν/(ν + t²)}(ν/2, ½)."""
    low, high = 0.0, 20.0
    for _ in range(50):
        middle = (low + high) / 2
        outside = incomplete_beta(freedom / 2, 0.5, freedom / (freedom + middle**2))
        low, high = (middle, high) if outside > 1 - CONFIDENCE else (low, middle)
    return high


def incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function I_x(a, b) (Press et al., Numerical Recipes, 3rd ed., §6.4).

    Args:
        a: first parameter, positive.
        b: second parameter, positive.
        x: from 0 to 1.
    """
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly: I_x(a, b) = 1 − I_{1−x}(b, a)
        return 1 - incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) * _fraction(a, b, x) / a


def _fraction(a: float, b: float, x: float) -> float:
    """Continued fraction 1/(1+ d₁/(1+ d₂/(1+ …))) of I_x, by Lentz's method; O(√max(a, b)) terms."""
    c, d = 1.0, 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    value = d
    for m in range(1, 100_000):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        factor = 1.0
        for term in (even, odd):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            factor *= c * d
        value *= factor
        if abs(factor - 1) < 1e-14:
            break
    return value


def _away_from_zero(x: float) -> float:
    return x if abs(x) > SMALLEST else SMALLEST
