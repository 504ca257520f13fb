"""Masked reductions against torch's and NumPy's on the samples that count."""

import numpy as np
import pytest
import torch

from popgraft.ops.reduce import explained_variance, mean, standardize

POP, TIME, ENV = 3, 6, 4


@pytest.fixture
def sampled(normal):
    """Numbers, and which of them count; members 0 and 1 have holes, member 2 has none."""
    valid = (normal(POP, TIME, ENV) > -0.3).double()
    valid[2] = 1
    return normal(POP, TIME, ENV), valid


def test_mean_is_that_of_the_valid_samples(sampled):
    x, valid = sampled
    for m in range(POP):
        torch.testing.assert_close(mean(x, valid)[m], x[m][valid[m] == 1].mean())


def test_standardize_uses_the_unbiased_deviation_of_the_valid_samples(sampled):
    x, valid = sampled
    found = standardize(x, valid)
    for m in range(POP):
        own = x[m][valid[m] == 1]
        expected = (own - own.mean()) / (torch.std(own) + 1e-8)
        torch.testing.assert_close(found[m][valid[m] == 1], expected, atol=1e-12, rtol=0)


def test_explained_variance_is_numpys(sampled, normal):
    x, valid = sampled
    prediction = x + 0.5 * normal(POP, TIME, ENV)
    for m in range(POP):
        target, guess = (t[m][valid[m] == 1].numpy() for t in (x, prediction))
        expected = 1 - np.var(target - guess) / np.var(target)
        assert float(explained_variance(prediction, x, valid)[m]) == pytest.approx(expected, abs=1e-12)


def test_explained_variance_of_a_constant_target_is_zero(normal):
    prediction = normal(POP, TIME, ENV)
    assert not explained_variance(prediction, torch.ones_like(prediction), torch.ones_like(prediction)).any()


def test_samples_that_do_not_count_change_nothing(sampled):
    x, valid = sampled
    other = torch.where(valid == 1, x, 1e3)
    assert torch.equal(mean(x, valid), mean(other, valid))
    assert torch.equal(explained_variance(x.sin(), x, valid), explained_variance(other.sin(), other, valid))
    assert torch.equal(standardize(x, valid)[valid == 1], standardize(other, valid)[valid == 1])


def test_a_member_without_a_valid_sample_has_finite_results(sampled):
    x, valid = sampled
    valid[1] = 0
    assert mean(x, valid)[1] == 0
    assert explained_variance(x, x, valid)[1] == 0
    assert standardize(x, valid).isfinite().all()


def test_equal_samples_standardize_to_zero():
    ones = torch.ones(POP, TIME, ENV)
    assert not standardize(ones, ones).any()


def test_population_laws(sampled, check_laws):
    x, valid = sampled
    check_laws(mean, x, valid)
    check_laws(standardize, x, valid)
    check_laws(explained_variance, x, x.sin(), valid)
