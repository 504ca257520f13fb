"""Attacks: the geometry of ball and box against closed forms and Dykstra's algorithm, and the population laws."""

import math

import numpy as np
import pytest
import torch

from popgraft.adversary import perturb
from popgraft.adversary.attack import Region
from popgraft.config.adversary import PerturbationConfig

POP, TIME, BATCH, N = 3, 2, 4, 5
SHAPE = (POP, TIME, BATCH, N)
RADIUS = torch.tensor([0.1, 0.0, 0.7]).double()
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
methods = pytest.mark.parametrize("method", ["pgd", "fgsm", "random"])
BOXES = {"free": {}, "box": {"clip_min": -0.5, "clip_max": 0.6}, "floor": {"clip_min": 0.0}}
boxes = pytest.mark.parametrize("box", BOXES)


def settings(**kwargs):
    return PerturbationConfig(**{"epsilon": 0.1, "attack_lr": 0.03, **kwargs})


def length(delta, norm):
    return torch.linalg.vector_norm(delta, math.inf if norm == "linf" else 2, dim=-1)


@pytest.fixture
def draw():
    generator = torch.Generator().manual_seed(5)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@pytest.fixture
def noise():
    generator = torch.Generator().manual_seed(6)
    return torch.rand(2, *SHAPE, generator=generator, dtype=torch.float64)


def network(weights):
    """A smooth objective, one number per sequence; weights [pop, n, n]."""
    return lambda x: (torch.einsum("ptbn,pnk->ptbk", x, weights).tanh() * x.cos()).sum((1, 3))


def linear(w):
    return lambda x: (x * w).sum((1, 3))


@norms
@methods
@boxes
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("divergence", [True, False])
def test_stays_in_ball_and_box_and_zero_radius_gives_zero(norm, method, box, dtype, divergence, draw, noise):
    config = settings(norm_type=norm, attack_method=method, attack_steps=4, attack_lr=0.06, **BOXES[box])
    x, weights = draw(*SHAPE).to(dtype), draw(POP, N, N).to(dtype)
    delta = perturb(network(weights), x, RADIUS.to(dtype), noise.to(dtype), config, divergence)
    assert (length(delta, norm).amax((1, 2)) <= RADIUS + 1e-7).all()
    assert not delta[1].any()
    assert delta[[0, 2]].any()
    low, high = (BOXES[box].get(name) for name in ("clip_min", "clip_max"))
    moved = x + delta
    if low is not None:
        assert (moved >= torch.minimum(x, torch.tensor(low)) - 1e-6).all()
    if high is not None:
        assert (moved <= torch.maximum(x, torch.tensor(high)) + 1e-6).all()


@norms
@boxes
@pytest.mark.parametrize("method", ["pgd", "fgsm"])
@pytest.mark.parametrize("random_init", [True, False])
@pytest.mark.parametrize("rate", [0.001, 0.03, 1.0])
def test_the_objective_never_falls_on_linear_models(norm, box, method, random_init, rate, draw, noise):
    config = settings(norm_type=norm, attack_method=method, random_init=random_init, attack_lr=rate, **BOXES[box])
    x, objective = draw(*SHAPE), linear(draw(*SHAPE))
    delta = perturb(objective, x, RADIUS, noise[:1], config)
    assert (objective(x + delta) >= objective(x) - 1e-12).all()
    # Nor from one step to the next.
    steps = [
        perturb(objective, x, RADIUS, noise[:1], config.model_copy(update={"attack_steps": k}), divergence=True)
        for k in range(1, 6)
    ]
    values = torch.stack([objective(x + step) for step in steps])
    assert (values.diff(dim=0) >= -1e-7).all()  # the projection is accurate to 2⁻³⁰ of a step


@norms
@pytest.mark.parametrize("method", ["pgd", "fgsm"])
def test_finds_the_maximum_of_a_linear_objective(norm, method, draw, noise):
    """ε‖w‖₁ in l∞ and ε‖w‖₂ in l2, for every observation."""
    w, x = draw(*SHAPE), draw(*SHAPE)
    config = settings(norm_type=norm, attack_method=method, attack_steps=40)
    delta = perturb(linear(w), x, RADIUS, noise[:1], config)
    best = RADIUS.view(-1, 1, 1) * (w.abs().sum(-1) if norm == "linf" else w.norm(dim=-1))
    torch.testing.assert_close((w * delta).sum(-1), best, atol=1e-4, rtol=0)
    if method == "fgsm":
        direction = w.sign() if norm == "linf" else w / w.norm(dim=-1, keepdim=True)
        torch.testing.assert_close(delta, RADIUS.view(-1, 1, 1, 1) * direction, atol=1e-12, rtol=1e-12)


def test_one_step_by_hand():
    """x = (0, 0), J = 3x₁ − 4x₂, ε = 0.1, α = 0.05: l∞ moves by (+α, −α), l2 by α(0.6, −0.8)."""
    x, w = torch.zeros(1, 1, 1, 2), torch.tensor([3.0, -4.0])
    expected = {"linf": [0.05, -0.05], "l2": [0.03, -0.04]}
    for norm, delta in expected.items():
        config = settings(norm_type=norm, attack_steps=1, attack_lr=0.05, random_init=False)
        found = perturb(linear(w), x, torch.tensor([0.1]), torch.zeros(1, 1, 1, 1, 2), config)
        torch.testing.assert_close(found.flatten(), torch.tensor(delta))
        # At twice the radius a step is twice as long.
        found = perturb(linear(w), x, torch.tensor([0.2]), torch.zeros(1, 1, 1, 1, 2), config)
        torch.testing.assert_close(found.flatten(), 2 * torch.tensor(delta))


@norms
@pytest.mark.parametrize(
    ("given", "share"),
    [
        ({"epsilon": 0}, 0.4),  # 0.03 at the default radius, 0.075
        ({"epsilon": 0, "attack_lr": 0.06}, 0.8),
        ({"epsilon": 0.5, "attack_lr": 0.1}, 0.2),
        ({"epsilon": 5e-324}, 1.0),
        ({"epsilon": 1e-30, "attack_lr": 1e300}, 1.0),
    ],
)
def test_steps_follow_the_own_radius_of_a_member_whatever_is_configured(norm, given, share):
    """From x = 0, along the first axis, with radii of 0.1, 0 and 0.7; a step across the ball ends at its surface."""
    config = PerturbationConfig(norm_type=norm, attack_steps=1, random_init=False, **given)
    x, w = torch.zeros(POP, 1, 1, 2), torch.tensor([3.0, 0.0])
    delta = perturb(linear(w), x, RADIUS.float(), torch.zeros(1, POP, 1, 1, 2), config)
    expected = torch.stack([share * RADIUS.float(), torch.zeros(POP)], dim=1)
    torch.testing.assert_close(delta.view(POP, 2), expected)


def dykstra(v, radius, low, high, sweeps=4000):
    """The nearest point of the intersection of an l2 ball and a box (Boyle & Dykstra 1986)."""
    x, p, q = v.copy(), np.zeros_like(v), np.zeros_like(v)
    for _ in range(sweeps):
        y = np.clip(x + p, low, high)
        p = x + p - y
        x = (y + q) * min(1, radius / np.linalg.norm(y + q))
        q = y + q - x
    return x


def test_the_l2_projection_is_the_nearest_point_of_ball_and_box(draw):
    v, x = 2 * draw(1, 1, 20, N), 0.5 * draw(1, 1, 20, N)
    region = Region.around(x, torch.tensor([0.7]).double(), settings(norm_type="l2", clip_min=-0.5, clip_max=0.6))
    low, high = torch.minimum(torch.tensor(-0.5), x), torch.maximum(torch.tensor(0.6), x)
    expected = [
        dykstra(v[0, 0, i].numpy(), 0.7, (low - x)[0, 0, i].numpy(), (high - x)[0, 0, i].numpy()) for i in range(20)
    ]
    torch.testing.assert_close(region.project(v)[0, 0], torch.tensor(np.array(expected)), atol=1e-5, rtol=0)
    inside = 0.01 * region.project(v)
    torch.testing.assert_close(region.project(inside), inside)


def test_an_observation_outside_the_box_moves_no_further_away():
    x, w = torch.tensor([2.0, -2.0]).view(1, 1, 1, 2), torch.ones(2)
    config = settings(clip_min=-1.0, clip_max=1.0, random_init=False, attack_steps=9)
    delta = perturb(linear(w), x, torch.tensor([0.1]), torch.zeros(1, 1, 1, 1, 2), config)
    torch.testing.assert_close(delta.flatten(), torch.tensor([0.0, 0.1]))


@methods
def test_gradients_reach_the_perturbation_only(method, draw, noise):
    weights = draw(POP, N, N).requires_grad_()
    x = draw(*SHAPE).requires_grad_()
    with torch.no_grad():
        delta = perturb(network(weights), x, RADIUS, noise, settings(attack_method=method))
    assert weights.grad is None
    assert x.grad is None
    assert not delta.requires_grad


@norms
def test_a_divergence_is_attacked_from_a_random_point(norm, draw, noise):
    """Its gradient at δ = 0 is zero, where an attack would stay."""
    x, weights = draw(*SHAPE), draw(POP, N, N)
    before = torch.einsum("ptbn,pnk->ptbk", x, weights)

    def objective(x):
        return (torch.einsum("ptbn,pnk->ptbk", x, weights) - before).square().sum((1, 3))

    config = settings(norm_type=norm, random_init=False, attack_steps=20)
    assert not perturb(objective, x, RADIUS, noise, config, divergence=False).any()
    found = objective(x + perturb(objective, x, RADIUS, noise[:1], config, divergence=True))
    start = Region.around(x, RADIUS, config).project((2 * noise[0] - 1) * RADIUS.view(-1, 1, 1, 1))
    assert (found > objective(x + start))[[0, 2]].all()


def test_more_restarts_are_never_worse(draw, noise):
    x, objective = draw(*SHAPE), network(3 * draw(POP, N, N))
    both, *alone = (
        objective(x + perturb(objective, x, RADIUS, u, settings(attack_steps=2), divergence=True))
        for u in (noise, noise[:1], noise[1:])
    )
    torch.testing.assert_close(both, torch.maximum(*alone), atol=1e-12, rtol=0)
    assert (alone[0] != alone[1]).any()


def test_a_whole_sequence_is_attacked(draw, noise):
    """What counts is the last step, but a memory carries the first one there."""
    config = settings(random_init=False)
    delta = perturb(lambda x: x.cumsum(1)[:, -1].sum(-1), draw(*SHAPE), RADIUS, noise, config)
    torch.testing.assert_close(delta, RADIUS.view(-1, 1, 1, 1).expand(SHAPE) * 0.9)


@norms
@boxes
@methods
def test_population_laws(norm, box, method, draw, noise):
    x, weights = draw(*SHAPE), draw(POP, N, N)
    config = settings(norm_type=norm, attack_method=method, **BOXES[box])
    whole = perturb(network(weights), x, RADIUS, noise, config)
    singles = [
        perturb(network(weights[m : m + 1]), x[m : m + 1], RADIUS[m : m + 1], noise[:, m : m + 1], config)
        for m in range(POP)
    ]
    torch.testing.assert_close(whole, torch.cat(singles), atol=1e-12, rtol=0)
    order = [2, 0, 1]
    permuted = perturb(network(weights[order]), x[order], RADIUS[order], noise[:, order], config)
    torch.testing.assert_close(permuted, whole[order], atol=1e-12, rtol=0)
    spoilt = weights.clone()
    spoilt[1] = math.nan
    assert torch.equal(perturb(network(spoilt), x, RADIUS, noise, config)[[0, 2]], whole[[0, 2]])


@pytest.mark.parametrize("n", [1, 2, 5])
def test_random_points_are_uniform_in_an_l2_ball(n):
    """(‖δ‖/ε)ⁿ is uniform on [0, 1], and no direction is preferred: E[δδᵀ] = ε²/(n + 2) · 1."""
    count, radius = 40_000, 0.3
    noise = torch.rand(1, 1, count, n, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise[0, 0, 0] = 0
    region = Region.around(torch.zeros_like(noise), torch.tensor([radius]).double(), settings(norm_type="l2"))
    delta = region.scatter(noise)[0, 0]
    assert delta.isfinite().all()
    share = (delta.norm(dim=-1) / radius) ** n
    rank = torch.linspace(0, 1, count, dtype=torch.float64)
    assert (share.sort().values - rank).abs().max() < 1.63 / count**0.5  # Kolmogorov & Smirnov, 1 %
    torch.testing.assert_close(delta.mean(0), torch.zeros(n).double(), atol=4 * radius / count**0.5, rtol=0)
    covariance = delta.T @ delta / count
    torch.testing.assert_close(covariance, radius**2 / (n + 2) * torch.eye(n).double(), atol=1e-3, rtol=0)
