import math

import numpy as np
import pytest
import torch

from popgraft import PBTConfig, PBTScheduler
from popgraft.config.population import EXPLORE, PopulationConfig
from popgraft.hyperparams import HyperparamConfig, to_single
from popgraft.pbt import Evolution, everybody
from popgraft.state import Scores

NAMES = ("learning_rate", "ent_coef", "vf_coef", "max_grad_norm")

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


def fresh_draws(probabilities, grafts=1000):
    """Which numbers each of many grafts draws afresh, told by values that are not one step from the donor's."""
    spaces = [
        HyperparamConfig(name, min_value=1e-3, max_value=1.0, is_log_scale=True, resample_probability=probability)
        for name, probability in zip(NAMES, probabilities, strict=False)
    ]
    config = PopulationConfig(population_size=2 * grafts, hyperparams=spaces, truncation_ratio=0.5)
    values = {space.name: torch.full((2 * grafts,), 0.03) for space in spaces}
    scores = torch.arange(2 * grafts).float()
    standing = everybody(0, Scores(scores, scores, scores.long()), values, config, seed=0)
    decision = Evolution(config, 0).decide(standing, values)
    assert decision.recipients.tolist() == list(range(grafts))
    steps = torch.tensor([0.03 * 1.2, 0.03 / 1.2])
    moved = torch.stack([column[:grafts] for column in decision.hyperparams.values()], dim=1)
    return ~torch.isclose(moved[..., None], steps, rtol=1e-6, atol=0).any(-1)


def within_five_errors(share, expected, grafts=1000):
    return abs(share - expected) <= 5 * math.sqrt(expected * (1 - expected) / grafts)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_both_draws_one_number_afresh_in_a_quarter_of_all_grafts(count):
    fresh = fresh_draws([0.25] * count)
    assert within_five_errors(float(fresh.any(1).float().mean()), 0.25)
    assert fresh.sum(1).max() == 1
    for share in fresh.float().mean(0).tolist():
        assert within_five_errors(share, 0.25 / count)


def test_every_number_is_drawn_afresh_with_the_probability_that_it_has_been_given():
    fresh = fresh_draws([1.0, 0.5, 0.0, 0.25])
    assert fresh.sum(1).max() == 1
    for share, probability in zip(fresh.float().mean(0).tolist(), (1.0, 0.5, 0.0, 0.25), strict=True):
        assert within_five_errors(share, probability / 4)


def test_a_scheduler_draws_as_seldom(tmp_path):
    spaces = [HyperparamConfig(name, min_value=1e-3, max_value=1.0, is_log_scale=True) for name in NAMES]
    config = PBTConfig(
        population_size=2, perturbation_interval=1, hyperparams=spaces, truncation_ratio=0.5, checkpoint_dir=tmp_path
    )
    scheduler = PBTScheduler(config, seed=0)
    bad, good = scheduler.initialize_population()
    counts = []
    for step in range(1, 101):
        for member, score in ((good, 1.0), (bad, 0.0)):
            scheduler.update_performance(member, score, step, model_parameters={"w": torch.zeros(1)})
        _, values, _ = scheduler.exploit_and_explore(bad)
        near = [
            min(abs(values[name] / good.hyperparams[name] / factor - 1) for factor in (1.2, 1 / 1.2)) < 1e-9
            or values[name] in (1e-3, 1.0)
            for name in NAMES
        ]
        counts.append(near.count(False))
    assert max(counts) == 1
    assert within_five_errors(counts.count(1) / 100, 0.25, 100)


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
