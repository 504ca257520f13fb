"""Gaussian-process regression against its equations, in NumPy."""

import math

import numpy as np
import torch

from popgraft.pbt.process import BOUNDS, Kernel, Process, fitted

SOURCE = np.random.default_rng(0)
X, TIMES, Y = SOURCE.random((7, 2)), np.array([0.0, 0, 1, 2, 2, 3, 5]), SOURCE.normal(size=7)
NEW, LATER = SOURCE.random((4, 2)), np.array([0.0, 3, 6, 9])
VARIANCE, LENGTH, FORGETTING, NOISE = 1.7, 0.4, 0.3, 0.05


def k(a, i, b, j):
    return np.array(
        [
            [
                VARIANCE * math.exp(-((p - q) ** 2).sum() / (2 * LENGTH**2)) * (1 - FORGETTING) ** (abs(s - t) / 2)
                for q, t in zip(b, j, strict=True)
            ]
            for p, s in zip(a, i, strict=True)
        ]
    )


def kernel():
    return Kernel(*(torch.tensor(value, dtype=torch.float64) for value in (VARIANCE, LENGTH, FORGETTING, NOISE)))


def process(x=X, times=TIMES, y=Y):
    return Process(kernel(), *(torch.from_numpy(part) for part in (x, times, y)))


def test_the_posterior_is_the_closed_form():
    mean, deviation = process().at(torch.from_numpy(NEW), torch.from_numpy(LATER))
    inverse, across = np.linalg.inv(k(X, TIMES, X, TIMES) + NOISE * np.eye(7)), k(NEW, LATER, X, TIMES)
    np.testing.assert_allclose(mean, across @ inverse @ Y, rtol=0, atol=1e-12)
    variance = k(NEW, LATER, NEW, LATER) - across @ inverse @ across.T
    np.testing.assert_allclose(deviation, np.sqrt(np.diag(variance)), rtol=0, atol=1e-12)


def test_the_likelihood_is_the_density_of_a_normal_vector():
    covariance = k(X, TIMES, X, TIMES) + NOISE * np.eye(7)
    expected = -0.5 * (Y @ np.linalg.inv(covariance) @ Y + np.linalg.slogdet(2 * np.pi * covariance)[1])
    assert math.isclose(process().likelihood, expected, rel_tol=1e-12)


def test_nothing_is_known_before_the_first_observation():
    nothing = process(X[:0], TIMES[:0], Y[:0])
    mean, deviation = nothing.at(torch.from_numpy(NEW), torch.from_numpy(LATER))
    assert mean.tolist() == [0.0] * 4
    np.testing.assert_allclose(deviation, [math.sqrt(VARIANCE)] * 4)


def test_what_is_imagined_narrows_and_moves_nothing():
    known, new, later = process(), torch.from_numpy(NEW), torch.from_numpy(LATER)
    imagined = known.imagining(new[:1], later[:1])
    (mean, deviation), (same, narrower) = known.at(new, later), imagined.at(new, later)
    torch.testing.assert_close(same, mean, rtol=0, atol=1e-12)
    assert (narrower < deviation).all()
    assert narrower[0] < math.sqrt(NOISE) < deviation[0]


def test_constants_that_are_fitted_are_more_likely_than_any_on_a_grid():
    rng = np.random.default_rng(1)
    x, times = torch.from_numpy(rng.random((30, 1))), torch.arange(30).double() % 5
    y = torch.sin(6 * x[:, 0]) + 0.1 * torch.from_numpy(rng.normal(size=30))
    y = (y - y.mean()) / y.std(correction=0)
    found = fitted(x, times, y)
    shares = (0.3, 0.7)
    grid = [torch.tensor([low * (high / low) ** share for share in shares]).double() for low, high in BOUNDS.values()]
    for constants in torch.cartesian_prod(*grid):
        assert found.likelihood > Process(Kernel(*constants), x, times, y).likelihood
    assert found.kernel.forgetting < 0.02  # it does not drift
    again = fitted(x, times, y)
    assert torch.equal(again.at(x, times)[0], found.at(x, times)[0])


def test_a_function_that_drifts_is_forgotten():
    times = torch.arange(40).double()
    x = torch.from_numpy(np.random.default_rng(2).random((40, 1)))
    y = torch.sin(6 * x[:, 0] + times)
    y = (y - y.mean()) / y.std(correction=0)
    assert fitted(x, times, y).kernel.forgetting > 0.3
