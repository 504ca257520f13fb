import dataclasses
from pathlib import Path

import numpy as np
import pytest

from popgraft.dashboard.data import RunData, read
from popgraft.dashboard.importance import importance, residuals

POP, ROWS = 12, 60


@pytest.fixture
def plain(trained: Path) -> RunData:
    return read(trained)


def run(plain: RunData, scores: np.ndarray, values: dict[str, np.ndarray]) -> RunData:
    """A run without grafts."""
    rows = np.arange(len(scores))
    return dataclasses.replace(
        plain,
        generations=rows,
        taken=np.repeat(16 * (rows + 1.0)[:, None], scores.shape[1], 1),
        scores=scores,
        stderr=np.ones_like(scores),
        hyperparams=values,
        metrics={},
        population={},
        grafts=[],
        ended=rows * 1.0,
    )


def planted(plain: RunData, strength: float, seed: int = 0) -> RunData:
    """Members whose scores rise by `strength` times the size of the learning rate, and by noise of 1."""
    rng = np.random.default_rng(seed)
    rates, ranges = rng.uniform(-1, 1, (2, ROWS, POP))
    gains = strength * rates + rng.standard_normal((ROWS, POP)) + rng.standard_normal((ROWS, 1)) * 5
    return run(plain, np.cumsum(gains, 0), {"learning_rate": 10**rates, "clip_range": ranges})


def test_a_planted_effect_is_found_and_its_size_is_right(plain: RunData) -> None:
    rate, clip = importance(planted(plain, 1.0), parts=1)
    # Var(rate) = 1/3 against noise of 1: a share of 1/4, of which four bins keep 15/16 and ranks nearly all
    assert abs(rate.share - 15 / 64) < 2.5 * rate.stderr
    assert 0.01 < rate.stderr < 0.06
    assert rate.favours > 0.4
    assert abs(clip.share) < 2.5 * clip.stderr + 0.01
    assert importance(planted(plain, -1.0), parts=1)[0].favours < -0.4


def test_an_optimum_in_the_middle_is_found(plain: RunData) -> None:
    rng = np.random.default_rng(1)
    rates = rng.uniform(-1, 1, (ROWS, POP))
    scores = np.cumsum(-6 * rates**2 + rng.standard_normal((ROWS, POP)), 0)
    (rate,) = importance(run(plain, scores, {"learning_rate": rates}), parts=1)
    assert rate.share > 0.4
    assert abs(rate.favours) < 0.15


def test_without_an_effect_the_share_is_0_on_average_and_as_uncertain_as_stated(plain: RunData) -> None:
    found = [importance(planted(plain, 0.0, seed), parts=1)[0] for seed in range(60)]
    shares = np.array([each.share for each in found])
    assert abs(shares.mean()) < 3 * shares.std() / len(shares) ** 0.5
    assert 0.6 < np.mean([each.stderr for each in found]) / shares.std() < 1.7


def test_parts_of_the_run_are_told_apart(plain: RunData) -> None:
    late, early = planted(plain, 2.0), planted(plain, 0.0)
    half = ROWS // 2
    gains = np.concatenate([np.diff(early.scores, axis=0)[:half], np.diff(late.scores, axis=0)[half:]])
    scores = np.concatenate([np.zeros((1, POP)), np.cumsum(gains, 0)])
    data = run(plain, scores, {"learning_rate": late.hyperparams["learning_rate"]})
    first, second = importance(data, parts=2)
    assert (first.first, first.last, second.first, second.last) == (1, 30, 31, 59)
    assert first.share < 0.1 < 0.3 < second.share


def test_progress_counts_from_the_donors_score(trained: Path) -> None:
    data = read(trained)
    rows, members, _ = residuals(data)
    assert set(rows.tolist()) == set(range(1, 6))
    assert sorted(zip(rows.tolist(), members.tolist(), strict=True)) == [(r, m) for r in range(1, 6) for m in range(4)]


def test_nothing_is_said_of_too_few_scores(trained: Path) -> None:
    assert importance(read(trained)) == []
