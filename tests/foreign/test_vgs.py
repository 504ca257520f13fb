"""The scaler of a module's parameters: its protocol, its state, and the stacked functions behind it."""

import io
import logging
import math

import pytest
import torch

from popgraft.errors import ConfigError
from popgraft.foreign.vgs import VarianceGradientScaler
from popgraft.optim.vgs import VGSRule, initial_vgs_state, measure_, normalized_variance, scaling_factor

SHAPES = [(2, 3), (4,), ()]
KEYS = {
    "step_count",
    "grad_mean_ema",
    "grad_var_ema",
    "grad_norm_ema",
    "grad_max_ema",
    "param_grad_mean_ema",
    "param_grad_sq_ema",
    "vgs_version",
}


def parameters(dtype=torch.float32):
    return [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]


@pytest.fixture
def gradients():
    """Twelve steps of gradients, fluctuating around 0.3."""
    generator = torch.Generator().manual_seed(5)
    return [[0.3 + torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(12)]


def put(params, grads):
    for parameter, grad in zip(params, grads, strict=True):
        parameter.grad = None if grad is None else grad.clone()


def flat(grads):
    return torch.cat([grad.reshape(-1) for grad in grads])


def make(params, **settings):
    return VarianceGradientScaler(params, **{"warmup_steps": 3, "alpha": 2.0, "beta": 0.8, **settings})


def reference(gradients, alpha=2.0, **settings):
    """Factor after each of the gradients, by the stacked functions."""
    rule = VGSRule(**{"warmup_steps": 3, "beta": 0.8, **settings})
    sizes, factors = [6, 4, 1], []
    state = initial_vgs_state(torch.zeros(1, 11), sizes, rule)
    for grads in gradients:
        measure_(state, flat(grads).unsqueeze(0), sizes, torch.ones(1, dtype=torch.bool), rule)
        variance = normalized_variance(state, sizes, rule)
        factors.append(scaling_factor(state, variance, torch.tensor([alpha]), rule).item())
    return factors, variance.item()


@pytest.mark.parametrize("statistic", ["spatial_mean", "per_element"])
def test_scales_gradients_by_the_stacked_factor(statistic, gradients):
    params = parameters()
    scaler = make(params, statistic=statistic, alpha=0.2)
    factors, variance = reference(gradients, alpha=0.2, statistic=statistic)
    for grads, factor in zip(gradients, factors, strict=True):
        put(params, grads)
        assert scaler.scale_gradients() == factor == scaler.get_scaling_factor()
        for parameter, grad in zip(params, grads, strict=True):
            torch.testing.assert_close(parameter.grad, grad * factor)
        scaler.step()
    assert scaler.get_normalized_variance() == variance
    assert factors[:2] == [1, 1]
    assert max(factors[2:]) < 0.95


def noise(scaler, params):
    """What may happen to gradients between scaling and the end of the step."""
    torch.nn.utils.clip_grad_norm_(params, 0.01)
    torch.optim.SGD(params, lr=0.1).step()


PROTOCOLS = {
    "scale, step": lambda s, p: (s.scale_gradients(), noise(s, p), s.step()),
    "update, scale, step": lambda s, p: (s.update_statistics(), s.scale_gradients(), noise(s, p), s.step()),
    "scale, update, step": lambda s, p: (s.scale_gradients(), noise(s, p), s.update_statistics(), s.step()),
    "scale": lambda s, p: (s.scale_gradients(), noise(s, p)),
    "update, scale": lambda s, p: (s.update_statistics(), s.scale_gradients(), noise(s, p)),
    "scale, update": lambda s, p: (s.scale_gradients(), noise(s, p), s.update_statistics()),
    "update, step": lambda s, p: (s.update_statistics(), s.step()),
    "update": lambda s, p: s.update_statistics(),
    "step": lambda s, p: s.step(),
    "reading in between": lambda s, p: (
        s.get_scaling_factor(),
        s.update_statistics(),
        s.get_normalized_variance(),
        s.scale_gradients(),
        s.state_dict(),
        s.step(),
    ),
}


@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("apply_to", ["gradient", "step"])
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_every_raw_gradient_is_measured_once(protocol, apply_to, in_place, gradients):
    params = parameters()
    scaler = make(params, apply_to=apply_to)
    factors, variance = reference(gradients)
    for step, (grads, factor) in enumerate(zip(gradients, factors, strict=True), start=1):
        if in_place and step > 1:
            for parameter, grad in zip(params, grads, strict=True):
                parameter.grad.copy_(grad)
        else:
            put(params, grads)
        PROTOCOLS[protocol](scaler, params)
        assert scaler.state_dict()["step_count"] == step
        assert scaler.get_scaling_factor() == factor
    assert scaler.get_normalized_variance() == variance


def test_apply_to_step_scales_the_learning_rate_of_the_context_only(gradients):
    params = parameters()
    groups = [{"params": params[:1], "lr": 0.5}, {"params": params[1:], "lr": torch.tensor(0.25)}]
    optimizer = torch.optim.SGD(groups)
    scaler = make(params, apply_to="step")
    total = [torch.zeros(shape) for shape in SHAPES]
    for grads, factor in zip(gradients, reference(gradients)[0], strict=True):
        put(params, grads)
        assert scaler.scale_gradients() == factor
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
        with scaler.scaled_lr(optimizer):
            optimizer.step()
        scaler.step()
        for sum_, grad, rate in zip(total, grads, [0.5, 0.25, 0.25], strict=True):
            sum_.sub_(factor * rate * grad)
        assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 0.25]
    for parameter, expected in zip(params, total, strict=True):
        torch.testing.assert_close(parameter.detach(), expected)
    with pytest.raises(KeyError), scaler.scaled_lr(optimizer):
        raise KeyError
    assert [float(group["lr"]) for group in optimizer.param_groups] == [0.5, 0.25]


def test_apply_to_gradient_leaves_the_learning_rate(gradients):
    params = parameters()
    optimizer, scaler = torch.optim.SGD(params, lr=0.5), make(params)
    for grads in gradients:
        put(params, grads)
        scaler.scale_gradients()
    assert scaler.get_scaling_factor() < 1
    with scaler.scaled_lr(optimizer):
        assert optimizer.param_groups[0]["lr"] == 0.5


def test_disabled_does_nothing(gradients):
    params = parameters()
    optimizer, scaler = torch.optim.SGD(params, lr=0.5), make(params, enabled=False, apply_to="step", warmup_steps=0)
    before = scaler.state_dict()
    for grads in gradients:
        put(params, grads)
        scaler.update_statistics()
        assert scaler.scale_gradients() == scaler.get_scaling_factor() == 1
        with scaler.scaled_lr(optimizer):
            assert optimizer.param_groups[0]["lr"] == 0.5
        scaler.step()
        assert all(torch.equal(p.grad, g) for p, g in zip(params, grads, strict=True))
    assert same(scaler.state_dict(), before)


def same(a, b):
    return set(a) == set(b) and all(torch.equal(torch.as_tensor(a[key]), torch.as_tensor(b[key])) for key in a)


def train(scaler, params, gradients):
    """Factors and scaled gradients."""
    outcomes = []
    for grads in gradients:
        put(params, grads)
        outcomes.append((scaler.scale_gradients(), flat([p.grad for p in params])))
        scaler.step()
    return outcomes


@pytest.mark.parametrize("statistic", ["spatial_mean", "per_element"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_saved_state_continues_bit_for_bit(statistic, dtype, gradients):
    gradients = [[grad.to(dtype) for grad in grads] for grads in gradients]
    params, others = parameters(dtype), parameters(dtype)
    scaler, other = make(params, statistic=statistic), make(others, statistic=statistic)
    train(scaler, params, gradients[:7])
    buffer = io.BytesIO()
    torch.save(scaler.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    assert set(state) == KEYS
    assert state["step_count"] == 7
    other.load_state_dict(state)
    found, expected = (train(s, p, gradients[7:]) for s, p in ((other, others), (scaler, params)))
    for (factor, grad), (expected_factor, expected_grad) in zip(found, expected, strict=True):
        assert factor == expected_factor < 1
        assert torch.equal(grad, expected_grad)
    assert same(other.state_dict(), scaler.state_dict())


def test_a_state_shares_no_memory_with_the_scaler(gradients):
    params = parameters()
    scaler = make(params)
    train(scaler, params, gradients[:2])
    state = scaler.state_dict()
    kept = {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in state.items()}
    train(scaler, params, gradients[2:4])
    assert same(state, kept)
    scaler.load_state_dict(state)
    train(scaler, params, gradients[4:])
    assert same(state, kept)
    assert not same(scaler.state_dict(), kept)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vgs_version": 99}, "vgs_version=99 is not 1"),
        ({"param_grad_sq_ema": torch.zeros(4)}, r"param_grad_sq_ema has shape \(4,\).*need \(3,\)"),
        ({"grad_mean_ema": torch.zeros(2)}, r"grad_mean_ema has shape \(2,\)"),
        ({"grad_max_ema": math.nan}, "grad_max_ema holds numbers"),
        ({"param_grad_sq_ema": -torch.ones(3)}, "param_grad_sq_ema holds numbers"),
        ({"step_count": -1}, "step_count holds numbers"),
        ({"step_count": "seven"}, "step_count='seven' is not a number"),
        ({"grad_norm_ema": None}, "grad_norm_ema=None is not a number"),
        ({"extra": 1}, "'extra'"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_whole(change, words, gradients):
    params = parameters()
    scaler = make(params)
    train(scaler, params, gradients)
    before, wrong = scaler.state_dict(), make(parameters()).state_dict()
    with pytest.raises(ConfigError, match=words):
        scaler.load_state_dict({**wrong, **change})
    assert same(scaler.state_dict(), before)


def test_a_state_with_a_missing_key_is_refused(gradients):
    scaler = make(parameters())
    state = scaler.state_dict()
    del state["grad_var_ema"]
    with pytest.raises(ConfigError, match="grad_var_ema"):
        scaler.load_state_dict(state)


def test_relinking_to_the_same_shapes_keeps_the_statistics(gradients):
    params, others = parameters(), parameters()
    scaler, reference_scaler = make(params), make(params)
    train(scaler, params, gradients[:6])
    expected = train(reference_scaler, params, gradients)[6:]
    before = scaler.state_dict()
    scaler.link_parameters(others)
    assert same(scaler.state_dict(), before)
    for (factor, grad), (expected_factor, expected_grad) in zip(
        train(scaler, others, gradients[6:]), expected, strict=True
    ):
        assert factor == expected_factor
        assert torch.equal(grad, expected_grad)


def test_relinking_to_other_shapes_is_refused(gradients):
    params = parameters()
    scaler = make(params)
    train(scaler, params, gradients)
    before = scaler.state_dict()
    with pytest.raises(ConfigError, match=r"shapes \[\(2, 3\), \(4,\), \(\)\] cannot describe shapes \[\(2, 3\)\]"):
        scaler.link_parameters(params[:1])
    assert same(scaler.state_dict(), before)
    assert scaler.get_scaling_factor() < 1


def test_a_parameter_without_gradient_counts_as_zero(gradients):
    params = parameters()
    scaler = make(params)
    put(params, [gradients[0][0], None, gradients[0][2]])
    scaler.scale_gradients()
    assert params[1].grad is None
    state = scaler.state_dict()
    expected = 0.2 * torch.stack([gradients[0][0].mean(), torch.tensor(0.0), gradients[0][2]])
    torch.testing.assert_close(state["param_grad_mean_ema"], expected)
    assert state["grad_norm_ema"] == pytest.approx(0.2 * float(flat([gradients[0][0], gradients[0][2]]).norm()))


def test_nothing_is_measured_without_any_gradient(gradients):
    params = parameters()
    scaler = make(params)
    for trained in (0, 12):
        train(scaler, params, gradients[:trained])
        before, factor = scaler.state_dict(), scaler.get_scaling_factor()
        for parameter in params:
            parameter.grad = None
        scaler.update_statistics()
        assert scaler.scale_gradients() == factor
        scaler.step()
        assert same(scaler.state_dict(), before)
    assert factor < 1


@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_is_passed_over_with_one_warning(garbage, gradients, caplog):
    params = parameters()
    scaler = make(params)
    train(scaler, params, gradients[:5])
    before = scaler.state_dict()
    bad = [grad.clone() for grad in gradients[5]]
    bad[1][2] = garbage
    with caplog.at_level(logging.WARNING):
        train(scaler, params, [bad, bad])
    assert same(scaler.state_dict(), before)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "not finite" in caplog.text
    train(scaler, params, gradients[5:])
    assert scaler.get_scaling_factor() == reference(gradients)[0][-1]


def test_frozen_and_repeated_parameters(gradients):
    params = parameters()
    frozen = torch.nn.Parameter(torch.zeros(5), requires_grad=False)
    scaler = make([*params, frozen, params[0]])
    train(scaler, params, gradients)
    assert scaler.state_dict()["param_grad_mean_ema"].shape == (3,)
    assert scaler.get_scaling_factor() == reference(gradients)[0][-1]


def test_half_precision_is_measured_in_single(gradients):
    params = parameters(torch.bfloat16)
    scaler = make(params)
    rounded = [[grad.bfloat16() for grad in grads] for grads in gradients]
    outcomes = train(scaler, params, rounded)
    assert outcomes[-1][0] == reference([[grad.float() for grad in grads] for grads in rounded])[0][-1]
    assert params[0].grad.dtype == torch.bfloat16


def test_a_constant_gradient_of_a_network_is_left_alone():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    scaler = VarianceGradientScaler(model.parameters(), warmup_steps=0)
    for _ in range(200):
        model.zero_grad()
        model(torch.ones(4, 3)).sum().backward()
        assert scaler.scale_gradients() == pytest.approx(1, abs=1e-5)
        scaler.step()


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"alpha": -1.0}, "alpha=-1.0 must be"),
        ({"alpha": math.nan}, "alpha=nan must be"),
        ({"apply_to": "lr"}, "apply_to='lr' must be"),
        ({"beta": 1}, "beta=1 must be"),
    ],
)
def test_settings_outside_their_range_are_refused(wrong, words):
    with pytest.raises(ConfigError, match=words):
        VarianceGradientScaler(parameters(), **wrong)


def test_nothing_to_train_is_refused():
    with pytest.raises(ConfigError, match="no parameter needs a gradient"):
        VarianceGradientScaler([torch.zeros(3)])
