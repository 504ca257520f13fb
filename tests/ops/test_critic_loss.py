"""Losses of the critic against rlax's formulas, NumPy loops and arithmetic by hand."""

from functools import partial

import numpy as np
import pytest
import torch

from popgraft.config import NetworkConfig
from popgraft.nn.critics.categorical import categorical_cross_entropy, two_hot
from popgraft.nn.critics.quantile import quantile_huber
from popgraft.nn.critics.scalar import ScalarCritic
from popgraft.ops.critic_loss import critic_loss

POP, TIME, BATCH, CRITICS, N = 3, 4, 5, 2, 7
SUPPORT = (-1.5, 3.0)
squared_error = ScalarCritic(NetworkConfig()).loss
INF = float("inf")
LOSSES = {
    "quantile": (quantile_huber, N),
    "categorical": (partial(categorical_cross_entropy, support=SUPPORT), N),
    "scalar": (squared_error, 1),
}


@pytest.fixture(params=LOSSES)
def loss_and_atoms(request):
    return LOSSES[request.param]


@pytest.fixture
def valid(normal):
    return (normal(POP, TIME, BATCH) > -0.5).double()


def chosen(x, valid, m):
    """Member m's samples that count, as NumPy."""
    return x[m][valid[m] == 1].detach().numpy()


def rlax_quantile_regression_loss(quantiles, target, huber):
    """rlax `quantile_regression_loss` for one target sample: a sum over quantiles, where ours is a mean."""
    n = len(quantiles)
    delta = target - quantiles
    weight = np.abs((np.arange(n) + 0.5) / n - (delta < 0))
    quadratic = np.minimum(np.abs(delta), huber)
    loss = 0.5 * quadratic**2 + huber * (np.abs(delta) - quadratic)
    return np.sum(weight * loss)


@pytest.mark.parametrize("kappa", [0.3, 1.0, 4.0])
def test_quantile_huber_times_n_is_rlaxs(kappa, normal):
    quantiles, target = 2 * normal(POP, TIME, N), 2 * normal(POP, TIME)
    found = N * quantile_huber(quantiles, target, kappa)
    for where in np.ndindex(POP, TIME):
        expected = rlax_quantile_regression_loss(quantiles[where].numpy(), float(target[where]), kappa)
        assert float(found[where]) == pytest.approx(expected, abs=1e-12)


def test_quantile_huber_by_hand():
    # q = 0, 4; G = 1; τ = ¼, ¾; κ = 1.  u = 1, −3: weights ¼ and |¾ − 1| = ¼, Huber ½ and 3 − ½ = 5/2.
    # loss = ½ (¼·½ + ¼·5/2) = 3/8; its derivative in q is −½·¼·1 and +½·¼·1.
    quantiles = torch.tensor([[[0.0, 4.0]]], requires_grad=True)
    loss = quantile_huber(quantiles, torch.ones(1, 1))
    (grad,) = torch.autograd.grad(loss.sum(), quantiles)
    assert loss.item() == 0.375
    assert grad.flatten().tolist() == [-0.125, 0.125]


def test_quantile_gradient_in_closed_form(normal):
    """dL/dqᵢ = −|τᵢ − 1{u<0}| · clip(u, ±κ)/N."""
    quantiles, target, weight = normal(POP, TIME, N).requires_grad_(), normal(POP, TIME), normal(POP, TIME)
    (grad,) = torch.autograd.grad((weight * quantile_huber(quantiles, target, 0.7)).sum(), quantiles)
    u = target.numpy()[..., None] - quantiles.detach().numpy()
    slope = np.abs((np.arange(N) + 0.5) / N - (u < 0)) * np.clip(u, -0.7, 0.7)
    np.testing.assert_allclose(grad, -slope * weight.numpy()[..., None] / N, rtol=0, atol=1e-14)


def test_the_minimiser_is_the_empirical_quantiles(normal):
    """Subgradient descent on free quantiles of a sample; κ far below the gaps between samples."""
    sample = normal(1, 31)
    levels = (np.arange(N) + 0.5) / N
    quantiles = torch.zeros(N).double().requires_grad_()
    for step in range(1500):
        loss = quantile_huber(quantiles.expand(1, 31, N), sample, 1e-4).mean()
        (grad,) = torch.autograd.grad(loss, quantiles)
        with torch.no_grad():  # the subgradient is κ(F(q) − τ)/N
            quantiles -= grad / 1e-4 * N * 0.99**step
    expected = np.quantile(sample.numpy(), levels, method="inverted_cdf")
    np.testing.assert_allclose(quantiles.detach(), expected, rtol=0, atol=2e-3)


def test_gradients_are_numerically_right(loss_and_atoms, normal):
    loss, atoms = loss_and_atoms
    predictions, target = normal(POP, TIME, atoms).requires_grad_(), normal(POP, TIME)
    assert torch.autograd.gradcheck(lambda q: loss(q, target), predictions)


def test_two_hot_by_hand():
    # Atoms −1, 0, 1, 2. G = 0.25 lies ¼ of the way from 0 to 1; −7 and 9 are clipped to the ends.
    found = two_hot(torch.tensor([[0.25, -1.0, 2.0, -7.0, 9.0]]), (-1.0, 2.0), 4)
    expected = [[0, 0.75, 0.25, 0], [1, 0, 0, 0], [0, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_two_hot_equals_a_loop_and_keeps_the_mean(normal):
    target = 2 * normal(POP, 200)
    atoms = np.linspace(*SUPPORT, N)
    found = two_hot(target, SUPPORT, N).numpy()
    for where in np.ndindex(POP, 200):
        g = float(np.clip(float(target[where]), *SUPPORT))
        above = min(max(int(np.searchsorted(atoms, g)), 1), N - 1)
        expected = np.zeros(N)
        expected[above] = (g - atoms[above - 1]) / (atoms[above] - atoms[above - 1])
        expected[above - 1] = 1 - expected[above]
        np.testing.assert_allclose(found[where], expected, rtol=0, atol=1e-12)
        assert found[where] @ atoms == pytest.approx(g, abs=1e-12)
    assert (target < SUPPORT[0]).any()
    assert (target > SUPPORT[1]).any()


def test_cross_entropy_equals_torchs(normal):
    logits, target = normal(POP, TIME, N), 2 * normal(POP, TIME)
    flat = two_hot(target, SUPPORT, N).flatten(0, 1)
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), flat, reduction="none").view(POP, TIME)
    torch.testing.assert_close(categorical_cross_entropy(logits, target, SUPPORT), expected, atol=1e-12, rtol=0)


def test_cross_entropy_is_least_at_the_projection(normal):
    """Its gradient in the logits is softmax − p, which is 0 there."""
    target = normal(POP, TIME)
    logits = (two_hot(target, SUPPORT, N) + 1e-12).log().requires_grad_()
    (grad,) = torch.autograd.grad(categorical_cross_entropy(logits, target, SUPPORT).sum(), logits)
    assert grad.abs().max() < 1e-9


def test_squared_error_is_torchs(normal):
    values, target = normal(POP, TIME, 1), normal(POP, TIME)
    expected = torch.nn.functional.mse_loss(values.squeeze(-1), target, reduction="none")
    assert torch.equal(squared_error(values, target), expected)


def test_critic_loss_is_the_mean_over_valid_samples_and_critics(loss_and_atoms, normal, valid):
    loss, atoms = loss_and_atoms
    predictions, target = normal(POP, TIME, BATCH, CRITICS, atoms), normal(POP, TIME, BATCH)
    found = critic_loss(loss, predictions, target, valid)
    for m in range(POP):
        each = [chosen(loss(predictions[..., c, :], target), valid, m).mean() for c in range(CRITICS)]
        assert float(found[m]) == pytest.approx(np.mean(each), abs=1e-12)
    assert not critic_loss(loss, predictions, target, torch.zeros_like(valid)).any()


@pytest.mark.parametrize("kind", ["quantile", "scalar"])
def test_value_clipping_equals_a_loop(kind, normal, valid):
    loss, atoms = LOSSES[kind]
    q, old, target = (
        normal(POP, TIME, BATCH, CRITICS, atoms),
        normal(POP, TIME, BATCH, CRITICS, atoms),
        normal(POP, TIME, BATCH),
    )
    clip = torch.tensor([0.1, 0.5, INF]).double()
    found = critic_loss(loss, q, target, valid, old, clip)

    def numpy_loss(atoms, g):
        if kind == "scalar":
            return (atoms[0] - g) ** 2
        return rlax_quantile_regression_loss(atoms, g, 1.0) / N

    for m in range(POP):
        losses = []
        for now, then, g in zip(chosen(q, valid, m), chosen(old, valid, m), chosen(target, valid, m), strict=True):
            for c in range(CRITICS):
                near = then[c] + np.clip(now[c] - then[c], -float(clip[m]), float(clip[m]))
                losses.append(max(numpy_loss(now[c], g), numpy_loss(near, g)))
        assert float(found[m]) == pytest.approx(np.mean(losses), abs=1e-12)
    off = critic_loss(loss, q, target, valid)
    assert torch.equal(found[2], off[2])
    assert (found[:2] > off[:2]).all()


def test_an_infinite_clip_is_off_in_the_gradient_too(normal, valid):
    q, old = normal(POP, TIME, BATCH, CRITICS, N).requires_grad_(), normal(POP, TIME, BATCH, CRITICS, N)
    target, clip = normal(POP, TIME, BATCH), torch.full((POP,), INF).double()
    (on,) = torch.autograd.grad(critic_loss(quantile_huber, q, target, valid, old, clip).sum(), q)
    (off,) = torch.autograd.grad(critic_loss(quantile_huber, q, target, valid).sum(), q)
    assert torch.equal(on, off)


def test_a_prediction_that_has_moved_far_towards_the_target_gets_no_gradient():
    # old 0, G = 5, clip 1. At q = 2, (2 − 5)² = 9 is below the clipped (1 − 5)² = 16: held. At q = −2,
    # (−2 − 5)² = 49 is above the clipped (−1 − 5)² = 36: pulled back with 2·(−7) = −14. Mean of two samples.
    q = torch.tensor([[[[2.0]], [[-2.0]]]], requires_grad=True)
    loss = critic_loss(
        squared_error, q, torch.full((1, 2), 5.0), torch.ones(1, 2), torch.zeros(1, 2, 1, 1), torch.ones(1)
    )
    (grad,) = torch.autograd.grad(loss.sum(), q)
    assert loss.tolist() == [(16 + 49) / 2]
    assert grad.flatten().tolist() == [0, -7]


def test_samples_that_do_not_count_change_neither_value_nor_gradient(loss_and_atoms, normal, valid):
    loss, atoms = loss_and_atoms
    predictions, target = normal(POP, TIME, BATCH, CRITICS, atoms), normal(POP, TIME, BATCH)

    def everything():
        leaf = predictions.clone().requires_grad_()
        value = critic_loss(loss, leaf, target, valid)
        return [value, *torch.autograd.grad(value.sum(), leaf)]

    before = everything()
    assert (valid == 0).any()
    for x in (predictions, target):
        x[valid == 0] = 2.5
    for a, b in zip(before, everything(), strict=True):
        assert torch.equal(a, b)


def test_population_laws(loss_and_atoms, normal, valid, check_laws):
    loss, atoms = loss_and_atoms
    predictions, target = normal(POP, TIME, BATCH, CRITICS, atoms), normal(POP, TIME, BATCH)
    old, clip = normal(POP, TIME, BATCH, CRITICS, atoms), torch.tensor([0.2, 1.0, INF]).double()
    check_laws(loss, predictions[..., 0, :], target)
    check_laws(partial(critic_loss, loss), predictions, target, valid)
    check_laws(partial(critic_loss, loss), predictions, target, valid, old, clip)
