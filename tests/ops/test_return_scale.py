"""Return statistics against running averages in NumPy, and the invariances they exist for."""

import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.ops.reduce import standardize
from popgraft.ops.return_scale import (
    MIN_STD,
    activate_,
    denormalize,
    finalize_,
    initial_return_scale,
    normalize,
)
from popgraft.ops.returns import gae

POP, TIME, ENV = 3, 6, 5
CPU = torch.device("cpu")


def rounds(normal, count=4):
    """Targets of several updates, and which of them count."""
    for i in range(count):
        yield 2 * normal(POP, TIME, ENV) + i, (normal(POP, TIME, ENV) > -0.5).double()


def double(scale):
    return tree.map(torch.Tensor.double, scale)


def test_averages_equal_a_loop(normal):
    scale = double(initial_return_scale(POP, CPU))
    first, second = np.zeros(POP), np.zeros(POP)
    for i, (target, valid) in enumerate(rounds(normal)):
        mean, std = finalize_(scale, target, valid, 0.8)
        for m in range(POP):
            g = target[m][valid[m] == 1].numpy()
            keep = 0.8 if i else 0.0
            first[m] = keep * first[m] + (1 - keep) * g.mean()
            second[m] = keep * second[m] + (1 - keep) * np.mean(g**2)
        np.testing.assert_allclose(mean, first, rtol=0, atol=1e-12)
        np.testing.assert_allclose(std, np.sqrt(second - first**2), rtol=0, atol=1e-12)
    assert scale.updates.tolist() == [4] * POP


def test_by_hand():
    # G = 1, 3: E[G] = 2, E[G²] = 5, σ = 1. Then G = 4, 4 with decay ½: E[G] = 3, E[G²] = 21/2, σ = √(3/2).
    scale, ones = initial_return_scale(1, CPU), torch.ones(1, 2)
    assert [float(x) for x in finalize_(scale, torch.tensor([[1.0, 3.0]]), ones, 0.5)] == [2, 1]
    mean, std = finalize_(scale, torch.tensor([[4.0, 4.0]]), ones, 0.5)
    assert (mean.item(), std.item()) == (3, pytest.approx(1.5**0.5))
    assert (scale.mean.item(), scale.std.item()) == (0, 1)  # until they are activated
    activate_(scale, mean, std)
    assert (scale.mean.item(), scale.std.item()) == (3, pytest.approx(1.5**0.5))


def test_before_the_first_update_units_are_raw(normal):
    scale, x = initial_return_scale(POP, CPU), normal(POP, TIME).float()
    assert torch.equal(normalize(scale, x), x)
    assert torch.equal(denormalize(scale, x), x)


def test_a_constant_return_has_the_smallest_unit():
    scale = initial_return_scale(2, CPU)
    mean, std = finalize_(scale, torch.tensor([[7.0] * 5, [1e5] * 5]), torch.ones(2, 5))
    assert mean.tolist() == [7, 1e5]
    assert std.tolist() == pytest.approx([MIN_STD] * 2)


def test_a_spread_far_from_zero_is_kept_over_updates_in_single_precision(normal):
    """σ = ½ at μ = 10 000: in single precision E[G²] has steps of 8."""
    scale, target = initial_return_scale(1, CPU), (1e4 + 0.5 * normal(1, 4096)).float()
    for _ in range(5):
        mean, std = finalize_(scale, target, torch.ones(1, 4096))
    expected = target.double()
    assert mean.item() == pytest.approx(expected.mean().item(), rel=1e-6)
    assert std.item() == pytest.approx(expected.std(unbiased=False).item(), rel=1e-4)


@pytest.mark.parametrize("samples", [0, 1])
def test_a_member_without_valid_samples_or_with_odd_ones_keeps_everything(samples, normal):
    scale = initial_return_scale(POP, CPU)
    (target, valid), *_ = rounds(normal)
    valid[1] = samples
    target[1, 0, 0] = float("nan")
    mean, std = finalize_(scale, target, valid)
    activate_(scale, mean, std)
    for leaf, fresh in zip(tree.items(scale), tree.items(initial_return_scale(POP, CPU)), strict=True):
        assert leaf[1][1] == fresh[1][1]
        assert (leaf[1][[0, 2]] != fresh[1][[0, 2]]).all()
    kept = tree.map(torch.clone, scale)
    activate_(scale, *finalize_(scale, target, torch.zeros_like(valid)))
    for (_, before), (_, after) in zip(tree.items(kept), tree.items(scale), strict=True):
        assert torch.equal(before, after)


def test_a_decay_of_one_freezes_the_first_update(normal):
    scale = initial_return_scale(POP, CPU)
    found = [torch.stack(finalize_(scale, target, valid, 1.0)) for target, valid in rounds(normal)]
    assert (found[0] != torch.tensor([[0.0], [1.0]])).all()
    assert all(torch.equal(found[0], later) for later in found[1:])


def test_units_there_and_back(normal):
    scale = double(initial_return_scale(POP, CPU))
    target, valid = next(rounds(normal))
    activate_(scale, *finalize_(scale, target, torch.ones_like(valid)))
    x = normalize(scale, target)
    torch.testing.assert_close(x.mean((1, 2)), torch.zeros(POP).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(x.std((1, 2), unbiased=False), torch.ones(POP).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(denormalize(scale, x), target, atol=1e-12, rtol=0)


@pytest.mark.parametrize("c", [1e-2, 7.0, 1e4])
def test_rewards_and_values_in_other_units_leave_advantages_and_normalised_targets(c, normal):
    reward, value, following = normal(POP, TIME, ENV), normal(POP, TIME, ENV), normal(POP, TIME, ENV)
    end, valid = normal(POP, TIME, ENV) > 1, torch.ones(POP, TIME, ENV).double()
    gamma, decay = torch.full((POP,), 0.99).double(), torch.full((POP,), 0.9).double()

    def learnt(c):
        advantage = gae(c * reward, c * value, c * following, end, gamma, decay)
        target = advantage + c * value
        scale = double(initial_return_scale(POP, CPU))
        activate_(scale, *finalize_(scale, target, valid))
        return standardize(advantage, valid), normalize(scale, target)

    for plain, scaled in zip(learnt(1.0), learnt(c), strict=True):
        torch.testing.assert_close(scaled, plain, atol=1e-5, rtol=0)


def test_population_laws(normal, check_laws):
    scale = double(initial_return_scale(POP, CPU))
    target, valid = next(rounds(normal))
    scale.updates.copy_(torch.tensor([0.0, 1, 2]))

    def everything(target, valid, scale):
        own = tree.map(torch.clone, scale)
        activate_(own, *finalize_(own, target.detach(), valid))
        units = denormalize(own, normalize(own, target) + 1)
        return torch.cat([units.flatten(1), torch.stack([own.mean_ema, own.square_ema, own.updates], 1)], 1)

    check_laws(everything, target, valid, scale)
