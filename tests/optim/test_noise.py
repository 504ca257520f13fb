"""Normal draws against the moments and the distribution function of the normal distribution, and for independence."""

import math

import numpy as np
import pytest
import torch

from popgraft.optim import draw_noise_
from popgraft.optim.noise import LENGTH, PIECE, _rings

N = 50_000
CRITICAL = 1.95
"""Kolmogorov's statistic times the root of the sample's size exceeds this once in a thousand."""


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def drawn(rows, n, *, calls=1, seed=0):
    """[call, row, n] as float64."""
    generators, out = seeded(*range(seed, seed + rows)), torch.empty(calls, rows, n)
    for noise in out:
        draw_noise_(noise, generators)
    return out.double().numpy()


def distance(sample):
    """Largest distance of the empirical distribution function from the normal one, times √size."""
    below = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in np.sort(sample)])
    steps = np.arange(len(sample) + 1) / len(sample)
    return max(np.max(steps[1:] - below), np.max(below - steps[:-1])) * math.sqrt(len(sample))


def test_a_row_is_a_normal_sample():
    for row in drawn(3, N)[0]:
        assert distance(row) < CRITICAL
        spread = np.sqrt([1, 2, 15, 96]) / math.sqrt(N)
        assert (np.abs([np.mean(row**k) for k in (1, 2, 3, 4)] - np.array([0, 1, 0, 3])) < 4 * spread).all()


def test_one_element_is_a_normal_sample_over_calls_that_do_not_depend_on_each_other():
    first, other = drawn(1, 2, calls=8000)[:, 0].T
    for series in (first, other):
        assert distance(series) < CRITICAL
        for lag in (1, 2, 5):
            assert abs(np.corrcoef(series[:-lag], series[lag:])[0, 1]) < 4 / math.sqrt(8000)
    assert abs(np.corrcoef(first, other)[0, 1]) < 4 / math.sqrt(8000)


def test_extremes_are_as_frequent_as_they_should_be():
    magnitude = np.abs(drawn(40, N))
    for bound in (3.0, 4.0, 4.5):
        expected = magnitude.size * math.erfc(bound / math.sqrt(2))
        assert abs(np.sum(magnitude > bound) - expected) < 6 * math.sqrt(expected)


def test_members_calls_and_pieces_of_a_row_are_uncorrelated():
    out = drawn(4, 2 * PIECE, calls=2).reshape(-1, PIECE)
    assert np.abs(np.corrcoef(out) - np.eye(len(out))).max() < 4.5 / math.sqrt(PIECE)


def test_no_row_repeats_itself_at_a_distance():
    rows = drawn(20, N)[0]
    power = np.abs(np.fft.rfft(rows, n=2 * N)) ** 2  # padded, so that a row does not meet its other end
    products = np.fft.irfft(power)[:, 1:N]
    assert np.abs(products).max() < 6 * math.sqrt(N)


def test_no_direction_is_shaken_more_than_another():
    """Variance along sines and random directions, over calls; tables of plain random numbers are 20 % off."""
    n, calls = 4096, 3000
    phase = 2 * math.pi * np.arange(n)[:, None] * np.array([1, 5, 300, 2000]) / n
    random = np.random.default_rng(0).normal(size=(n, 4))
    directions = np.concatenate([np.sin(phase), np.cos(phase), random], axis=1)
    directions /= np.linalg.norm(directions, axis=0)
    along = drawn(1, n, calls=calls)[:, 0] @ directions
    assert along.var(axis=0) == pytest.approx(np.ones(12), abs=4.5 * math.sqrt(2 / calls))


@pytest.mark.parametrize("distance", [1, 2, 1000, PIECE - 1])
def test_elements_of_a_row_are_uncorrelated_over_all_places(distance):
    for ring in _rings(torch.float64, torch.device("cpu")):
        there = ring[:LENGTH]
        assert float(there.mean()) == pytest.approx(0, abs=1e-12)
        assert float(there.square().mean()) == pytest.approx(0.5, abs=1e-5)
        assert float((there * there.roll(distance)).mean()) == pytest.approx(0, abs=1e-5)
        assert torch.equal(ring[LENGTH:], ring[:PIECE])


@pytest.mark.parametrize("n", [1, 3, 1001, PIECE, 2 * PIECE + 1])
def test_a_row_depends_on_its_generator_alone(n):
    rows = torch.empty(3, n)
    draw_noise_(rows, seeded(3, 4, 3))
    alone = torch.empty(1, n)
    draw_noise_(alone, seeded(4))
    assert torch.equal(rows[1], alone[0])
    assert torch.equal(rows[0], rows[2])
    assert not torch.equal(rows[0], rows[1])


def test_draws_differ_from_call_to_call_and_continue_with_the_generators_state():
    (generator,) = seeded(1)
    first, second, again = (torch.empty(1, 64).double() for _ in range(3))
    draw_noise_(first, [generator])
    state = generator.get_state()
    draw_noise_(second, [generator])
    generator.set_state(state)
    draw_noise_(again, [generator])
    assert torch.equal(second, again)
    assert not torch.equal(first, second)


def test_every_precision_sees_the_same_draws():
    single, double = torch.empty(2, 100), torch.empty(2, 100).double()
    draw_noise_(single, seeded(1, 2))
    draw_noise_(double, seeded(1, 2))
    torch.testing.assert_close(single.double(), double, atol=1e-6, rtol=0)
