"""Grafts are followed over generations."""

import itertools
import math

import numpy as np
import pytest
import torch

from popgraft.state import Decision
from popgraft.store import Aftermath
from popgraft.train.aftermath import Follower, relative_spread, spread, summary

NAN = math.nan


BOTH = torch.arange(2)


def decision(*parents):
    parents = torch.tensor(parents)
    reasons = {i: "truncation" for i, parent in enumerate(parents.tolist()) if parent != i}
    return Decision(parents, {}, reasons)


def metrics(returns, **more):
    return {"ep_rew_mean": torch.tensor(returns), **more}


def test_a_graft_is_followed_for_ten_updates():
    follower = Follower()
    assert follower.follow(BOTH, metrics([[1.0, 2.0], [3.0, NAN]]), {}) == {}
    follower.begin(torch.tensor([0, 0]), decision(0, 0))
    cosine = {"momentum_cosine": torch.tensor([[0.1, 0.1], [0.25, 0.5]])}
    first = follower.follow(BOTH, metrics([[8.0, 8.0], [4.0, 5.0]], **cosine), {1: 1.5})[0, 1]
    assert (first.return_before, first.return_1) == (3.0, 4.0)  # the latest update that had a return
    assert (first.value_loss_ratio, first.momentum_cosine) == (1.5, 0.25)
    assert math.isnan(first.return_5)
    later = [
        follower.follow(BOTH, metrics([[9.0, 9.0], [10.0 * k, 10.0 * k + 1]]), {1: 9.0}).get((0, 1))
        for k in range(1, 6)
    ]
    assert (later[0].return_5, later[1].return_5) == (pytest.approx(NAN, nan_ok=True), 20.0)  # updates 3, 4 and 5, 6
    assert later[3].return_10 == 41.0  # updates 9 and 10
    assert later[3].value_loss_ratio == 1.5
    assert later[4] is None


def test_a_member_that_is_overwritten_again_is_followed_anew():
    follower = Follower()
    follower.begin(torch.tensor([0, 0]), decision(0, 0))
    follower.follow(BOTH, metrics([[1.0, 1.0], [2.0, 2.0]]), {})
    follower.begin(torch.tensor([1, 1]), decision(0, 0))
    assert set(follower.follow(BOTH, metrics([[1.0, 1.0], [7.0, 7.0]]), {})) == {(1, 1)}


def test_members_that_train_apart_are_followed_apart():
    follower = Follower()
    follower.begin(torch.tensor([4, 3]), decision(1, 0))
    assert set(follower.follow(BOTH[1:], metrics([[2.0, 6.0]]), {1: 1.5})) == {(3, 1)}
    found = follower.follow(BOTH[:1], metrics([[3.0, 7.0]]), {0: 0.5})
    assert {graft: (after.value_loss_ratio, after.return_1) for graft, after in found.items()} == {(4, 0): (0.5, 3.0)}
    assert follower.follow(BOTH[1:], metrics([[9.0] * 3]), {})[3, 1].return_5 == 9.0


def test_a_summary_counts_what_was_seen():
    found = summary(
        [
            Aftermath(1.0, 0.5, return_before=10.0, return_1=9.0, return_5=11.0),
            Aftermath(2.0, NAN, return_before=10.0, return_1=10.0),
            Aftermath(return_1=50.0),
        ]
    )
    assert (found["grafts"], found["value_loss_ratio"], found["momentum_cosine"]) == (3, 1.5, 0.5)
    assert (found["success_1"], found["success_5"]) == (0.5, 1.0)
    assert math.isnan(found["success_10"])


def test_the_spread_is_the_root_mean_square_distance_of_two_members():
    params = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    pairs = [float((a - b).square().mean()) for a, b in itertools.combinations(params, 2)]
    assert spread(params) == pytest.approx(math.sqrt(sum(pairs) / len(pairs)))
    assert spread(params[:1]) == 0
    assert spread(params[:1].expand(3, -1)) == pytest.approx(0, abs=1e-7)


def test_the_relative_spread_compares_pairs_with_what_unrelated_ones_would_have():
    momenta = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    rows = momenta.double().numpy()
    pairs = [np.square(a - b).sum() for a, b in itertools.combinations(rows, 2)]
    assert relative_spread(momenta) == pytest.approx(math.sqrt(np.mean(pairs) / (2 * np.square(rows).sum(1).mean())))
    assert relative_spread(1e-6 * momenta) == pytest.approx(relative_spread(momenta))
    assert relative_spread(torch.eye(4)) == pytest.approx(1)
    assert relative_spread(momenta[:1].expand(3, -1)) == pytest.approx(0, abs=1e-7)
    assert relative_spread(momenta[:1]) == 0
    assert math.isnan(relative_spread(torch.zeros(3, 7)))


def test_success_where_low_returns_are_good():
    # From 10 to 5, to 10 and to 12; a return that is not known counts nowhere.
    seen = [Aftermath(return_before=10.0, return_1=after) for after in (5.0, 10.0, 12.0, math.nan)]
    assert summary(seen, "min")["success_1"] == 2 / 3
    assert summary(seen, "max")["success_1"] == 2 / 3
    assert summary(seen[:1], "min")["success_1"] == 1
    assert summary(seen[:1], "max")["success_1"] == 0
