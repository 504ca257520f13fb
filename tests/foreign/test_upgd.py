"""The torch.optim classes: against torch's own optimizers, against the kernel, and as optimizers ought to behave."""

import copy
import io
import logging
import math
import pickle

import numpy as np
import pytest
import torch

from popgraft.errors import ConfigError
from popgraft.foreign import UPGD, UPGDW, AdaptiveUPGD
from popgraft.optim import UPGDRule, draw_noise_, initial_upgd_state, upgd_

KINDS = [UPGD, AdaptiveUPGD, UPGDW]
SHAPES = [(3, 4), (4,), (), (2, 1, 3)]
ADAPTIVE_NOISE = {"adaptive_noise": True, "instant_noise_scale": False, "noise_beta": 0.5}


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator)


@pytest.fixture
def make(normal):
    return lambda: [torch.nn.Parameter(normal(*shape)) for shape in SHAPES]


def train(optimizer, steps, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.randn(p.shape, generator=generator)
        optimizer.step()


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize(
    ("ours", "theirs", "settings", "adam"),
    [
        (AdaptiveUPGD, torch.optim.Adam, {"weight_decay": 0.0}, {}),
        (
            UPGDW,
            torch.optim.AdamW,
            {"betas": (0.5, 0.9), "weight_decay": 0.3},
            {"betas": (0.5, 0.9), "weight_decay": 0.3},
        ),
    ],
)
def test_the_first_step_from_zero_is_adams(ours, theirs, settings, adam, normal):
    mine, other = ([torch.nn.Parameter(torch.zeros(shape)) for shape in SHAPES] for _ in range(2))
    for a, b in zip(mine, other, strict=True):
        a.grad = normal(*a.shape)
        b.grad = a.grad.clone()
    ours(mine, lr=0.1, sigma=0.0, utility_gain=2.0, seed=0, **settings).step()
    theirs(other, lr=0.1, **adam).step()
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"adaptive_noise": True}, {**ADAPTIVE_NOISE, "noise_scaling": "l2"}])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_the_kernel_over_the_flat_parameters(kind, settings, make):
    params = make()
    sizes = [p.numel() for p in params]
    flat = torch.cat([p.detach().flatten() for p in params]).unsqueeze(0)
    optimizer = kind(params, lr=0.01, sigma=0.1, weight_decay=0.1, seed=3, **settings)
    rule = optimizer.rule(optimizer.param_groups[0])
    state, noise, generator = (
        initial_upgd_state(flat, sizes, rule),
        torch.empty_like(flat),
        torch.Generator().manual_seed(3),
    )
    for seed in range(4):
        train(optimizer, 1, seed)
        for part in noise.split(sizes, dim=1):
            draw_noise_(part, [generator])
        grad = torch.cat([p.grad.flatten() for p in params]).unsqueeze(0)
        scalars = (torch.tensor([x]) for x in (0.01, 0.1, 0.1))
        upgd_(flat, grad, state, noise, *scalars, torch.ones(1, dtype=torch.bool), sizes=sizes, rule=rule)
    ours = torch.cat([p.detach().flatten() for p in params])
    torch.testing.assert_close(ours, flat[0], atol=1e-6, rtol=1e-5)


def test_utilities_compete_over_all_groups_and_settings_stay_within_them():
    # u = −gθ: 2 and 1 under one η = 2, so the gates are 1 − σ(1) and 1 − σ(½).
    first, second = (torch.nn.Parameter(torch.tensor([x])) for x in (2.0, 1.0))
    first.grad = second.grad = torch.tensor([-1.0])
    groups = [{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.5, "weight_decay": 0.2, "utility_gain": 2.0}]
    UPGD(groups, sigma=0.0, weight_decay=0.0, seed=0).step()
    assert first.item() == pytest.approx(2 + 0.1 / (1 + math.exp(1)))
    assert second.item() == pytest.approx(0.9 * 1 + 2 * 0.5 / (1 + math.exp(0.5)))


def test_parameters_that_join_later_have_a_correction_of_their_own():
    # Equal corrected utilities of −gθ = 1 although one average holds two steps and the other one: equal gates 1 − σ(1).
    old, new = (torch.nn.Parameter(torch.ones(1)) for _ in range(2))
    optimizer = UPGD([old, new], lr=0.0, sigma=0.0, weight_decay=0.0, seed=0)
    old.grad = -torch.ones(1)
    optimizer.step()
    assert not optimizer.state.get(new)
    new.grad, optimizer.param_groups[0]["lr"] = -torch.ones(1), 1.0
    optimizer.step()
    expected = 1 + 1 / (1 + math.exp(1))
    assert [old.item(), new.item()] == pytest.approx([expected, expected])
    assert [optimizer.state[p]["step"] for p in (old, new)] == [2, 1]


@pytest.mark.parametrize("settings", [{}, ADAPTIVE_NOISE])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", ["state_dict", "deepcopy", "pickle"])
def test_continues_bit_for_bit(through, kind, settings, make):
    params = make()
    optimizer = kind(params, lr=0.01, sigma=0.1, seed=3, **settings)
    train(optimizer, 3)
    optimizer.skipped_steps = 2
    if through == "state_dict":
        others, buffer = [torch.nn.Parameter(p.detach().clone()) for p in params], io.BytesIO()
        torch.save(optimizer.state_dict(), buffer)
        buffer.seek(0)
        other = kind(others, seed=99)
        other.load_state_dict(torch.load(buffer, weights_only=True))
    else:
        other = copy.deepcopy(optimizer) if through == "deepcopy" else pickle.loads(pickle.dumps(optimizer))
        others = other.param_groups[0]["params"]
    assert other.skipped_steps == 2
    train(optimizer, 3, seed=2)
    train(other, 3, seed=2)
    assert same(params, others)


def test_noise_has_a_stream_of_its_own(make):
    params = make()
    others = copy.deepcopy(params)
    train(UPGD(params, lr=0.1, sigma=1.0, seed=5), 2)
    train(UPGD(others, lr=0.1, sigma=1.0, seed=5), 2)
    assert same(params, others)
    with torch.random.fork_rng(devices=[]):
        drawn = [UPGD(make(), seed=None).generator.initial_seed() for _ in range(2)]
    assert drawn[0] != drawn[1]


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
@pytest.mark.parametrize("kind", KINDS)
def test_a_gradient_that_is_not_finite_skips_the_step(kind, garbage, make, caplog):
    params, twins = (copy.deepcopy(part) for part in [make()] * 2)
    optimizer, twin = (kind(part, lr=0.1, sigma=0.1, seed=1) for part in (params, twins))
    train(optimizer, 1)
    train(twin, 1)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            params[0].grad[0, 0] = garbage
            optimizer.step()
    assert same(params, twins)
    assert optimizer.skipped_steps == 2
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    train(optimizer, 2, seed=4)
    train(twin, 2, seed=4)
    assert same(params, twins)


def test_a_first_gradient_that_is_not_finite_leaves_no_state(make):
    params = make()
    optimizer = UPGDW(params, seed=1)
    params[0].grad = torch.full((3, 4), math.nan)
    optimizer.step()
    assert not optimizer.state


def test_closure_scheduler_and_new_groups(make, normal):
    params = make()
    optimizer = AdaptiveUPGD(params, lr=0.1, sigma=0.0, seed=1)
    target = [normal(*p.shape) for p in params]

    def closure():
        optimizer.zero_grad()
        loss = sum((p - t).square().sum() for p, t in zip(params, target, strict=True))
        loss.backward()
        return loss

    first = optimizer.step(closure).item()
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    for _ in range(150):
        optimizer.step(closure)
        schedule.step()
    assert optimizer.param_groups[0]["lr"] < 0.01
    assert optimizer.step(closure).item() < 0.05 * first
    late = torch.nn.Parameter(torch.ones(2))
    optimizer.add_param_group({"params": [late], "lr": 0.5})
    train(optimizer, 1)
    assert (late != 1).all()


def test_layouts_other_than_contiguous(normal):
    plain = torch.nn.Parameter(normal(2, 3, 4))
    strided = torch.nn.Parameter(plain.detach().permute(2, 0, 1).contiguous().permute(1, 2, 0))
    empty = torch.nn.Parameter(torch.zeros(0))
    assert not strided.is_contiguous()
    for p in (plain, strided):
        train(UPGDW([p, empty], lr=0.1, sigma=0.1, seed=1), 2)
    torch.testing.assert_close(plain, strided)


def test_double_precision_follows_the_formula(normal):
    # UPGD's first step: U/(1 − β) = u, so θ ← (1 − αλ)θ − α g · sigmoid(−u/max u).
    p = torch.nn.Parameter(normal(6).double())
    theta, g = p.detach().numpy().copy(), normal(6).double()
    p.grad = g.clone()
    UPGD([p], lr=0.1, weight_decay=0.2, sigma=0.0, seed=0).step()
    u = -g.numpy() * theta
    expected = 0.98 * theta - 0.1 * g.numpy() / (1 + np.exp(u / u.max()))
    np.testing.assert_allclose(p.detach().numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (UPGD, {"lr": -1.0}, "lr=-1"),
        (UPGD, {"sigma": math.nan}, "sigma=nan"),
        (UPGD, {"beta_utility": 1.0}, "beta_utility=1"),
        (UPGD, {"noise_scaling": "max"}, "noise_scaling='max'"),
        (AdaptiveUPGD, {"beta1": 1.5}, "beta1=1.5"),
        (AdaptiveUPGD, {"noise_beta": -0.1}, "noise_beta=-0.1"),
        (UPGDW, {"betas": (0.9, 1.0)}, r"betas\[1\]=1.0"),
        (UPGDW, {"weight_decay": math.inf}, "weight_decay=inf"),
    ],
)
def test_settings_outside_their_range(kind, settings, message, make):
    with pytest.raises(ValueError, match=message):
        kind(make(), seed=0, **settings)
    with pytest.raises(ValueError, match=message):
        kind([{"params": make(), **settings}], seed=0)


def test_a_foreign_state_dict_is_refused(make):
    params = make()
    optimizer = UPGD(params, seed=0)
    with pytest.raises(ValueError, match="noise_generator"):
        optimizer.load_state_dict(torch.optim.SGD(params, lr=0.1).state_dict())


@pytest.mark.parametrize("steps", [0, 2])
@pytest.mark.parametrize(("kind", "other"), [(a, b) for a in KINDS for b in KINDS if a is not b])
def test_the_state_of_another_kind_is_refused_and_nothing_changes(kind, other, steps, make):
    params = make()
    optimizer, foreign = kind(params, lr=0.1, seed=0), other(make(), lr=0.2, seed=1)
    train(optimizer, 2)
    train(foreign, steps)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ConfigError, match=f"not of {kind.__name__}: .* load one that"):
        optimizer.load_state_dict(foreign.state_dict())
    twins = copy.deepcopy(params)
    twin = kind(twins, seed=5)
    twin.load_state_dict(before)
    train(optimizer, 1)
    train(twin, 1)
    assert same(params, twins)


@pytest.mark.parametrize("damage", ["utility", "exp_avg_sq", "extra"])
def test_averages_that_are_not_the_rules_are_refused(damage, make):
    optimizer = AdaptiveUPGD(make(), seed=0)
    train(optimizer, 1)
    state = copy.deepcopy(optimizer.state_dict())
    if damage == "extra":
        state["state"][1]["extra"] = torch.zeros(4)
    else:
        del state["state"][1][damage]
    with pytest.raises(ConfigError, match=damage):
        optimizer.load_state_dict(state)


@pytest.mark.parametrize("first", [True, False])
def test_groups_with_entries_of_their_own_are_loaded(first, make):
    params, others = make(), make()
    optimizer, other = UPGDW(params, lr=0.1, seed=0), UPGDW(others, lr=0.1, seed=1)
    torch.optim.lr_scheduler.ExponentialLR(optimizer if first else other, 0.9)
    for _ in range(2):
        train(optimizer, 1)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        for ours, theirs in zip(params, others, strict=True):
            theirs.data.copy_(ours.data)
        train(optimizer, 1)
        train(other, 1)
        assert same(params, others)


def test_an_average_of_norms_cannot_begin_late(make):
    params = make()
    optimizer = UPGD(params, lr=0.1, sigma=0.1, seed=0)
    train(optimizer, 2)
    optimizer.param_groups[0].update(ADAPTIVE_NOISE)
    twins, before = copy.deepcopy(params), copy.deepcopy(optimizer.state_dict())
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"no grad_norm.*optimizer\.state\.clear"):
            optimizer.step()
    assert same(params, twins)
    assert [own["step"] for own in optimizer.state.values()] == [2] * len(SHAPES)
    with pytest.raises(ConfigError, match="no grad_norm"):
        optimizer.load_state_dict(before)
    optimizer.state.clear()
    train(optimizer, 1)
    optimizer.param_groups[0]["adaptive_noise"] = False
    train(optimizer, 1)
    optimizer.load_state_dict(optimizer.state_dict())


def test_signatures():
    params = [torch.nn.Parameter(torch.zeros(1))]
    upgd, adaptive, upgdw = (kind(params, seed=0).defaults for kind in KINDS)
    noise = {"adaptive_noise": False, "noise_beta": 0.999, "min_noise_std": 1e-6, "instant_noise_scale": True}
    noise |= {"noise_scaling": "rms", "utility_gain": 1.0, "sigma": 0.001}
    basic = {"lr": 1e-5, "weight_decay": 0.001, "beta_utility": 0.999, **noise}
    assert upgd == basic
    assert adaptive == {**basic, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
    assert upgdw == {"lr": 1e-4, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01, **noise}
    short = UPGDW(params, betas=(0.8, 0.95), seed=0)
    assert short.rule(short.param_groups[0]) == UPGDRule(betas=(0.8, 0.95), beta_utility=0.95)
