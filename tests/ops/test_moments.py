"""Running statistics against NumPy on all data at once; normalisation against Stable-Baselines3's."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from popgraft import tree
from popgraft.ops.moments import initial_moments, normalize, scale, standard, update_
from popgraft.state import Moments

POP, SHAPE = 3, (4, 2)


def batches(rng, shape=SHAPE):
    """Batches of unlike size, mean and spread: [pop, batch, *shape]."""
    return [
        rng.normal(size=(POP, size, *shape)) * spread + mean
        for size, mean, spread in [(5, 2, 1), (1, -3, 9), (64, 0.1, 0.2)]
    ]


def fresh(shape=SHAPE):
    return initial_moments(POP, shape, torch.device("cpu"))


def feed(moments, data, valid=None):
    for x in data:
        weight = np.ones(x.shape[:2]) if valid is None else valid.pop(0)
        update_(moments, torch.from_numpy(x), torch.from_numpy(weight))
    return moments


@pytest.mark.parametrize("shape", [(), (3,), SHAPE])
def test_equals_numpy_on_all_data_after_every_batch(shape):
    data, moments = batches(np.random.default_rng(0), shape), fresh(shape)
    for i, x in enumerate(data):
        feed(moments, [x])
        whole = np.concatenate(data[: i + 1], axis=1)
        np.testing.assert_allclose(moments.mean, whole.mean(1), rtol=0, atol=1e-12)
        np.testing.assert_allclose(moments.var, whole.var(1), rtol=0, atol=1e-12)
        assert moments.count.tolist() == [whole.shape[1]] * POP


@pytest.mark.parametrize("ratio", [1, 1e2, 1e4, 1e6])
def test_an_offset_of_many_spreads_costs_no_digits(ratio):
    """Single precision in, as environments give it; mean, variance and what is normalised as NumPy has them in double."""
    rng, spread = np.random.default_rng(3), 0.25
    data = [(spread * (ratio + rng.normal(size=(POP, 64, 3)))).astype(np.float32) for _ in range(20)]
    moments, whole = feed(fresh((3,)), data), np.concatenate(data, axis=1).astype(np.float64)
    np.testing.assert_allclose(moments.mean, whole.mean(1), rtol=1e-13)
    np.testing.assert_allclose(moments.var, whole.var(1), rtol=1e-9)
    expected = (data[0] - whole.mean(1, keepdims=True)) / np.sqrt(whole.var(1, keepdims=True) + 1e-8)
    found = normalize(standard(moments), torch.from_numpy(data[0]))
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_before_the_first_batch_nothing_is_changed():
    """Mean 0 and variance 1 stand in, and weigh nothing afterwards; a member without samples keeps them."""
    x = torch.tensor([[-3.0, 0.5, 40.0]]).expand(POP, 3)
    moments = fresh(())
    torch.testing.assert_close(normalize(standard(moments), x), x.clamp(-10, 10))
    torch.testing.assert_close(scale(moments, x), x.clamp(-10, 10))
    update_(moments, torch.full((POP, 2), 7.0), torch.tensor([[1.0, 1], [0, 0], [1, 0]]))
    assert moments.mean.tolist() == [7, 0, 7]
    assert moments.var.tolist() == [0, 1, 0]
    assert moments.count.tolist() == [2, 0, 1]


def test_more_samples_than_single_precision_can_count():
    moments = fresh(())
    moments.count.fill_(2.0**24)
    update_(moments, torch.ones(POP, 1), torch.ones(POP, 1))
    assert moments.count.tolist() == [2.0**24 + 1] * POP


def test_samples_that_do_not_count_are_as_if_absent():
    rng = np.random.default_rng(2)
    data = batches(rng)
    valid = [(rng.random(x.shape[:2]) < 0.7).astype(float) for x in data]
    valid[1][:] = 0  # a whole batch without a sample
    moments = feed(fresh(), data, list(valid))
    for m in range(POP):
        counted = np.concatenate([x[m][weight[m] == 1] for x, weight in zip(data, valid, strict=True)])
        np.testing.assert_allclose(moments.mean[m], counted.mean(0), rtol=0, atol=1e-12)
        np.testing.assert_allclose(moments.var[m], counted.var(0), rtol=0, atol=1e-12)


def test_normalisation_is_that_of_vecnormalize():
    env = VecNormalize(DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    rng = np.random.default_rng(4)
    env.obs_rms.mean, env.obs_rms.var = rng.normal(size=3), rng.random(3) + np.array([0, 1e-9, 4])
    env.ret_rms.var = np.float64(7.3)
    obs, reward = rng.normal(size=(50, 3)) * 9, rng.normal(size=50) * 20
    moments = Moments(*(torch.from_numpy(x)[None] for x in (env.obs_rms.mean, env.obs_rms.var)), torch.ones(1))
    spread = Moments(torch.ones(1).double(), torch.tensor([7.3]).double(), torch.ones(1))
    found_obs, found_reward = (
        normalize(standard(moments), torch.from_numpy(obs)[None]),
        scale(spread, torch.from_numpy(reward)[None]),
    )
    np.testing.assert_allclose(found_obs[0], env.normalize_obs(obs), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found_reward[0], env.normalize_reward(reward), rtol=1e-6, atol=1e-6)
    assert found_obs.abs().max() == 10
    env.close()


def test_a_reward_keeps_its_sign_and_its_zero():
    moments = feed(fresh(()), batches(np.random.default_rng(5), ()))
    assert moments.mean.abs().min() > 0
    reward = torch.tensor([-3.0, 0.0, 2.0]).double().expand(POP, 3)
    assert torch.equal(scale(moments, reward).sign(), reward.sign())


def test_population_laws():
    """Stacked = singles, isolation, permutation, graft; update_ writes in place, so every run starts from a copy."""
    rng = np.random.default_rng(6)
    before, x = feed(fresh(), batches(rng)), torch.from_numpy(rng.normal(size=(POP, 9, *SHAPE)))
    valid = torch.from_numpy((rng.random((POP, 9)) < 0.7).astype(float))

    def run(moments, x, valid):
        after = tree.map(torch.clone, moments)
        update_(after, x, valid)
        scalar = Moments(after.mean[:, 0, 0], after.var[:, 0, 0], after.count)
        return [*(leaf for _, leaf in tree.items(after)), normalize(standard(after), x), scale(scalar, x[..., 0, 0])]

    whole = run(before, x, valid)
    trees = (before, x, valid)
    for stacked, *parts in zip(
        whole, *(run(*(tree.slice(t, m, m + 1) for t in trees)) for m in range(POP)), strict=True
    ):
        torch.testing.assert_close(stacked, torch.cat(parts), atol=1e-12, rtol=0)
    disturbed = x.clone()
    disturbed[1] = float("nan")
    order, parents = torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2])
    for a, b, c, d in zip(
        whole,
        run(before, disturbed, valid),
        run(*(tree.gather(t, order) for t in trees)),
        run(*(tree.gather(t, parents) for t in trees)),
        strict=True,
    ):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
        torch.testing.assert_close(a[order], c, atol=1e-12, rtol=0)
        assert torch.equal(d[0], d[1])
