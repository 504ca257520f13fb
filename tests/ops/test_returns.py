"""Advantages and discounted sums against plain float64 loops, and by hand."""

import numpy as np
import pytest
import torch

from popgraft.ops.reduce import standardize
from popgraft.ops.returns import discounted_sums, gae

POP, TIME, ENV = 3, 17, 5
GAMMA, LAMBDA = torch.tensor([0.9, 0.99, 1.0]).double(), torch.tensor([0.8, 0.0, 1.0]).double()
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5}
either = pytest.mark.parametrize("dtype", TOLERANCE, ids=["pytorch", "compiled"])  # float32 alone is compiled


def episodes(seed, dtype=torch.float64):
    """Random rewards, values and episode ends: (reward, value, next_value, end)."""
    rng = np.random.default_rng(seed)
    reward, value = rng.normal(size=(2, POP, TIME, ENV))
    terminated, truncated = rng.random((2, POP, TIME, ENV)) < 0.2
    after = rng.normal(size=(POP, ENV))  # the value of what follows the last step
    terminal = rng.normal(size=(POP, TIME, ENV))  # the value of the observation at which an episode is cut off
    following = np.concatenate([value[:, 1:], after[:, None]], axis=1)
    next_value = np.where(terminated, 0, np.where(truncated, terminal, following))
    numbers = (torch.from_numpy(x).to(dtype) for x in (reward, value, next_value))
    return *numbers, torch.from_numpy(terminated | truncated)


def reference(reward, value, next_value, end, gamma, gae_lambda):
    """One environment, backwards, one step at a time."""
    advantage, running = np.zeros(len(reward)), 0.0
    for t in reversed(range(len(reward))):
        if end[t]:
            running = 0.0
        running = reward[t] + gamma * next_value[t] - value[t] + gamma * gae_lambda * running
        advantage[t] = running
    return advantage


@either
@pytest.mark.parametrize("seed", range(5))
def test_gae_equals_a_reverse_loop(seed, dtype):
    trees = episodes(seed, dtype)
    assert trees[-1].any()
    assert not trees[-1].all()
    found = gae(*trees, GAMMA.to(dtype), LAMBDA.to(dtype))
    assert found.dtype == dtype
    for m in range(POP):
        for e in range(ENV):
            expected = reference(*(x[m, :, e].numpy() for x in trees), float(GAMMA[m]), float(LAMBDA[m]))
            np.testing.assert_allclose(found[m, :, e], expected, rtol=0, atol=TOLERANCE[dtype])


def test_gae_by_hand():
    # γ = ½, λ = ½, r = 1 2 4, V = 1 1 2; the episode ends with the second step; the value after the last is 6.
    #   δ₂ = 4 + ½·6 − 2 = 5           A₂ = 5
    #   δ₁ = 2 + ½·v − 1               A₁ = δ₁             v = 0: 1 (terminated), v = 8: 5 (truncated at a value of 8)
    #   δ₀ = 1 + ½·1 − 1 = ½           A₀ = ½ + ¼ A₁       ¾, 7/4
    reward, value = torch.tensor([1.0, 2, 4]), torch.tensor([1.0, 1, 2])
    end, half = torch.tensor([False, True, False]), torch.tensor([0.5])
    for v, expected in ((0.0, [0.75, 1, 5]), (8.0, [1.75, 5, 5])):
        next_value = torch.tensor([1.0, v, 6])
        found = gae(*(x.view(1, 3, 1) for x in (reward, value, next_value, end)), half, half)
        assert found.flatten().tolist() == expected


@either
def test_nothing_leaks_over_an_episode_end(dtype):
    reward, value, next_value, end = episodes(0, dtype)
    end[:, 6] = True
    discount, decay = GAMMA.to(dtype), LAMBDA.to(dtype)
    before = gae(reward, value, next_value, end, discount, decay)
    for changed in (reward, value, next_value):
        changed[:, 7:] = float("nan")
    after = gae(reward, value, next_value, end, discount, decay)
    assert torch.equal(before[:, :7], after[:, :7])
    assert after[:, -1].isnan().all()


@pytest.mark.parametrize("scale", [1e-3, 0.5, 300.0])
def test_scaling_rewards_and_values_leaves_normalised_advantages(scale):
    reward, value, next_value, end = episodes(1)
    valid = torch.ones_like(reward)
    plain, scaled = (
        standardize(gae(c * reward, c * value, c * next_value, end, GAMMA, LAMBDA), valid) for c in (1, scale)
    )
    # eps = 1e-8 beside a standard deviation of about 2e-3 is all that differs.
    torch.testing.assert_close(scaled, plain, rtol=0, atol=1e-4 if scale < 1 else 1e-6)


@either
@pytest.mark.parametrize("seed", range(3))
def test_discounted_sums_equal_a_loop(seed, dtype):
    reward, _, _, end = episodes(seed, dtype)
    start = torch.from_numpy(np.random.default_rng(seed).normal(size=(POP, ENV))).to(dtype)
    before, atol = start.clone(), TOLERANCE[dtype]
    sums, carried = discounted_sums(reward, end, GAMMA.to(dtype), start)
    assert torch.equal(start, before)
    for m in range(POP):
        for e in range(ENV):
            running = float(start[m, e])
            for t in range(TIME):
                running = float(GAMMA[m]) * running + float(reward[m, t, e])
                assert float(sums[m, t, e]) == pytest.approx(running, abs=atol)
                running = 0.0 if end[m, t, e] else running
            assert float(carried[m, e]) == pytest.approx(running, abs=atol)


def test_other_types_and_strides_give_the_same_sums():
    reward, _, _, end = episodes(0, torch.float32)
    start = torch.from_numpy(np.random.default_rng(0).normal(size=(ENV, POP))).T
    expected = discounted_sums(reward, end, GAMMA.float(), start.float().contiguous())
    found = discounted_sums(reward.mT.contiguous().mT, end, GAMMA, start)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs)


def test_discounted_sums_by_hand():
    # γ = ½ from a sum of 8: 1 + 4 = 5, 2 + 2½ = 4½ (end), 4; carried on: 4.
    end = torch.tensor([False, True, False]).view(1, 3, 1)
    sums, carried = discounted_sums(
        torch.tensor([1.0, 2, 4]).view(1, 3, 1), end, torch.tensor([0.5]), torch.full((1, 1), 8.0)
    )
    assert sums.flatten().tolist() == [5, 4.5, 4]
    assert carried.item() == 4


@either
def test_a_sum_that_is_not_finite_ends_with_its_episode(dtype):
    reward, end = torch.ones(1, 3, 1, dtype=dtype), torch.tensor([False, True, False]).view(1, 3, 1)
    reward[:, 0] = float("nan")
    sums, carried = discounted_sums(reward, end, torch.ones(1, dtype=dtype), torch.zeros(1, 1, dtype=dtype))
    assert sums.flatten().isnan().tolist() == [True, True, False]
    assert carried.item() == 1


def test_advantages_can_be_differentiated():
    # δ = r with γ = ½, λ = 1 and no values: A₀ = r₀ + ½ r₁ + ¼ r₂, and so on; Σ A = r₀ + 1½ r₁ + 1¾ r₂.
    reward = torch.ones(1, 3, 1, requires_grad=True)
    never, zero, half = torch.zeros(1, 3, 1, dtype=torch.bool), torch.zeros(1, 3, 1), torch.tensor([0.5])
    (gradient,) = torch.autograd.grad(gae(reward, zero, zero, never, half, torch.ones(1)).sum(), reward)
    assert gradient.flatten().tolist() == [1, 1.5, 1.75]


def test_population_laws(check_laws):
    trees = episodes(0)
    check_laws(gae, *trees, GAMMA, LAMBDA)
    check_laws(lambda *args: discounted_sums(*args)[0], trees[0], trees[3], GAMMA, torch.ones(POP, ENV).double())
