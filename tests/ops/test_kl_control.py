"""The KL penalty's controller: arithmetic by hand, the positional form in NumPy, closed loops, and the population laws."""

import json

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from popgraft import tree
from popgraft.errors import StoreError
from popgraft.ops.kl_control import Gains, initial_kl_control, kl_penalty, load_, state_dict, update_

WIDE = (0.0, 1e6)
NAN, INF = float("nan"), float("inf")


def column(*values):
    return torch.tensor(values, dtype=torch.float64)


def gains_of(p, i, d, pop=1):
    return Gains(*(column(*[gain] * pop) for gain in (p, i, d)))


def feed(state, errors, gains, bounds=WIDE, target=0.02):
    """Shows a lone member KL = target (1 + error) for every error, and returns β after each."""
    betas = []
    for error in errors:
        update_(state, column(target * (1 + error)), column(target), gains, bounds, torch.tensor([True]))
        betas.append(state.beta.item())
    return betas


def test_arithmetic_by_hand():
    """β₀ = 1, Kp = 0.5, Ki = 0.1, Kd = 0.2; errors 1, 0.5, −0.5.

    1: 0.5·1 + 0.1·1 + 0.2·1 = 0.8; 2: −0.25 + 0.05 + 0.2·(0.5 − 2) = −0.5; 3: −0.5 − 0.05 + 0.2·(−0.5 − 1 + 1) = −0.65.
    """
    state = initial_kl_control(column(1.0))
    assert feed(state, [1.0, 0.5, -0.5], gains_of(0.5, 0.1, 0.2)) == pytest.approx([1.8, 1.3, 0.65])
    assert state.error.item() == pytest.approx(-0.5)
    assert state.error_prev.item() == pytest.approx(0.5)
    assert state.error_sum.item() == pytest.approx(1.0)


def test_equals_the_positional_form_away_from_the_bounds():
    """β_t = β₀ + Kp e_t + Ki Σ e + Kd (e_t − e_{t−1})."""
    errors = np.random.default_rng(0).normal(size=50)
    p, i, d = 0.3, 0.2, 0.1
    found = feed(initial_kl_control(column(100.0)), errors, gains_of(p, i, d))
    expected = 100 + p * errors + i * np.cumsum(errors) + d * np.diff(errors, prepend=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("pressing", "bound", "relief"), [(3.0, 2.0, -0.5), (-0.9, 0.5, 1.5)])
def test_leaves_a_bound_at_the_first_error_of_opposite_sign(pressing, bound, relief):
    """A thousand updates at the bound leave no trace but the two latest errors: the next change is the law's own."""
    p, i, d = 0.3, 0.2, 0.1
    state = initial_kl_control(column(1.0))
    betas = feed(state, [pressing] * 1000, gains_of(p, i, d), bounds=(0.5, 2.0))
    assert betas[-1] == bound
    assert state.error_sum.item() == pytest.approx(1000 * pressing)
    change = p * (relief - pressing) + i * relief + d * (relief - pressing)
    (after,) = feed(state, [relief], gains_of(p, i, d), bounds=(0.5, 2.0))
    assert after == pytest.approx(np.clip(bound + change, 0.5, 2.0))
    assert after != bound


@pytest.mark.parametrize("start", [0.0, 1.0, 40.0])
def test_a_plant_comes_to_its_target(start):
    """A step that shrinks as β grows, KL = 0.3/(1 + β): the target 0.02 is met at β = 14."""
    state, kl = initial_kl_control(column(start)), None
    for _ in range(800):
        kl = 0.3 / (1 + state.beta)
        update_(state, kl, column(0.02), gains_of(0.5, 0.5, 0.1), WIDE, torch.tensor([True]))
    assert kl.item() == pytest.approx(0.02, rel=1e-6)
    assert state.beta.item() == pytest.approx(14, rel=1e-5)


def test_a_target_out_of_reach_rests_at_the_bound_and_recovers_when_the_plant_changes():
    """KL = k/(1 + β) with β ≤ 2: k = 0.3 cannot come down to 0.02, k = 0.04 can, at β = 1."""
    state, bounds, gains = initial_kl_control(column(0.0)), (0.0, 2.0), gains_of(0.1, 0.2, 0.0)
    for strength, beta in ((0.3, 2.0), (0.04, 1.0), (0.01, 0.0)):
        for _ in range(150):
            update_(state, strength / (1 + state.beta), column(0.02), gains, bounds, torch.tensor([True]))
        assert state.beta.item() == pytest.approx(beta, abs=1e-6)


def test_members_without_a_divergence_a_target_or_an_update_are_left_as_they_are():
    pop = 6
    state = initial_kl_control(column(*range(1, pop + 1)))
    for field, value in (("error", 0.3), ("error_prev", -0.2), ("error_sum", 1.1)):
        getattr(state, field).fill_(value)
    before = tree.map(torch.clone, state)
    kl = column(0.1, NAN, 0.1, 0.1, INF, 0.1)
    target = column(0.02, 0.02, INF, 0.02, 0.02, 0.02)
    active = torch.tensor([True, True, True, False, True, True])
    update_(state, kl, target, gains_of(0.3, 0.2, 0.1, pop), WIDE, active)
    for (name, old), (_, new) in zip(tree.items(before), tree.items(state), strict=True):
        assert (old != new).tolist() == [True, False, False, False, False, True], name
    assert tree.finite(state).all()


def test_the_initial_coefficient_is_not_shared():
    beta = column(1.0, 2.0)
    state = initial_kl_control(beta)
    state.beta += 1
    assert beta.tolist() == [1, 2]


def test_penalty_is_the_mean_over_valid_samples_and_its_gradient():
    """−(1 − 3)/2 = 1 with one sample of three left out; the gradient is −1/2 for those that count."""
    log_ratio = column(1.0, -3.0, 100.0).view(1, 3).requires_grad_()
    penalty = kl_penalty(log_ratio, column(1, 1, 0).view(1, 3))
    assert penalty.tolist() == [1]
    (grad,) = torch.autograd.grad(penalty.sum(), log_ratio)
    assert grad.tolist() == [[-0.5, -0.5, 0]]


def test_penalty_estimates_the_divergence_and_its_gradient():
    """Every action in exact proportion to π_old: the estimate is torch.distributions' KL, value and gradient."""
    counts = torch.tensor([50, 30, 20])
    old, logits = Categorical(probs=counts.double()), column(0.3, -0.4, 0.8).requires_grad_()
    action = torch.arange(3).repeat_interleave(counts)
    log_ratio = (Categorical(logits=logits).log_prob(action) - old.log_prob(action)).unsqueeze(0)
    penalty = kl_penalty(log_ratio, torch.ones_like(log_ratio))[0]
    divergence = kl_divergence(old, Categorical(logits=logits))
    torch.testing.assert_close(penalty, divergence)
    torch.testing.assert_close(*(torch.autograd.grad(x, logits)[0] for x in (penalty, divergence)))


@pytest.fixture
def controlled(normal):
    """A controller of three members in mid-course, with gains of their own."""
    state = initial_kl_control(normal(3).abs())
    gains = Gains(*(normal(3).abs() for _ in range(3)))
    for _ in range(3):
        update_(state, normal(3).abs(), column(0.5, 0.6, 0.7), gains, WIDE, torch.ones(3, dtype=torch.bool))
    return state, gains


def test_state_names_every_number_of_the_law(controlled):
    state, gains = controlled
    assert state_dict(state, 1, gains) == {
        "kl_beta": state.beta[1].item(),
        "kl_err_int": state.error_sum[1].item(),
        "kl_err_prev": state.error_prev[1].item(),
        "kl_penalty_error": state.error[1].item(),
        "kl_pid_p": gains.p[1].item(),
        "kl_pid_i": gains.i[1].item(),
        "kl_pid_d": gains.d[1].item(),
    }


def test_state_survives_text_and_moves_one_member_only(controlled, normal):
    """In single precision, as in training: member 1 becomes what member 2 was, to the bit, and behaves like it."""
    state, gains = (tree.map(torch.Tensor.float, controlled[0]), Gains(*(gain.float() for gain in controlled[1])))
    kept = [leaf.clone() for leaf in (*dict(tree.items(state)).values(), *gains)]
    load_(state, 1, gains, json.loads(json.dumps(state_dict(state, 2, gains))))
    for before, after in zip(kept, (*dict(tree.items(state)).values(), *gains), strict=True):
        assert torch.equal(after, before[[0, 2, 2]])
    update_(state, torch.full((3,), 0.4), torch.full((3,), 0.3), gains, WIDE, torch.ones(3, dtype=torch.bool))
    assert state.beta[1] == state.beta[2]


@pytest.mark.parametrize("fault", ["missing", "foreign", "text", "nan", "empty"])
def test_a_state_that_does_not_fit_is_refused_before_anything_is_written(controlled, fault):
    state, gains = controlled
    values = state_dict(state, 2, gains)
    if fault == "missing":
        del values["kl_pid_d"]
    elif fault == "empty":
        values = {}
    else:
        values["kl_unknown" if fault == "foreign" else "kl_pid_d"] = {"text": "1", "nan": NAN}.get(fault, 1.0)
    kept = [leaf.clone() for leaf in (*dict(tree.items(state)).values(), *gains)]
    with pytest.raises(StoreError, match="KL controller"):
        load_(state, 0, gains, values)
    for before, after in zip(kept, (*dict(tree.items(state)).values(), *gains), strict=True):
        assert torch.equal(before, after)


def test_population_laws(controlled, normal, check_laws):
    def step(kl, state, gains, target):
        after = tree.map(torch.clone, state)
        update_(after, kl.detach(), target, Gains(**gains), (0.1, 5.0), torch.ones(len(kl), dtype=torch.bool))
        return torch.stack([leaf for _, leaf in tree.items(after)], 1)

    state, gains = controlled
    check_laws(step, normal(3).abs(), state, gains._asdict(), column(0.5, 0.6, 0.7))
    check_laws(kl_penalty, normal(3, 6, 4), (normal(3, 6, 4) > -0.3).double())
