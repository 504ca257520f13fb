"""Every term of the loss against its formula, written out in NumPy or worked out by hand."""

import numpy as np
import pytest
import torch

from popgraft.ops.losses import MAX_LOG_RATIO, approx_kl, clip_fraction, clipped_surrogate, log_ratio, quantile_huber

POP, TIME, BATCH, N = 3, 4, 5, 7
CLIP = torch.tensor([0.1, 0.2, 0.3]).double()


@pytest.fixture
def valid(normal):
    return (normal(POP, TIME, BATCH) > -0.5).double()


def chosen(x, valid, m):
    """Member m's samples that count, as NumPy."""
    return x[m][valid[m] == 1].detach().numpy()


def test_clipped_surrogate_equals_the_formula(normal, valid):
    ratio, advantage = normal(POP, TIME, BATCH), normal(POP, TIME, BATCH)
    found = clipped_surrogate(ratio, advantage, CLIP, valid)
    for m in range(POP):
        rho, a, c = np.exp(chosen(ratio, valid, m)), chosen(advantage, valid, m), float(CLIP[m])
        expected = -np.mean([min(r * x, min(max(r, 1 - c), 1 + c) * x) for r, x in zip(rho, a, strict=True)])
        assert float(found[m]) == pytest.approx(expected, abs=1e-12)


def test_clipped_surrogate_by_hand():
    # ρ = 2, 2, ½, ½ and A = 1, −1, 1, −1 with c = ¼:
    #   min(2, 5/4) + min(−2, −5/4) + min(½, ¾) + min(−½, −¾) = 5/4 − 2 + ½ − ¾ = −1, and the loss is ¼
    # Its derivative in log ρ is −ρA/4 where the first argument is the smaller: 0, ½, −⅛, 0.
    ratio = torch.tensor([[2.0, 2, 0.5, 0.5]]).log().requires_grad_()
    advantage = torch.tensor([[1.0, -1, 1, -1]])
    loss = clipped_surrogate(ratio, advantage, torch.tensor([0.25]), torch.ones(1, 4))
    (grad,) = torch.autograd.grad(loss.sum(), ratio)
    torch.testing.assert_close(loss, torch.tensor([0.25]))
    torch.testing.assert_close(grad, torch.tensor([[0.0, 0.5, -0.125, 0.0]]))


def test_at_the_old_policy_the_surrogate_has_the_plain_policy_gradient(normal, valid):
    ratio, advantage = torch.zeros(POP, TIME, BATCH).double().requires_grad_(), normal(POP, TIME, BATCH)
    (grad,) = torch.autograd.grad(clipped_surrogate(ratio, advantage, CLIP, valid).sum(), ratio)
    torch.testing.assert_close(grad, -advantage * valid / valid.sum((1, 2), keepdim=True), atol=1e-14, rtol=0)


def test_log_ratio_is_bounded():
    new, old = torch.tensor([[-1.0, 0.0, -400.0]]), torch.tensor([[-3.0, -500.0, 0.0]])
    assert log_ratio(new, old).tolist() == [[2.0, MAX_LOG_RATIO, -MAX_LOG_RATIO]]
    assert log_ratio(new, old).exp().isfinite().all()


def rlax_quantile_regression_loss(quantiles, target, huber):
    """rlax `quantile_regression_loss` for one target sample: a sum over quantiles, where ours is a mean."""
    n = len(quantiles)
    delta = target - quantiles
    weight = np.abs((np.arange(n) + 0.5) / n - (delta < 0))
    quadratic = np.minimum(np.abs(delta), huber)
    loss = 0.5 * quadratic**2 + huber * (np.abs(delta) - quadratic)
    return np.sum(weight * loss)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 4.0])
def test_quantile_huber_times_n_is_rlaxs(kappa, normal, valid):
    quantiles, target = 2 * normal(POP, TIME, BATCH, N), 2 * normal(POP, TIME, BATCH)
    found = N * quantile_huber(quantiles, target, valid, kappa)
    for m in range(POP):
        pairs = zip(chosen(quantiles, valid, m), chosen(target, valid, m), strict=True)
        expected = np.mean([rlax_quantile_regression_loss(q, g, kappa) for q, g in pairs])
        assert float(found[m]) == pytest.approx(expected, abs=1e-12)


def test_quantile_huber_by_hand():
    # q = 0, 4; G = 1; τ = ¼, ¾; κ = 1.  u = 1, −3: weights ¼ and |¾ − 1| = ¼, Huber ½ and 3 − ½ = 5/2.
    # loss = ½ (¼·½ + ¼·5/2) = 3/8; its derivative in q is −½·¼·1 and +½·¼·1.
    quantiles = torch.tensor([[[0.0, 4.0]]], requires_grad=True)
    loss = quantile_huber(quantiles, torch.ones(1, 1), torch.ones(1, 1))
    (grad,) = torch.autograd.grad(loss.sum(), quantiles)
    assert loss.item() == 0.375
    assert grad.flatten().tolist() == [-0.125, 0.125]


def test_quantile_gradient_in_closed_form(normal, valid):
    """dL/dqᵢ = −|τᵢ − 1{u<0}| · clip(u, ±κ) / (N · samples)."""
    quantiles, target = normal(POP, TIME, BATCH, N).requires_grad_(), normal(POP, TIME, BATCH)
    (grad,) = torch.autograd.grad(quantile_huber(quantiles, target, valid, 0.7).sum(), quantiles)
    u = target.numpy()[..., None] - quantiles.detach().numpy()
    weight = np.abs((np.arange(N) + 0.5) / N - (u < 0))
    count = valid.numpy().sum((1, 2))[:, None, None, None]
    expected = -weight * np.clip(u, -0.7, 0.7) * valid.numpy()[..., None] / (N * count)
    np.testing.assert_allclose(grad, expected, rtol=0, atol=1e-14)


def test_the_minimiser_is_the_empirical_quantiles(normal):
    """Subgradient descent on free quantiles of a sample; κ far below the gaps between samples."""
    sample = normal(1, 31)
    levels = (np.arange(N) + 0.5) / N
    quantiles = torch.zeros(N).double().requires_grad_()
    for step in range(1500):
        stacked = quantiles.expand(1, 31, N)
        (grad,) = torch.autograd.grad(
            quantile_huber(stacked, sample, torch.ones(1, 31).double(), 1e-4).sum(), quantiles
        )
        with torch.no_grad():  # the subgradient is κ(F(q) − τ)/N
            quantiles -= grad / 1e-4 * N * 0.99**step
    expected = np.quantile(sample.numpy(), levels, method="inverted_cdf")
    np.testing.assert_allclose(quantiles.detach(), expected, rtol=0, atol=2e-3)


def test_approx_kl_is_k3(normal, valid):
    ratio = normal(POP, TIME, BATCH)
    for m in range(POP):
        rho = np.exp(chosen(ratio, valid, m))
        assert float(approx_kl(ratio, valid)[m]) == pytest.approx(np.mean(rho - 1 - np.log(rho)), abs=1e-12)
    assert not approx_kl(torch.zeros(POP, TIME), torch.ones(POP, TIME)).any()


def test_approx_kl_estimates_the_divergence_of_two_normals():
    """KL(N(0, 1) ‖ N(0.3, 1)) = 0.3²/2."""
    x = torch.randn(1, 200_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old, new = (torch.distributions.Normal(torch.tensor(mean).double(), 1.0) for mean in (0.0, 0.3))
    found = approx_kl(new.log_prob(x) - old.log_prob(x), torch.ones_like(x))
    assert found.item() == pytest.approx(0.045, abs=1e-3)


def test_clip_fraction_counts_ratios_outside():
    ratio = torch.tensor([[0.5, 0.85, 1.0, 1.15, 1.5], [0.5, 0.85, 1.0, 1.15, 1.5]]).log()
    valid = torch.tensor([[1.0, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
    found = clip_fraction(ratio, torch.tensor([0.1, 0.2]), valid)
    torch.testing.assert_close(found, torch.tensor([4 / 5, 1 / 4]))


def test_samples_that_do_not_count_change_neither_value_nor_gradient(normal, valid):
    ratio, advantage, target = (normal(POP, TIME, BATCH) for _ in range(3))
    quantiles = normal(POP, TIME, BATCH, N)
    holes = valid == 0
    assert holes.any()

    def everything(ratio, advantage, quantiles, target):
        leaves = [ratio.clone().requires_grad_(), quantiles.clone().requires_grad_()]
        values = [
            clipped_surrogate(leaves[0], advantage, CLIP, valid),
            quantile_huber(leaves[1], target, valid),
            approx_kl(leaves[0], valid),
            clip_fraction(leaves[0], CLIP, valid),
        ]
        return [*values, *torch.autograd.grad(sum(value.sum() for value in values[:3]), leaves)]

    before = everything(ratio, advantage, quantiles, target)
    for x in (ratio, advantage, quantiles, target):
        x[holes] = 3.0
    for a, b in zip(before, everything(ratio, advantage, quantiles, target), strict=True):
        assert torch.equal(a, b)


def test_population_laws(normal, valid, check_laws):
    ratio, advantage = normal(POP, TIME, BATCH), normal(POP, TIME, BATCH)
    check_laws(clipped_surrogate, ratio, advantage, CLIP, valid)
    check_laws(quantile_huber, normal(POP, TIME, BATCH, N), advantage, valid)
    check_laws(approx_kl, ratio, valid)
    check_laws(clip_fraction, ratio, CLIP, valid)
