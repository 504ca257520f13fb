"""The variance gradient scaler against arithmetic in NumPy and closed forms."""

import math

import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.errors import ConfigError
from popgraft.optim.vgs import (
    VGSRule,
    initial_vgs_state,
    measure_,
    normalized_variance,
    scaling_factor,
    warmup_active,
)

POP, SIZES, N = 3, [1, 4, 6, 2], 13
ALPHA = torch.tensor([0.05, 0.1, 2.0]).double()
BOTH = pytest.mark.parametrize("statistic", ["spatial_mean", "per_element"])


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(11)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def run(grads, rule, sizes=SIZES, actives=None):
    """State after the gradients [step, pop, n]."""
    state = initial_vgs_state(grads[0], sizes, rule)
    for step, grad in enumerate(grads):
        active = torch.ones(len(grad), dtype=torch.bool) if actives is None else actives[step]
        measure_(state, grad, sizes, active, rule)
    return state


def outcome(state, rule, alpha=ALPHA, sizes=SIZES):
    variance = normalized_variance(state, sizes, rule)
    return variance, scaling_factor(state, variance, alpha, rule)


def numpy_reference(grads, rule, alpha, sizes):
    """Variance and factor of one member from weighted means over its whole history; no running averages."""
    ages = np.arange(len(grads))[::-1]
    weights = rule.beta**ages / (rule.beta**ages).sum()
    ratios = []
    for part in np.split(np.asarray(grads), np.cumsum(sizes)[:-1], axis=1):
        if rule.statistic == "spatial_mean":
            means = part.mean(1)
            average = weights @ means
            ratios.append((weights @ (means - average) ** 2) / (average**2 + rule.eps))
        else:
            average = weights @ part
            variance = weights @ (part - average) ** 2
            ratios.append(variance.sum() / ((weights @ part**2).sum() + rule.eps))
    variance = np.percentile(ratios, 90)
    factor = 1 / (1 + alpha * min(variance, rule.cap))
    return variance, 1 if len(grads) < rule.warmup_steps else min(max(factor, rule.min_scaling_factor), 1)


@BOTH
@pytest.mark.parametrize("constants", [{}, {"beta": 0.7, "eps": 1e-2, "cap": 2.0, "min_scaling_factor": 0.3}])
def test_equals_numpy_over_a_random_sequence(statistic, constants, normal):
    rule = VGSRule(statistic=statistic, warmup_steps=5, **constants)
    grads = normal(30, POP, N) + torch.tensor([0.0, 1.0, -3.0]).double().view(POP, 1)
    state = initial_vgs_state(grads[0], SIZES, rule)
    for step, grad in enumerate(grads, start=1):
        assert measure_(state, grad, SIZES, torch.ones(POP, dtype=torch.bool), rule).all()
        found = torch.stack(outcome(state, rule))
        expected = [numpy_reference(grads[:step, m], rule, float(ALPHA[m]), SIZES) for m in range(POP)]
        torch.testing.assert_close(found, torch.tensor(expected).double().T, rtol=1e-7, atol=1e-9)
    assert found[1].min() < 1  # the factor did act
    weights = (1 - rule.beta) * rule.beta ** np.arange(30)[::-1]
    history = grads.numpy()
    for name, value in {
        "grad_mean_ema": history.mean(2),
        "grad_var_ema": history.var(2),
        "grad_norm_ema": np.linalg.norm(history, axis=2),
        "grad_max_ema": np.abs(history).max(2),
    }.items():
        np.testing.assert_allclose(getattr(state, name), weights @ value, rtol=1e-9, atol=1e-12)
    assert state.step_count.tolist() == [30] * POP


def test_three_steps_by_hand():
    # One tensor, one element, g = 1, 3, 2 with β = 1/2: weights of the past 1/7, 2/7, 4/7.
    # E[μ] = (1 + 6 + 8)/7 = 15/7, E[μ²] = (1 + 18 + 16)/7 = 5, V = 5 − 225/49 = 20/49, r = 20/225 = 4/45.
    # factor = 1/(1 + 9 · 4/45) = 1/1.8; per element r = V/E[g²] = (20/49)/5 = 4/49.
    grads = torch.tensor([1.0, 3.0, 2.0]).double().view(3, 1, 1)
    alpha = torch.tensor([9.0]).double()
    rule = VGSRule(beta=0.5, eps=1e-12, warmup_steps=3)
    variance, factor = outcome(run(grads, rule, [1]), rule, alpha, [1])
    assert (float(variance), float(factor)) == pytest.approx((4 / 45, 1 / 1.8))
    rule = VGSRule(beta=0.5, eps=1e-12, statistic="per_element")
    assert float(normalized_variance(run(grads, rule, [1]), [1], rule)) == pytest.approx(4 / 49)


def test_percentile_interpolates_between_tensors():
    # Two tensors of one element. The first is constant (r = 0), the second alternates as 1, 3 (β → 1: r = 1/4).
    grads = torch.tensor([[5.0, 1.0], [5.0, 3.0]]).double().repeat(500, 1).view(1000, 1, 2)
    rule = VGSRule(beta=0.9999)
    variance = normalized_variance(run(grads, rule, [1, 1]), [1, 1], rule)
    assert float(variance) == pytest.approx(0.9 * 0.25, rel=1e-3)


@BOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_gradient_of_any_shape_keeps_the_factor_1(statistic, dtype, normal):
    grads = (normal(POP, N) * torch.tensor([1e-6, 1.0, 1e6]).view(POP, 1)).to(dtype).expand(1500, POP, N)
    rule = VGSRule(statistic=statistic)
    variance, factor = outcome(run(grads, rule), rule, ALPHA.to(dtype))
    tolerance = 1e-9 if dtype == torch.float64 else 5e-5
    torch.testing.assert_close(factor, torch.ones(POP, dtype=dtype), atol=tolerance, rtol=0)
    assert variance.max() < tolerance


@pytest.mark.parametrize(("statistic", "expected"), [("spatial_mean", 0.25), ("per_element", 0.2)])
def test_independent_noise_has_its_closed_form(statistic, expected, normal):
    # One tensor of one element, g ~ N(m, s²) with m = 2, s = 1: V/m² = 1/4, V/E[g²] = 1/5.
    # 400 members in place of a long run; β = 0.99 leaves a bias of (1 − β)/(1 + β) = 1/199 in V.
    grads = 2 + normal(1200, 400, 1)
    rule = VGSRule(statistic=statistic)
    variance, factor = outcome(run(grads, rule, [1]), rule, ALPHA[:1].expand(400), [1])
    assert float(variance.mean()) == pytest.approx(expected, rel=0.03)
    assert float(factor.mean()) == pytest.approx(1 / (1 + 0.05 * expected), rel=2e-3)


def test_spatial_mean_sees_s2_over_n_m2(normal):
    # Independent noise in 100 elements: the mean has variance s²/100, so r = 9/100 for m = 1, s = 3.
    rule = VGSRule()
    variance = normalized_variance(run(1 + 3 * normal(1000, 60, 100), rule, [100]), [100], rule)
    assert float(variance.mean()) == pytest.approx(0.09, rel=0.05)


def test_only_per_element_sees_noise_that_cancels_within_a_tensor(normal):
    noise = normal(300, 1, 2)
    grads = 1 + torch.cat([noise, -noise], dim=2)
    blind, seeing = VGSRule(), VGSRule(statistic="per_element")
    assert float(normalized_variance(run(grads, blind, [4]), [4], blind)) < 1e-9
    assert float(normalized_variance(run(grads, seeing, [4]), [4], seeing)) > 0.3


@BOTH
def test_order_and_sign_of_elements_do_not_matter(statistic, normal):
    rule, grads = VGSRule(statistic=statistic), 0.5 + normal(20, POP, N)
    generator = torch.Generator().manual_seed(0)
    inside = [part[torch.randperm(len(part), generator=generator)] for part in torch.arange(N).split(SIZES)]
    expected = outcome(run(grads, rule), rule)
    for changed in (grads[:, :, torch.cat(inside)], -grads):
        for found, reference in zip(outcome(run(changed, rule), rule), expected, strict=True):
            torch.testing.assert_close(found, reference, atol=1e-12, rtol=1e-12)


@BOTH
def test_monotone_in_alpha(statistic, normal):
    rule = VGSRule(statistic=statistic, warmup_steps=0, min_scaling_factor=0.0)
    grads = (0.3 + normal(20, 1, N)).expand(20, 50, N)
    alpha = torch.linspace(0, 5, 50).double()
    _, factor = outcome(run(grads, rule), rule, alpha)
    assert factor[0] == 1
    assert (factor.diff() < 0).all()


def test_the_factor_is_1_until_the_warm_up_is_measured(normal):
    rule, factors = VGSRule(warmup_steps=4), []
    grads = normal(6, POP, N)
    for steps in range(1, 7):
        state = run(grads[:steps], rule)
        factors.append(bool((outcome(state, rule)[1] == 1).all()))
        assert warmup_active(state, rule).tolist() == [steps < 4] * POP
    assert factors == [True, True, True, False, False, False]
    fresh = initial_vgs_state(grads[0], SIZES, rule)
    for warmup_steps in (0, 4):
        variance, factor = outcome(fresh, VGSRule(warmup_steps=warmup_steps))
        assert (variance == 0).all()
        assert (factor == 1).all()


def test_floor_and_cap():
    rule = VGSRule(warmup_steps=0)
    state = initial_vgs_state(torch.zeros(6, N).double(), SIZES, rule)
    variance = torch.tensor([0.0, 10.0, 50.0, 1e9, 50.0, 1e9]).double()
    alpha = torch.tensor([0.1, 0.1, 0.1, 0.1, 1.0, 1.0]).double()
    # 1/(1 + 0.1 · 10) = 1/2; 1/(1 + 0.1 · 50) = 1/6 also beyond the cap; 1/51 lies below the floor.
    expected = torch.tensor([1, 1 / 2, 1 / 6, 1 / 6, 0.1, 0.1]).double()
    torch.testing.assert_close(scaling_factor(state, variance, alpha, rule), expected)


@BOTH
@pytest.mark.parametrize("garbage", [math.nan, math.inf, -math.inf, 1e200])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_gradient_without_finite_norm_changes_no_bit(statistic, garbage, steps_before, normal):
    rule = VGSRule(statistic=statistic)
    grads = normal(4, POP, N)
    before = run(grads[:steps_before], rule) if steps_before else initial_vgs_state(grads[0], SIZES, rule)
    found, calm = tree.map(torch.clone, before), tree.map(torch.clone, before)
    everyone = torch.ones(POP, dtype=torch.bool)
    measure_(calm, grads[3], SIZES, everyone, rule)
    bad = grads[3].clone()
    bad[1, 5] = garbage
    assert measure_(found, bad, SIZES, everyone, rule).tolist() == [True, False, True]
    for (path, leaf), (_, kept), (_, moved) in zip(*map(tree.items, (found, before, calm)), strict=True):
        assert torch.equal(leaf[1], kept[1]), path
        assert torch.equal(leaf[[0, 2]], moved[[0, 2]]), path


@BOTH
def test_a_resting_member_changes_no_bit(statistic, normal):
    rule = VGSRule(statistic=statistic)
    grads = normal(5, POP, N)
    actives = torch.ones(5, POP, dtype=torch.bool)
    actives[2, 1] = actives[4, 1] = False
    found, without = run(grads, rule, actives=actives), run(grads[[0, 1, 3]], rule)
    for (path, leaf), (_, reference) in zip(tree.items(found), tree.items(without), strict=True):
        assert torch.equal(leaf[1], reference[1]), path
    assert found.step_count.tolist() == [5, 3, 5]


@BOTH
def test_population_laws(statistic, normal):
    rule = VGSRule(statistic=statistic, warmup_steps=2)
    grads = normal(6, POP, N)

    def results(grads, alpha):
        state = run(grads, rule)
        return [*outcome(state, rule, alpha), *(leaf for _, leaf in tree.items(state))]

    whole = results(grads, ALPHA)
    singles = [results(grads[:, m : m + 1], ALPHA[m : m + 1]) for m in range(POP)]
    for stacked, *parts in zip(whole, *singles, strict=True):
        torch.testing.assert_close(stacked, torch.cat(parts), atol=1e-14, rtol=1e-12)
    disturbed, order, parents = grads.clone(), torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2])
    disturbed[2, 1] = math.nan
    for a, b in zip(whole, results(disturbed, ALPHA), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    for a, b in zip(whole, results(grads[:, order], ALPHA[order]), strict=True):
        torch.testing.assert_close(a[order], b, atol=1e-14, rtol=1e-12)
    grafted = tree.gather(run(grads[:3], rule), parents)
    for grad in grads[3:]:
        measure_(grafted, grad[parents], SIZES, torch.ones(POP, dtype=torch.bool), rule)
    donor = run(grads, rule)
    for (_, leaf), (_, reference) in zip(tree.items(grafted), tree.items(donor), strict=True):
        torch.testing.assert_close(leaf, reference[parents], atol=1e-14, rtol=1e-12)


@pytest.mark.parametrize(
    "wrong",
    [
        {"beta": 1.0},
        {"beta": -0.1},
        {"eps": 0.0},
        {"warmup_steps": -1},
        {"min_scaling_factor": 1.5},
        {"cap": math.nan},
        {"statistic": "mean"},
    ],
)
def test_constants_outside_their_range_are_refused(wrong):
    (name,) = wrong
    with pytest.raises(ConfigError, match=f"{name}=.* must be .*, for example {name}="):
        VGSRule(**wrong)
