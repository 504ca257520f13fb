"""Hyperparameters that a bandit proposes: what it learns from, and what it finds."""

import functools
import math

import numpy as np
import pytest
import torch

from popgraft import ConfigError, PBTConfig, PBTScheduler
from popgraft.config import PopulationConfig
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt import Evolution, everybody
from popgraft.pbt.pb2 import PB2, Model, gains_of
from popgraft.pbt.standing import Past
from popgraft.state import Scores

NAN = math.nan
RATE = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-1, is_log_scale=True)
GAMMA = HyperparamConfig("gamma", values=(0.9, 0.95, 0.99))
CLIP = HyperparamConfig("clip_range", min_value=0.1, max_value=0.3)


def make(kind=PB2, spaces=(RATE,), population_size=6, **settings):
    given = {"strategy": "pb2", "explore_method": "perturb"} if kind is Evolution else {"strategy": "pb2"}
    config = PopulationConfig(
        population_size=population_size, hyperparams=list(spaces), truncation_ratio=0.34, **given, **settings
    )
    return kind(config, 0)


def scored(mean):
    mean = torch.as_tensor(mean, dtype=torch.float64)
    return Scores(mean, torch.zeros_like(mean), torch.ones(len(mean), dtype=torch.long))


def past(generation, member, score, parent=None, when=None, rate=1e-3):
    parent = member if parent is None else parent
    when = generation if when is None else when
    values = {"learning_rate": rate}
    return Past(generation, member, float(score), NAN, 0, generation, values, parent, when, parent)


def test_a_gain_counts_from_the_state_that_a_member_began_with():
    rows = [
        past(0, 0, 1.0),
        past(0, 1, 5.0),
        past(0, 2, NAN, parent=1),
        past(1, 0, 4.0, parent=2, when=1),
        past(1, 1, 6.0),
        past(1, 2, 8.0, parent=1, when=0, rate=2e-3),  # back to what 1 was before
    ]
    values = {"learning_rate": torch.tensor([0.01, 0.02, 0.03], dtype=torch.float64)}
    config = make(population_size=3).config
    known = {"steps": torch.tensor([2, 2, 2]), "recall": lambda: rows}
    gains, rounds = gains_of(everybody(2, scored([7.0, 6.5, 9.0]), values, config, 0, **known))
    found = [(g.round, g.explored, g.before, g.gain, g.hyperparams["learning_rate"]) for g in gains]
    assert found == [
        (1, False, 1.0, 3.0, 1e-3),
        (1, False, 5.0, 1.0, 1e-3),
        (1, True, 5.0, 3.0, 2e-3),
        (2, True, 8.0, -1.0, 0.01),
        (2, False, 6.0, 0.5, 0.02),
        (2, True, 5.0, 4.0, 0.03),
    ]
    assert rounds == [2, 2, 2]
    low = make(population_size=3, metric_mode="min").config
    gains, _ = gains_of(everybody(2, scored([7.0, 6.5, 9.0]), values, low, 0, **known))
    assert [g.gain for g in gains] == [-3.0, -1.0, -3.0, 1.0, -0.5, -4.0]


def test_a_report_that_the_history_has_already_is_not_counted_twice():
    rows = [past(0, 0, 1.0), past(1, 0, 4.0), past(0, 1, 1.0)]
    values = {"learning_rate": torch.tensor([1e-3, 1e-2], dtype=torch.float64)}
    known = {"steps": torch.tensor([1, 1]), "recall": lambda: rows, "together": False, "deciding": torch.tensor([1])}
    gains, rounds = gains_of(everybody(9, scored([4.0, 3.0]), values, make(population_size=2).config, 0, **known))
    assert [(gain.round, gain.gain) for gain in gains] == [(1, 3.0), (1, 2.0)]
    assert rounds == [1, 1]


def test_the_bound_is_the_posterior_mean_and_its_deviation():
    """With one hyperparameter, against a search of the whole range."""
    rows = [past(0, i, 0.0) for i in range(6)] + [past(1, i, g) for i, g in enumerate([0.0, 1, 3, 2, 1, 0])]
    for i, row in enumerate(rows[6:]):
        row.hyperparams["learning_rate"] = 10.0 ** (-5 + 4 * i / 5)
    values = {"learning_rate": torch.full((6,), 1e-3, dtype=torch.float64)}
    known = {"steps": torch.full((6,), 1), "recall": lambda: rows}
    gains, _ = gains_of(everybody(2, scored([0.0, 1, 3, 2, 1, 0]), values, make().config, 0, **known))
    model = Model([RATE], gains)
    assert model.bonus == pytest.approx(math.sqrt(0.2 + math.log(0.4 * 6)))
    best = model.best(np.random.default_rng(0), 2.0, 2)["learning_rate"]
    shares = torch.linspace(0, 1, 4001).double()
    x = torch.stack([torch.zeros_like(shares), shares], 1)
    mean, deviation = model.process.at(x, torch.full_like(shares, 2.0))
    expected = 10 ** (-5 + 4 * float(shares[(mean + model.bonus * deviation).argmax()]))
    assert best == pytest.approx(expected, rel=0.02)


def test_recipients_do_not_all_take_the_same():
    strategy = make(population_size=8, spaces=(RATE, CLIP))
    values = strategy.initial_hyperparams({"learning_rate": 1e-3, "clip_range": 0.2})
    decision = strategy.decide(everybody(0, scored(range(8)), values, strategy.config, 0), values)
    taken = [decision.hyperparams[name][decision.recipients] for name in ("learning_rate", "clip_range")]
    shares = torch.tensor(
        [[RATE.unit(float(a)), CLIP.unit(float(b))] for a, b in zip(*taken, strict=True)], dtype=torch.float64
    )
    assert len(shares) == 2
    assert torch.pdist(shares).min() > 0.3


def evolved(kind, seed, before, after, change=5, generations=14):
    """Scores rise the faster the nearer log₁₀ of the rate is to a value that changes; how near it is at the end."""
    strategy = make(kind)
    strategy.seed = seed
    values, rows, noise = strategy.initial_hyperparams({"learning_rate": 1e-3}), [], np.random.default_rng(seed)
    score, distances = np.zeros(6), []
    for number in range(generations):
        off = (values["learning_rate"].double().log10() - (before if number < change else after)).abs().numpy()
        distances.append(off.mean())
        score = score + 1 - off**2 / 4 + 0.05 * noise.normal(size=6)
        known = {"steps": torch.full((6,), number + 1), "recall": functools.partial(tuple, rows)}
        rates = values["learning_rate"].tolist()
        decision = strategy.decide(everybody(number, scored(score), values, strategy.config, seed, **known), values)
        parents, values = decision.parents.tolist(), decision.hyperparams
        rows += [past(number, i, score[i], parents[i], number, rates[i]) for i in range(6)]
        score = score[parents]
    return float(np.mean(distances[-4:]))


def test_it_follows_a_best_value_that_changes_faster_than_perturbing():
    """Decades between the population's rates and the best one, in both directions."""
    ways = [(0, -4.5, -2.0), (1, -1.5, -4.0)]
    found = {kind: [evolved(kind, *way) for way in ways] for kind in (PB2, Evolution)}
    assert max(found[PB2]) < 0.6 * min(found[Evolution])


def test_choices_are_those_that_have_gained():
    strategy = make(spaces=(GAMMA,))
    rng, values = np.random.default_rng(0), strategy.initial_hyperparams({"gamma": 0.99})
    rows, score, drawn = [], np.zeros(6), []
    for number in range(120):
        gamma = values["gamma"].tolist()
        score = score + np.isclose(gamma, 0.95) + 0.01 * rng.normal(size=6)
        known = {"steps": torch.full((6,), number + 1), "recall": functools.partial(tuple, rows)}
        decision = strategy.decide(everybody(number, scored(score), values, strategy.config, 0, **known), values)
        rows += [
            Past(number, i, float(score[i]), NAN, 0, number + 1, {"gamma": gamma[i]}, parent, number, parent)
            for i, parent in enumerate(decision.parents.tolist())
        ]
        values, score = decision.hyperparams, score[decision.parents.tolist()]
        drawn += values["gamma"][decision.recipients].tolist()
    assert {round(value, 2) for value in drawn} == {0.9, 0.95, 0.99}
    late = drawn[-80:]
    assert sum(round(value, 2) == 0.95 for value in late) / len(late) > 0.6


def test_models_that_are_trained_elsewhere_are_told_what_to_take(tmp_path):
    count = HyperparamConfig("gamma", values=(0.9, 0.99))
    config = PBTConfig(
        population_size=4, perturbation_interval=1, hyperparams=[RATE, count], strategy="pb2", checkpoint_dir=tmp_path
    )

    def run(saved_after):
        scheduler = PBTScheduler(config, seed=0)
        members = scheduler.initialize_population()
        for step in range(1, 6):
            for member in members:
                score = member.step - abs(math.log10(member.hyperparams["learning_rate"]) + 3)
                scheduler.update_performance(member, score, step, {"policy": {"w": torch.ones(1)}})
            for member in members:
                if scheduler.should_exploit_and_explore(member):
                    scheduler.exploit_and_explore(member)
            if step == saved_after:
                state, scheduler = scheduler.state_dict(), PBTScheduler(config, seed=1)
                scheduler.load_state_dict(state)
                members = scheduler.population
        return [(member.hyperparams, member.performance, member.exploited_from) for member in members]

    straight = run(None)
    assert run(3) == straight
    assert any(donor is not None for _, _, donor in straight)
    assert all(RATE.contains(values["learning_rate"]) and values["gamma"] in (0.9, 0.99) for values, *_ in straight)


def test_an_explore_method_is_not_read():
    with pytest.raises(ConfigError, match=r"pbt\.explore_method='none' is not read by strategy: pb2; remove it"):
        make(explore_method="none")
    with pytest.raises(ConfigError, match=r"strategy_kwargs are for an own strategy, and strategy is 'pb2'"):
        make(strategy_kwargs={"beta": 1})
