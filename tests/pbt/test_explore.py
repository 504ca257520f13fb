import math

import numpy as np
import pytest

from popgraft.config.population import EXPLORE, PopulationConfig
from popgraft.hyperparams import HyperparamConfig, to_single

LOG = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-2, is_log_scale=True)
CHOICES = HyperparamConfig("gamma", values=(0.9, 0.95, 0.99))


def explored(space, value, method, draws=400):
    explore, stream = EXPLORE.load(method)(PopulationConfig()), np.random.default_rng(0)
    return [explore.explored(space, value, stream) for _ in range(draws)]


def test_perturb_makes_one_step():
    assert set(explored(LOG, 1e-3, "perturb")) == {1e-3 * 1.2, 1e-3 / 1.2}


def test_resample_forgets_the_donor():
    assert explored(LOG, 1e-3, "resample") == explored(LOG, 1e-5, "resample")
    assert len(set(explored(LOG, 1e-3, "resample"))) == 400


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_both_draws_afresh_with_the_given_probability(probability):
    space = HyperparamConfig("x", min_value=1.0, max_value=9.0, resample_probability=probability)
    values = explored(space, 3.0, "both", draws=2000)
    afresh = sum(value not in (3.0 * 1.2, 3.0 / 1.2) for value in values)
    assert abs(afresh - 2000 * probability) <= 5 * math.sqrt(2000 * probability * (1 - probability))


@pytest.mark.parametrize(
    ("low", "high"),
    [
        (1e-5, 1e-2),
        (0.1, 0.3),
        (0.0, 0.01),
        (-0.7, -0.1),
        (1e-46, 1e-3),
        (1 + 1e-8, 1.1),
        (16777217.0, 2e8),
        (0.9, 0.999),
    ],
)
def test_rounding_stays_inside_the_bounds(low, high):
    space = HyperparamConfig("x", min_value=low, max_value=high)
    stream = np.random.default_rng(0)
    for value in [
        low,
        high,
        math.nextafter(low, high),
        math.nextafter(high, low),
        *(space.sample(stream) for _ in range(200)),
    ]:
        single = to_single(space, value)
        assert low <= single <= high
        assert single == float(np.float32(single))
        assert abs(single - value) <= float(np.spacing(np.float32(abs(value)))) + 2e-45


def test_plain_rounding_would_have_left_the_bounds():
    assert float(np.float32(1e-5)) < 1e-5
    assert to_single(LOG, 1e-5) == float(np.nextafter(np.float32(1e-5), np.float32(1)))
    assert to_single(LOG, 1e-3) == float(np.float32(1e-3))


def test_a_range_too_narrow_for_single_precision_gives_the_nearest():
    point = HyperparamConfig("x", min_value=0.1, max_value=0.1)
    assert to_single(point, 0.1) == float(np.float32(0.1))


def test_a_choice_is_found_again_after_rounding():
    for choice in CHOICES.values:
        single = to_single(CHOICES, choice)
        assert single != choice
        assert CHOICES.listed(single) == choice
    assert set(explored(CHOICES, CHOICES.listed(to_single(CHOICES, 0.9)), "perturb")) == {0.95}
    assert CHOICES.listed(0.5) == 0.5
    assert LOG.listed(0.5) == 0.5
