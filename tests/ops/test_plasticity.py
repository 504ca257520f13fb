"""Diagnostics of plasticity beside NumPy's definitions, and in a shard that trains."""

import math

import numpy as np
import pytest
import torch

from popgraft.ops.plasticity import dormant, effective_rank


def features(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape)).float()


def test_a_unit_is_dormant_by_its_share_of_the_layers_mean_activity():
    # Activities 1, 0.02, 1, 0 have the mean 0.505, of which 0.025 is 0.0126: 0.02 is above it, and 0.012 is not.
    layer = torch.tensor([[1.0, 0.02, -1.0, 0.0], [1.0, 0.012, -1.0, 0.0]]).unsqueeze(1).expand(2, 6, 4).clone()
    layer[:, ::2] *= -1
    assert dormant(layer).tolist() == [[False, False, False, True], [False, True, False, True]]
    assert dormant(torch.zeros(1, 5, 3)).all()


def test_activity_is_a_mean_over_all_samples():
    layer = torch.zeros(1, 10, 8, 3)
    layer[..., :2] = 1.0
    layer[0, 3, 5, 2] = 80 * 0.02  # 0.02 on average, beside 1 and 1: a share of 0.0297
    assert dormant(layer).tolist() == [[False, False, False]]
    layer[0, 3, 5, 2] = 80 * 0.0165  # 0.0246
    assert dormant(layer).tolist() == [[False, False, True]]


def srank(matrix):
    values = np.linalg.svd(matrix, compute_uv=False)
    return int(np.argmax(np.cumsum(values) / values.sum() >= 0.99) + 1)


@pytest.mark.parametrize("shape", [(3, 5, 8, 6), (3, 2, 2, 9)])
def test_the_effective_rank_is_that_of_singular_values(shape):
    given = features(*shape)
    given[1] = given[1, :1, :1] * features(*shape[1:-1], 1, seed=1)  # of rank one
    given[2, ..., 2:] *= 0.002
    expected = [srank(one.flatten(0, 1).double().numpy()) for one in given]
    assert effective_rank(given).tolist() == expected
    assert expected[1] == 1


def test_the_share_that_is_left_out_is_of_the_values_and_not_their_squares():
    # Singular values 98, 1, 1: two of them are 0.99 of the sum, the first alone 0.98, and of the squares 0.9998.
    assert effective_rank(torch.diag(torch.tensor([98.0, 1.0, 1.0])).unsqueeze(0)).tolist() == [2]
    assert effective_rank(torch.zeros(1, 4, 3)).tolist() == [0]


def test_a_member_that_has_failed_leaves_others_alone():
    given = features(2, 20, 4)
    given[0, 3, 1] = math.nan
    found = effective_rank(given).tolist()
    assert math.isnan(found[0])
    assert found[1] == 4
