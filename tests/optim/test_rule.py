"""From the configuration to the update rule: what a learner calls, against torch.optim and arithmetic by hand."""

import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.config import ModelConfig, load_config
from popgraft.config.optimizer import OPTIMIZERS, OptimizerKwargs, VGSConfig, read_by
from popgraft.errors import ConfigError
from popgraft.optim import make_rule, make_scaler

POP, SIZES = 2, [3, 1, 4]
N = sum(SIZES)
RATE = torch.tensor([1e-3, 0.05]).double()
EVERYONE = torch.ones(POP, dtype=torch.bool)


def model(**settings) -> ModelConfig:
    return load_config({"env": {"id": "CartPole-v1"}, "model": settings}).model


def generators():
    return [torch.Generator().manual_seed(m) for m in range(POP)]


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def run(config, params, grads, hyperparams=None):
    """Parameters and state after steps with the gradients [step, pop, n], and what the last step logged."""
    rule, params, noise = make_rule(config, SIZES), params.clone(), generators()
    state = rule.initial_state(params)
    values = {name: torch.full((POP,), value, dtype=torch.float64) for name, value in config.hyperparams().items()}
    for grad in grads:
        logged = rule.step_(params, grad.clone(), state, RATE, EVERYONE, values | (hyperparams or {}), noise)
    return params, state, logged


@pytest.mark.parametrize(("name", "theirs", "decay"), [("adam", "Adam", 0.0), ("adamw", "AdamW", 0.01)])
@pytest.mark.parametrize("constants", [{}, {"betas": (0.5, 0.9), "eps": 1e-3, "weight_decay": 0.2}])
def test_adam_is_torchs_with_the_decay_of_its_authors(name, theirs, decay, constants, normal):
    params, grads = normal(POP, N), normal(5, POP, N)
    found, _, logged = run(model(optimizer=name, optimizer_kwargs=constants), params, grads)
    for m in range(POP):
        own = params[m].clone().requires_grad_()
        settings = {"eps": 1e-5, "weight_decay": decay} | constants
        optimizer = getattr(torch.optim, theirs)([own], lr=float(RATE[m]), **settings)
        for grad in grads:
            own.grad = grad[m].clone()
            optimizer.step()
        torch.testing.assert_close(found[m], own.detach(), atol=1e-12, rtol=0)
    assert logged == {}


def test_every_member_of_adam_has_a_decay_of_its_own(normal):
    params, grads = normal(POP, N), normal(2, POP, N)
    plain = run(model(), params, grads)[0]
    decayed = run(model(), params, grads, {"weight_decay": torch.tensor([0.0, 0.2]).double()})[0]
    assert torch.equal(decayed[0], plain[0])
    assert not torch.isclose(decayed[1], plain[1]).any()


def test_the_first_step_of_upgd_by_hand(normal):
    # One step makes the corrected utility −g∘θ; the gate is sigmoid of it over its maximum, the default decay 0.001.
    params, grad = normal(POP, N), normal(POP, N)
    found, state, logged = run(model(optimizer="upgd", optimizer_kwargs={"sigma": 0}), params, [grad])
    theta, g, rate = params.numpy(), grad.numpy(), RATE.numpy()[:, None]
    utility = -g * theta
    gate = 1 - 1 / (1 + np.exp(-utility / utility.max(1, keepdims=True)))
    np.testing.assert_allclose(found.numpy(), (1 - rate * 0.001) * theta - rate * g * gate, atol=1e-12)
    np.testing.assert_allclose(logged["upgd_gate_mean"].numpy(), gate.mean(1), atol=1e-12)
    assert logged["upgd_noise_std"].tolist() == [0, 0]
    assert state.step.tolist() == [1, 1]


@pytest.mark.parametrize(("name", "decay"), [("adaptive_upgd", 0.001), ("upgdw", 0.01)])
def test_from_zero_parameters_adaptive_upgd_at_twice_the_gain_is_adamw(name, decay, normal):
    """Zero utility opens every gate by half; the second step then meets the decay."""
    config = model(optimizer=name, optimizer_kwargs={"sigma": 0, "utility_gain": 2})
    grads = normal(2, POP, N)
    grads[1] = 0  # so the utility stays zero
    found, _, _ = run(config, torch.zeros(POP, N).double(), grads)
    for m in range(POP):
        own = torch.zeros(N).double().requires_grad_()
        optimizer = torch.optim.AdamW([own], lr=float(RATE[m]), eps=1e-5, weight_decay=decay)
        for grad in grads:
            own.grad = grad[m].clone()
            optimizer.step()
        torch.testing.assert_close(found[m], own.detach(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["upgd", "adaptive_upgd", "upgdw"])
def test_noise_is_scaled_by_each_members_sigma_and_drawn_by_its_generator(name, normal):
    config = model(optimizer=name, optimizer_kwargs={"weight_decay": 0})
    params, grad = normal(POP, N), normal(POP, N)
    calm, single, twice = (
        run(config, params, [grad], {"sigma": torch.tensor([0.0, sigma]).double()})[0] for sigma in (0, 0.1, 0.2)
    )
    assert torch.equal(single[0], calm[0])
    torch.testing.assert_close(twice[1] - calm[1], 2 * (single[1] - calm[1]), atol=1e-12, rtol=1e-9)
    rule = make_rule(config, SIZES)
    alone = params[1:].clone()
    values = {"sigma": torch.tensor([0.1]).double(), "weight_decay": torch.zeros(1).double()}
    state = rule.initial_state(alone)
    rule.step_(alone, grad[1:].clone(), state, RATE[1:], EVERYONE[1:], values, generators()[1:])
    torch.testing.assert_close(alone[0], single[1], atol=1e-12, rtol=0)


OTHERS = {
    "betas": (0.5, 0.9),
    "eps": 0.1,
    "weight_decay": 0.3,
    "sigma": 0.5,
    "beta_utility": 0.5,
    "utility_gain": 2.0,
    "adaptive_noise": False,
    "noise_scaling": "l2",
    "instant_noise_scale": True,
    "noise_beta": 0.5,
    "min_noise_std": 3.0,
}
"""For every constant a value that is not the one in use."""


@pytest.mark.parametrize("name", OPTIMIZERS.table)
@pytest.mark.parametrize("constant", OptimizerKwargs.model_fields)
def test_a_constant_is_read_or_refused(name, constant, normal):
    base = {} if "adaptive_noise" not in read_by(name) else {"adaptive_noise": True, "instant_noise_scale": False}
    base |= {} if name in ("adam", "adamw") else {"sigma": 0.1}
    changed = base | {constant: OTHERS[constant]}
    if constant not in read_by(name):
        other = {constant: True} if constant == "adaptive_noise" else {}
        other |= {constant: False} if constant == "instant_noise_scale" else {}
        with pytest.raises(ConfigError, match=f"optimizer_kwargs.{constant} is not read by optimizer='{name}'"):
            model(optimizer=name, optimizer_kwargs=changed | other)
    else:
        params, grads = normal(POP, N), normal(3, POP, N)
        before, after = (
            run(model(optimizer=name, optimizer_kwargs=constants), params, grads)[0] for constants in (base, changed)
        )
        assert not torch.equal(before, after)


@pytest.mark.parametrize("to", ["gradient", "step"])
def test_the_scaler_by_hand(to, normal):
    # Two gradients of one tensor, whose mean was 1, then 3: with β = ½, M = ½·½·1 + ½·3 = 1.75 and Q = 4.75, both over
    # 1 − ¼: M̂ = 7/3, Q̂ = 19/3, r = (19/3 − 49/9)/(49/9) = 8/49; the factor is 1/(1 + α·8/49).
    config = model(vgs={"enabled": True, "beta": 0.5, "warmup_steps": 2, "apply_to": to, "eps": 1e-12})
    scaler = make_scaler(config, [N])
    state = scaler.initial_state(torch.zeros(POP, N).double())
    alpha = torch.tensor([2.0, 0.5]).double()
    spread = normal(POP, N)
    spread -= spread.mean(1, keepdim=True)
    for mean, expected in ((1, torch.ones(POP).double()), (3, 1 / (1 + alpha * 8 / 49))):
        grad = mean + spread
        rate, logged = scaler.scale_(grad, state, RATE, EVERYONE, alpha)
        torch.testing.assert_close(logged["vgs/scaling_factor"], expected, atol=1e-9, rtol=0)
        by_rate, by_grad = (expected, 1) if to == "step" else (1, expected.unsqueeze(1))
        torch.testing.assert_close(rate, RATE * by_rate, atol=1e-12, rtol=1e-9)
        torch.testing.assert_close(grad, (mean + spread) * by_grad, atol=1e-12, rtol=1e-9)
        assert logged["vgs/step_count"].tolist() == [1 + (mean == 3)] * POP
        assert logged["vgs/warmup_active"].tolist() == [float(mean == 1)] * POP
    torch.testing.assert_close(logged["vgs/normalized_variance"], torch.full((POP,), 8 / 49).double())


@pytest.mark.parametrize(
    ("constant", "value"),
    [
        ("beta", 0.5),
        ("eps", 10.0),
        ("warmup_steps", 5),
        ("min_scaling_factor", 0.99),
        ("cap", 0.01),
        ("statistic", "per_element"),
    ],
)
def test_every_constant_of_the_scaler_is_read(constant, value, normal):
    grads, alpha = normal(4, POP, N), torch.full((POP,), 0.1, dtype=torch.float64)
    factors = []
    for other in ({}, {constant: value}):
        scaler = make_scaler(model(vgs={"enabled": True, "warmup_steps": 2} | other), SIZES)
        state = scaler.initial_state(grads[0])
        for grad in grads:
            _, logged = scaler.scale_(grad.clone(), state, RATE, EVERYONE, alpha)
        factors.append(logged["vgs/scaling_factor"])
    assert not torch.isclose(*factors).any()
    assert constant in VGSConfig.model_fields


@pytest.mark.parametrize("name", OPTIMIZERS.table)
@pytest.mark.parametrize("apply_to", ["gradient", "step"])
def test_population_laws(name, apply_to, normal):
    """Stacked = singles, disturbing one leaves the other, and a resting member keeps every bit: scaler, then rule."""
    noise = {} if name in ("adam", "adamw") else {"adaptive_noise": True, "instant_noise_scale": False}
    config = model(
        optimizer=name, optimizer_kwargs=noise, vgs={"enabled": True, "warmup_steps": 1, "apply_to": apply_to}
    )
    rule, scaler = make_rule(config, SIZES), make_scaler(config, SIZES)
    values = {key: torch.full((POP,), value, dtype=torch.float64) for key, value in config.hyperparams().items()}
    values["sigma"] *= torch.tensor([1.0, 30.0])

    def steps(params, grads, members, active):
        rows = list(members)
        params, states = params[rows].clone(), [part.initial_state(params[rows]) for part in (rule, scaler)]
        own, rate = {key: value[rows] for key, value in values.items()}, RATE[rows]
        drawn = [generators()[m] for m in rows]
        for grad in grads[:, rows]:
            grad = grad.clone()
            scaled, _ = scaler.scale_(grad, states[1], rate, active[rows], own["vgs_alpha"])
            rule.step_(params, grad, states[0], scaled, active[rows], own, drawn)
        return {"params": params, **dict(tree.items({"rule": states[0], "scaler": states[1]}))}

    params, grads = normal(POP, N), normal(4, POP, N)
    whole = steps(params, grads, range(POP), EVERYONE)
    swapped = steps(params, grads, [1, 0], EVERYONE)
    spoilt = grads.clone()
    spoilt[:, 1] = torch.nan
    resting = steps(params, spoilt, range(POP), torch.tensor([True, False]))
    for key, leaf in whole.items():
        singles = torch.cat([steps(params, grads, [m], EVERYONE)[key] for m in range(POP)])
        torch.testing.assert_close(leaf, singles, atol=1e-12, rtol=0)
        torch.testing.assert_close(swapped[key], leaf[[1, 0]], atol=1e-12, rtol=0)
        assert torch.equal(resting[key][0], leaf[0]), key
    assert torch.equal(resting["params"][1], params[1])
    assert resting["rule.step"].tolist() == [4, 0]
    assert resting["scaler.step_count"].tolist() == [4, 0]
