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


@pytest.mark.parametrize("offset", [0.0, 0.1, -1e3 / 3, 1e6 / 3, 1e9 / 3])
def test_a_constant_target_is_one_in_single_precision_whatever_its_size(offset):
    """The mean of 3000 equal numbers differs from them by its rounding, which must not count as variation."""
    target = torch.full((1, 3000), offset)
    prediction = torch.arange(3000.0).view(1, -1)
    assert explained_variance(prediction, target, torch.ones_like(target)) == 0
    jitter = torch.nextafter(target, torch.tensor(torch.inf))
    assert explained_variance(prediction, torch.where(prediction % 2 == 0, target, jitter), torch.ones(1, 3000)) == 0


def test_a_constant_target_is_one_however_its_mean_is_rounded():
    """Among many constants there are means that are off by several units of rounding."""
    target = torch.linspace(1, 10, 300).view(-1, 1, 1).expand(-1, 7, 1000)
    assert not explained_variance(target.sin() + torch.arange(1000), target, torch.ones_like(target)).any()


def test_explained_variance_under_a_large_offset_in_single_precision(normal):
    """At 10⁵ neighbouring numbers are 0.008 apart: a spread of 1 is seen, to within a percent."""
    target = (1e5 + normal(POP, 5000)).float()
    prediction = (target + 0.5 * normal(POP, 5000)).float()
    found = explained_variance(prediction, target, torch.ones_like(target))
    error, spread = (x.double().numpy().var(1) for x in (target - prediction, target))
    np.testing.assert_allclose(found, 1 - error / spread, atol=1e-4)


def test_explained_variance_of_a_tiny_target_is_numpys(normal):
    target = 1e-9 * normal(POP, 50)
    found = explained_variance(target / 2, target, torch.ones_like(target))
    torch.testing.assert_close(found, torch.full_like(found, 0.75))


def test_a_target_that_is_not_a_number_is_not_hidden():
    target = torch.tensor([[1.0, torch.nan], [1.0, 2.0]])
    found = explained_variance(torch.zeros(2, 2), target, torch.ones(2, 2))
    assert found.isnan().tolist() == [True, False]


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
