"""Gradient clipping within each member against torch.nn.utils.clip_grad_norm_."""

import math

import pytest
import torch

from popgraft.optim import clip_gradient_

POP, N = 4, 9
LIMITS = torch.tensor([0.5, 0.5, 100.0, 1e-12]).double()


@pytest.fixture
def grad():
    rows = torch.randn(POP, N, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    return rows * torch.tensor([1.0, 1e-3, 1.0, 1.0]).double().unsqueeze(1)


def test_equals_torch_member_by_member(grad):
    clipped = grad.clone()
    norms = clip_gradient_(clipped, LIMITS)
    for m in range(POP):
        parameters = [torch.zeros(4).double(), torch.zeros(N - 4).double()]
        for parameter, part in zip(parameters, grad[m].split([4, N - 4]), strict=True):
            parameter.grad = part.clone()
        expected = torch.nn.utils.clip_grad_norm_(parameters, float(LIMITS[m]))
        torch.testing.assert_close(norms[m], expected, atol=1e-14, rtol=0)
        torch.testing.assert_close(clipped[m], torch.cat([p.grad for p in parameters]), atol=1e-14, rtol=0)


def test_by_hand():
    # ‖(3, 4)‖ = 5, so a limit of 1 leaves a fifth; a limit of 10 leaves everything.
    grad = torch.tensor([[3.0, 4.0], [3.0, 4.0]]).double()
    assert clip_gradient_(grad, torch.tensor([1.0, 10.0]).double()).tolist() == [5, 5]
    torch.testing.assert_close(grad, torch.tensor([[0.6, 0.8], [3, 4]]).double(), atol=1e-6, rtol=0)


def test_a_zero_gradient_stays_zero():
    grad = torch.zeros(1, N)
    assert clip_gradient_(grad, torch.ones(1)).item() == 0
    assert not grad.any()


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_shows_in_its_own_norm_only(grad, garbage):
    calm, spoilt = grad.clone(), grad.clone()
    before = clip_gradient_(calm, LIMITS)
    spoilt[1, 3] = garbage
    after = clip_gradient_(spoilt, LIMITS)
    assert after.isfinite().tolist() == [True, False, True, True]
    others = [0, 2, 3]
    assert torch.equal(before[others], after[others])
    assert torch.equal(calm[others], spoilt[others])


def test_population_laws(grad):
    whole, order = grad.clone(), torch.tensor([2, 0, 3, 1])
    norms = clip_gradient_(whole, LIMITS)
    permuted = grad[order]
    assert torch.equal(clip_gradient_(permuted, LIMITS[order]), norms[order])
    assert torch.equal(permuted, whole[order])
    for m in range(POP):
        single = grad[m : m + 1].clone()
        torch.testing.assert_close(clip_gradient_(single, LIMITS[m : m + 1])[0], norms[m], atol=1e-14, rtol=0)
        torch.testing.assert_close(single[0], whole[m], atol=1e-14, rtol=0)
