"""A bandit with several plays a round, by hand and against choices whose rewards change."""

import math

import numpy as np
import pytest

from popgraft.pbt.exp3 import Exp3


def test_a_round_by_hand():
    bandit = Exp3(2)
    assert bandit.probabilities.tolist() == [0.5, 0.5]
    bandit.learn([(0, 1.0), (0, 0.5), (1, 0.5)])
    # γ = 0.2, C = 2, p = ½ each: 0.1 · (1 + 0.5)/½ = 0.3 and 0.1 · 0.5/½ = 0.1; a share of e · 0.01/2 for both.
    grown = [0.5 * math.exp(0.3) + math.e * 0.005, 0.5 * math.exp(0.1) + math.e * 0.005]
    weights = [value / sum(grown) for value in grown]
    assert bandit.weights.tolist() == pytest.approx(weights, rel=1e-12)
    assert bandit.probabilities.tolist() == pytest.approx([0.8 * w + 0.1 for w in weights], rel=1e-12)
    assert sum(bandit.probabilities) == pytest.approx(1)


def test_rounds_without_plays_forget():
    bandit = Exp3(2)
    bandit.learn([(0, 1.0)] * 30)
    sure = bandit.probabilities[0]
    for _ in range(500):
        bandit.learn([])
    assert sure > 0.8
    assert bandit.probabilities[0] == pytest.approx(0.5, abs=0.01)


def test_it_finds_the_best_choice_and_finds_another_when_that_changes():
    bandit, rng = Exp3(4), np.random.default_rng(0)
    shares = []
    for best in (1, 3):
        drawn = []
        for _ in range(150):
            plays = [bandit.draw(rng) for _ in range(3)]
            bandit.learn([(play, float(play == best)) for play in plays])
            drawn += plays
        shares.append(drawn[-150:].count(best) / 150)
    assert min(shares) > 0.7  # of 0.85 at most: a fifth of all plays is uniform
