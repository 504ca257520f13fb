"""Every term of the loss against its formula, written out in NumPy or worked out by hand."""

import numpy as np
import pytest
import torch

from popgraft.ops.losses import MAX_LOG_RATIO, approx_kl, clip_fraction, clipped_surrogate, log_ratio

POP, TIME, BATCH = 3, 4, 5
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
    ratio, advantage = normal(POP, TIME, BATCH), normal(POP, TIME, BATCH)
    holes = valid == 0
    assert holes.any()

    def everything(ratio, advantage):
        leaf = ratio.clone().requires_grad_()
        values = [
            clipped_surrogate(leaf, advantage, CLIP, valid),
            approx_kl(leaf, valid),
            clip_fraction(leaf, CLIP, valid),
        ]
        return [*values, *torch.autograd.grad(sum(value.sum() for value in values[:2]), leaf)]

    before = everything(ratio, advantage)
    for x in (ratio, advantage):
        x[holes] = 3.0
    for a, b in zip(before, everything(ratio, advantage), strict=True):
        assert torch.equal(a, b)


def test_population_laws(normal, valid, check_laws):
    ratio, advantage = normal(POP, TIME, BATCH), normal(POP, TIME, BATCH)
    check_laws(clipped_surrogate, ratio, advantage, CLIP, valid)
    check_laws(approx_kl, ratio, valid)
    check_laws(clip_fraction, ratio, CLIP, valid)
