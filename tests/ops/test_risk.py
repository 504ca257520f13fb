"""Tail risk against sorted atoms in NumPy, its algebra, and the identity behind the advantage."""

import itertools

import numpy as np
import pytest
import torch

from popgraft.ops import risk
from popgraft.ops.risk import cvar_advantage

POP, TIME, BATCH, N = 3, 4, 5, 10
ALPHA = torch.tensor([0.1, 0.37, 0.9], dtype=torch.float64)


@pytest.fixture
def quantiles(normal):
    """Atoms in no order."""
    return 3 * normal(POP, TIME, BATCH, N)


def cvar(quantiles, alpha):
    return risk.cvar(quantiles.sort(-1).values, alpha)


def value_at_risk(quantiles, alpha):
    return risk.value_at_risk(quantiles.sort(-1).values, alpha)


def same(x):
    return torch.full((POP,), x, dtype=torch.float64)


def test_level_one_is_the_mean(quantiles):
    torch.testing.assert_close(cvar(quantiles, same(1.0)), quantiles.mean(-1), atol=1e-12, rtol=0)
    assert torch.equal(value_at_risk(quantiles, same(1.0)), quantiles.amax(-1))


@pytest.mark.parametrize("k", range(1, N + 1))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_whole_atoms_give_the_mean_of_the_lowest_k(k, dtype, quantiles):
    quantiles, alpha = quantiles.to(dtype), torch.full((POP,), k / N, dtype=dtype)
    ordered = np.sort(quantiles.numpy(), -1)
    np.testing.assert_allclose(cvar(quantiles, alpha), ordered[..., :k].mean(-1), rtol=0, atol=1e-5)
    assert np.array_equal(value_at_risk(quantiles, alpha), ordered[..., k - 1])


@pytest.mark.parametrize("n", [3, 7, 21, 41, 200])
def test_whole_atoms_are_counted_right_in_single_precision(n):
    atoms = torch.arange(n, dtype=torch.float32).expand(n, n)
    alpha = (torch.arange(n) + 1).float() / n
    assert torch.equal(value_at_risk(atoms, alpha), atoms[0])


def test_a_level_between_atoms_by_hand():
    # q = 4, 1, 3, 2 and α = 0.6: the tail holds 1 and 2 whole (¼ each) and 0.1 of 3.
    # CVaR = (¼·1 + ¼·2 + 0.1·3)/0.6 = 1.05/0.6 = 1.75; the cumulated weights ¼, ½, ¾ reach 0.6 at 3.
    # α = 0.1: less than one atom, which alone remains.
    quantiles = torch.tensor([[4.0, 1, 3, 2], [4, 1, 3, 2]])
    alpha = torch.tensor([0.6, 0.1])
    torch.testing.assert_close(cvar(quantiles, alpha), torch.tensor([1.75, 1.0]))
    assert value_at_risk(quantiles, alpha).tolist() == [3, 1]


def test_translation_homogeneity_and_order(quantiles, normal):
    for tail in (cvar, value_at_risk):
        plain = tail(quantiles, ALPHA)
        torch.testing.assert_close(tail(quantiles + 2.5, ALPHA), plain + 2.5, atol=1e-12, rtol=0)
        torch.testing.assert_close(tail(quantiles * 4, ALPHA), plain * 4, atol=1e-12, rtol=0)
    target, shuffled = normal(POP, TIME, BATCH), quantiles[..., torch.tensor([3, 9, 1, 0, 8, 2, 7, 4, 6, 5])]
    assert torch.equal(cvar_advantage(target, shuffled, ALPHA), cvar_advantage(target, quantiles, ALPHA))


def test_cvar_grows_with_the_level_and_never_exceeds_the_value_at_risk(quantiles):
    levels = [cvar(quantiles, same(x)) for x in np.linspace(0.02, 1, 50)]
    assert all((b >= a - 1e-12).all() for a, b in itertools.pairwise(levels))
    assert (cvar(quantiles, ALPHA) <= value_at_risk(quantiles, ALPHA) + 1e-12).all()


def test_cvar_is_the_maximum_over_thresholds(quantiles):
    """max_ν ν + E[min(q − ν, 0)]/α, reached at the value at risk; the maximum lies at an atom."""
    alpha = ALPHA.view(POP, 1, 1)
    best = [(q := quantiles[..., i]) + (quantiles - q[..., None]).clamp(max=0).mean(-1) / alpha for i in range(N)]
    torch.testing.assert_close(cvar(quantiles, ALPHA), torch.stack(best).amax(0), atol=1e-12, rtol=0)


def test_advantage_is_the_formula_and_zero_on_average_over_the_prediction(quantiles, normal):
    target = 3 * normal(POP, TIME, BATCH)
    nu, tail = value_at_risk(quantiles, ALPHA), cvar(quantiles, ALPHA)
    for where in np.ndindex(POP, TIME, BATCH):
        shortfall = min(float(target[where] - nu[where]), 0) / float(ALPHA[where[0]])
        expected = shortfall - float(tail[where] - nu[where])
        assert float(cvar_advantage(target, quantiles, ALPHA)[where]) == pytest.approx(expected, abs=1e-12)
    realised = torch.stack([cvar_advantage(quantiles[..., i], quantiles, ALPHA) for i in range(N)])
    torch.testing.assert_close(realised.mean(0), torch.zeros(POP, TIME, BATCH).double(), atol=1e-12, rtol=0)


def test_level_one_advantage_of_a_return_below_all_atoms_but_the_last_is_the_ordinary_one(quantiles):
    """With α = 1, ν is the largest atom and A = G − mean for every G up to it."""
    target = quantiles.amax(-1) - 1
    found = cvar_advantage(target, quantiles, same(1.0))
    torch.testing.assert_close(found, target - quantiles.mean(-1), atol=1e-12, rtol=0)


def test_nothing_is_differentiable(quantiles, normal):
    q, target = quantiles.requires_grad_(), normal(POP, TIME, BATCH).requires_grad_()
    assert not cvar_advantage(target, q, ALPHA).requires_grad


def test_population_laws(quantiles, normal, check_laws):
    check_laws(cvar, quantiles, ALPHA)
    check_laws(value_at_risk, quantiles, ALPHA)
    check_laws(cvar_advantage, normal(POP, TIME, BATCH), quantiles, ALPHA)
    check_laws(lambda alpha, quantiles: value_at_risk(quantiles, alpha), ALPHA, quantiles)
