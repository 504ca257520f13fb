import math

import numpy as np
import pytest

from popgraft.errors import ConfigError
from popgraft.hyperparams import HyperparamConfig

LINEAR = HyperparamConfig("clip_range", min_value=0.1, max_value=0.4)
LOG = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-2, is_log_scale=True)
AROUND_ZERO = HyperparamConfig("ent_coef", min_value=-0.5, max_value=1.5)
FROM_ZERO = HyperparamConfig("ent_coef", min_value=0.0, max_value=0.01)
NEGATIVE = HyperparamConfig("shift", min_value=-2.0, max_value=-0.5)
INTEGER = HyperparamConfig("n_steps", min_value=1, max_value=512)
LOG_INTEGER = HyperparamConfig("n_steps", min_value=4, max_value=512, is_log_scale=True)
RANGES = [LINEAR, LOG, AROUND_ZERO, FROM_ZERO, NEGATIVE, INTEGER, LOG_INTEGER]
CHOICES = HyperparamConfig("gamma", values=(0.9, 0.95, 0.99))


def rng(seed=0):
    return np.random.default_rng(seed)


def outcomes(space, value, draws=60):
    """Every value that a perturbation of `value` gives."""
    stream = rng()
    return {space.perturb(value, stream) for _ in range(draws)}


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "give both bounds, or a list of `values`"),
        ({"min_value": 0.1}, "max_value=None; give both bounds"),
        ({"min_value": 0.1, "max_value": 1.0, "values": [1]}, "both values and bounds"),
        ({"max_value": 1.0, "values": [1]}, "both values and bounds"),
        ({"values": []}, "values is empty"),
        ({"values": [0.1, 0.2, 0.1]}, "lists a choice twice"),
        ({"values": [0.1], "is_log_scale": True}, "is_log_scale applies to a range"),
        ({"min_value": 0.0, "max_value": math.inf}, "must be finite"),
        ({"min_value": math.nan, "max_value": 1.0}, "must be finite"),
        ({"min_value": 2.0, "max_value": 1.0}, "swap them"),
        ({"min_value": 0.0, "max_value": 1.0, "is_log_scale": True}, "needs min_value > 0, not 0.0"),
        ({"values": [1], "perturbation_factor": 1.0}, "perturbation_factor=1.0 must be finite and above 1"),
        ({"values": [1], "perturbation_factor": math.nan}, "must be finite and above 1"),
        ({"values": [1], "perturbation_factor": math.inf}, "must be finite and above 1"),
        ({"values": [1], "resample_probability": 1.5}, r"must lie in \[0, 1\]"),
        ({"values": [1], "resample_probability": math.nan}, r"must lie in \[0, 1\]"),
    ],
)
def test_what_cannot_work_is_refused(settings, reason):
    with pytest.raises(ConfigError, match=f"hyperparameter 'x': .*{reason}"):
        HyperparamConfig("x", **settings)


def test_a_number_in_quotes_is_refused_in_words():
    with pytest.raises(
        ValueError, match="hyperparameter 'x': min_value='1e-5' is not a number; write it without quotes"
    ):
        HyperparamConfig("x", min_value="1e-5", max_value=1.0)


def test_kinds_and_membership():
    assert (LINEAR.is_continuous, LINEAR.is_categorical, LINEAR.bounds) == (True, False, (0.1, 0.4))
    assert (CHOICES.is_continuous, CHOICES.is_categorical) == (False, True)
    assert LINEAR.contains(0.1)
    assert LINEAR.contains(0.4)
    assert not LINEAR.contains(0.4000001)
    assert not LINEAR.contains(math.nan)
    assert not LINEAR.contains("0.2")
    assert CHOICES.contains(0.95)
    assert not CHOICES.contains(0.92)


@pytest.mark.parametrize("space", RANGES)
def test_sampling_and_perturbation_stay_inside_and_keep_the_type(space):
    stream, kind = rng(), type(space.min_value)
    value = space.sample(stream)
    for _ in range(300):
        assert space.contains(value)
        assert type(value) is kind
        assert space.contains(space.sample(stream))
        value = space.perturb(value, stream)


@pytest.mark.parametrize("space", RANGES)
@pytest.mark.parametrize("value", [-math.inf, -1e9, 0.0, 1e9, math.inf, math.nan])
def test_a_value_from_outside_comes_inside(space, value):
    assert all(space.contains(new) for new in outcomes(space, value))


def test_linear_sampling_is_uniform():
    draws = np.array([LINEAR.sample(stream) for stream in [rng()] for _ in range(4000)])
    counts, _ = np.histogram(draws, bins=10, range=LINEAR.bounds)
    assert np.all(np.abs(counts - 400) < 5 * math.sqrt(400 * 0.9))


def test_log_sampling_is_uniform_in_decades():
    draws = np.array([LOG.sample(stream) for stream in [rng()] for _ in range(3000)])
    counts, _ = np.histogram(np.log10(draws), bins=3, range=(-5, -2))
    assert np.all(np.abs(counts - 1000) < 5 * math.sqrt(1000 * 2 / 3))


def test_integer_sampling_includes_both_ends():
    die = HyperparamConfig("die", min_value=1, max_value=6)
    draws = [die.sample(stream) for stream in [rng()] for _ in range(6000)]
    assert sorted(set(draws)) == [1, 2, 3, 4, 5, 6]
    assert all(abs(draws.count(face) - 1000) < 5 * math.sqrt(1000 * 5 / 6) for face in range(1, 7))


def test_choices_are_sampled_evenly():
    draws = [CHOICES.sample(stream) for stream in [rng()] for _ in range(3000)]
    assert all(abs(draws.count(value) - 1000) < 5 * math.sqrt(1000 * 2 / 3) for value in CHOICES.values)


def test_up_and_down_are_even():
    draws = [LINEAR.perturb(0.2, stream) > 0.2 for stream in [rng()] for _ in range(2000)]
    assert abs(sum(draws) - 1000) < 5 * math.sqrt(500)


@pytest.mark.parametrize(
    ("space", "value", "expected"),
    [
        (LINEAR, 0.2, {0.2 * 1.2, 0.2 / 1.2}),
        (LINEAR, 0.1, {0.1 * 1.2, 0.1}),  # ÷ f is clipped
        (LINEAR, 0.39, {0.4, 0.39 / 1.2}),
        (LOG, 1e-3, {1e-3 * 1.2, 1e-3 / 1.2}),
        (AROUND_ZERO, 0.0, {0.0 + (1.2 - 1) * 2.0, 0.0 - (1.2 - 1) * 2.0}),  # span 2: ± 0.4, never stuck at 0
        (FROM_ZERO, 0.0, {0.0, (1.2 - 1) * 0.01}),
        (NEGATIVE, -1.0, {-1.2, -1.0 / 1.2}),
        (INTEGER, 100, {120, 83}),
        (INTEGER, 2, {3, 1}),  # 2.4 and 1.67 would both round to 2
        (INTEGER, 1, {1, 2}),
        (INTEGER, 1.5, {1.5 * 1.2, 1.5 / 1.2}),  # a float stays a float
    ],
)
def test_a_range_is_perturbed_by_one_step(space, value, expected):
    assert {type(new) for new in outcomes(space, value)} == {type(value)}
    assert sorted(outcomes(space, value)) == pytest.approx(sorted(expected), rel=1e-12)


def test_small_negative_integers_move_away_from_zero_and_towards_it():
    assert outcomes(HyperparamConfig("k", min_value=-9, max_value=-1), -2) == {-3, -1}


@pytest.mark.parametrize(
    ("values", "value", "expected"),
    [
        ((0.9, 0.95, 0.99), 0.95, {0.9, 0.99}),
        ((0.9, 0.95, 0.99), 0.9, {0.95}),  # reflected
        ((0.9, 0.95, 0.99), 0.99, {0.95}),
        (("a", "b"), "a", {"b"}),
        ((64,), 64, {64}),
        ([16, 32, 64], 7, {16, 32, 64}),  # unknown: drawn afresh
        ((True, None, "x"), None, {True, "x"}),
    ],
)
def test_a_choice_moves_to_a_neighbour(values, value, expected):
    found = outcomes(HyperparamConfig("c", values=values), value)
    assert found == expected
    assert {type(new) for new in found} == {type(choice) for choice in expected}


def test_a_range_of_one_point_stays_there():
    point = HyperparamConfig("p", min_value=0.3, max_value=0.3)
    assert outcomes(point, 0.3) == {0.3}
    assert point.sample(rng()) == 0.3


def test_the_generator_decides():
    for act in (LOG.sample, lambda stream: LOG.perturb(1e-3, stream)):
        assert [act(rng(seed)) for seed in range(9)] == [act(rng(seed)) for seed in range(9)]
        assert len({act(rng(seed)) for seed in range(9)}) > 1


@pytest.mark.parametrize(
    ("space", "one", "other", "expected"),
    [
        ({"min_value": 0.0, "max_value": 4.0}, 1.0, 2.0, 0.25),
        ({"min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}, 1e-4, 1e-3, 0.5),
        ({"min_value": 2.0, "max_value": 2.0}, 2.0, 2.0, 0.0),
        ({"values": [1, 3, 9]}, 1, 3, 0.5),
        ({"values": [1, 3, 9]}, 1, 7, 1.0),
        ({"values": ["a"]}, "a", "a", 0.0),
    ],
)
def test_the_distance_of_two_values_is_a_share_of_their_space(space, one, other, expected):
    config = HyperparamConfig("x", **space)
    assert config.distance(one, other) == pytest.approx(expected)
    assert config.distance(other, one) == pytest.approx(expected)


def single(value):
    """As a member holds it: rounded to 24 binary digits."""
    exponent = math.frexp(value)[1]
    return round(value * 2 ** (24 - exponent)) / 2 ** (24 - exponent)


@pytest.mark.parametrize("choice", [0.3, 0.1, 1e-5, 0.123456789012345, 7, 1.0])
def test_a_choice_is_itself_after_rounding_to_single_precision(choice):
    space = HyperparamConfig("x", values=[choice, 0.6, 0.9])
    rounded = single(choice)
    assert space.exact(rounded) == choice
    assert space.contains(rounded)
    assert outcomes(space, rounded) == outcomes(space, choice)
    assert space.distance(rounded, single(0.6)) == space.distance(choice, 0.6) == 0.5
    assert not space.contains(choice * (1 + 1e-6))


@pytest.mark.parametrize("value", [0.3, 0.1, 1e-5, 3e-4, 0.25])
def test_rounding_leaves_no_range(value):
    low, high = (HyperparamConfig("x", min_value=a, max_value=b) for a, b in [(value, 2.0), (0.0, value)])
    for space in (low, high):
        assert space.contains(single(value))
        assert space.exact(single(value)) == value
    assert not low.contains(value * (1 - 1e-6))
    assert not high.contains(value * (1 + 1e-6))
    inside = HyperparamConfig("x", min_value=0.0, max_value=1.0)
    assert inside.exact(single(value)) == value


def test_choices_that_are_no_numbers_are_what_they_are():
    space = HyperparamConfig("x", values=["relu", (1, 2), True])
    assert space.contains((1, 2))
    assert not space.contains("tanh")
    assert not HyperparamConfig("x", values=[1, 2]).contains("1")
