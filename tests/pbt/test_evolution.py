import dataclasses
import logging
import math
import subprocess
import sys

import numpy as np
import pytest
import torch

from popgraft.config import PopulationConfig
from popgraft.errors import PopulationLost
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt import Evolution, everybody
from popgraft.state import Member, Record, Scores

NAN = math.nan
RATE = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-2, is_log_scale=True)
GAMMA = HyperparamConfig("gamma", values=(0.9, 0.95, 0.99))
DEFAULTS = {"learning_rate": 3e-4, "gamma": 0.99, "clip_range": 0.2, "target_kl": math.inf}


def make(seed=0, **settings):
    return Evolution(PopulationConfig(**{"population_size": 8, "hyperparams": [RATE, GAMMA], **settings}), seed)


def scored(mean):
    mean = torch.as_tensor(mean, dtype=torch.float32)
    return Scores(mean, torch.zeros_like(mean), torch.ones(len(mean), dtype=torch.long))


def decided(strategy, number, scores, values, record=None, **known):
    """What is carried out of a strategy's choice; `known` says where not everybody decides at once."""
    standing = everybody(number, scores, values, strategy.config, strategy.seed, record, **known)
    return strategy.decide(standing, values, record)


def copied(values):
    return {name: tensor.clone() for name, tensor in values.items()}


def history(evolution, generations=12, sign=1.0):
    """Parents and values of a run in which a higher learning rate scores better, and members fail now and then."""
    values, steps = evolution.initial_hyperparams(DEFAULTS), []
    for generation in range(generations):
        mean = values["learning_rate"].log() * sign
        mean[generation % len(mean)] = NAN
        decision = decided(evolution, generation, scored(mean), values)
        values = decision.hyperparams
        steps.append((decision.parents.tolist(), decision.reasons, {k: v.tolist() for k, v in values.items()}))
    return steps


def test_initial_values_are_defaults_or_draws_from_the_space():
    values = make().initial_hyperparams(DEFAULTS)
    assert list(values) == list(DEFAULTS)
    assert all(tensor.dtype == torch.float32 and tensor.shape == (8,) for tensor in values.values())
    assert values["clip_range"].tolist() == [float(np.float32(0.2))] * 8
    assert values["target_kl"].tolist() == [math.inf] * 8
    assert len(set(values["learning_rate"].tolist())) == 8
    assert all(1e-5 <= rate <= 1e-2 for rate in values["learning_rate"].tolist())
    assert set(values["gamma"].tolist()) <= {float(np.float32(choice)) for choice in GAMMA.values}


def test_initial_values_do_not_depend_on_the_size_or_on_other_spaces():
    small = make(population_size=3, hyperparams=[GAMMA, RATE]).initial_hyperparams(DEFAULTS)
    large = make(population_size=8, hyperparams=[RATE]).initial_hyperparams(DEFAULTS)
    assert torch.equal(small["learning_rate"], large["learning_rate"][:3])
    other = make(seed=1).initial_hyperparams(DEFAULTS)
    assert not torch.equal(other["learning_rate"], large["learning_rate"])


def test_initial_values_of_two_hyperparameters_are_independent():
    clip = HyperparamConfig("clip_range", min_value=0.1, max_value=0.4)
    coef = HyperparamConfig("vf_coef", min_value=0.1, max_value=0.4)
    values = make(population_size=400, hyperparams=[clip, coef]).initial_hyperparams(DEFAULTS)
    assert np.corrcoef(values["clip_range"], values["vf_coef"])[0, 1] == pytest.approx(0, abs=5 / math.sqrt(400))


def test_integer_bounds_bound_real_numbers():
    values = make(hyperparams=[HyperparamConfig("gamma", min_value=0, max_value=1)]).initial_hyperparams(DEFAULTS)
    assert all(0 < gamma < 1 for gamma in values["gamma"].tolist())


@pytest.mark.parametrize("n", range(2, 21))
@pytest.mark.parametrize("method", ["perturb", "resample", "both", "none"])
def test_laws_of_a_decision(n, method):
    evolution = make(population_size=n, explore_method=method, ready_percentage=0.1)
    values = evolution.initial_hyperparams(DEFAULTS)
    for generation in range(4):
        mean = torch.from_numpy(np.random.default_rng(generation).normal(size=n)).float()
        mean[0] = NAN
        before = copied(values)
        decision = decided(evolution, generation, scored(mean), values)
        parents, recipients = decision.parents, set(decision.recipients.tolist())
        assert set(decision.reasons) == recipients
        assert decision.reasons[0] == "rescue"
        assert all(decision.reasons[i] == "truncation" for i in recipients - {0})
        assert recipients.isdisjoint(parents[list(recipients)].tolist()), "a donor was overwritten"
        assert mean.isfinite()[parents].all()
        survivors = [i for i in range(n) if i not in recipients]
        for name, old in before.items():
            new = decision.hyperparams[name]
            assert torch.equal(values[name], old), "the input was changed"
            assert new.dtype == torch.float32
            assert torch.equal(new[survivors], old[survivors])
            if method == "none" or name in ("clip_range", "target_kl"):
                assert torch.equal(new, old[parents])
        assert all(RATE.contains(rate) for rate in decision.hyperparams["learning_rate"].tolist())
        assert all(
            gamma in [float(np.float32(c)) for c in GAMMA.values] for gamma in decision.hyperparams["gamma"].tolist()
        )
        values = decision.hyperparams


def test_a_recipient_explores_from_the_donors_value():
    evolution = make(explore_method="perturb")
    values = evolution.initial_hyperparams(DEFAULTS)
    values["learning_rate"] = torch.linspace(1e-4, 8e-4, 8)
    decision = decided(evolution, 0, scored(range(8)), values)
    assert decision.recipients.tolist() == [0]
    donor = float(values["learning_rate"][7])
    assert float(decision.hyperparams["learning_rate"][0]) == pytest.approx(donor * 1.2, rel=1e-6) or float(
        decision.hyperparams["learning_rate"][0]
    ) == pytest.approx(donor / 1.2, rel=1e-6)


def test_a_choice_moves_to_a_neighbour_although_stored_in_single_precision():
    evolution = make(explore_method="perturb", population_size=2)
    values = evolution.initial_hyperparams(DEFAULTS) | {"gamma": torch.tensor([0.9, 0.9])}
    found = {float(decided(evolution, g, scored([0.0, 1.0]), values).hyperparams["gamma"][0]) for g in range(20)}
    assert found == {float(np.float32(0.95))}


def test_rounding_never_leaves_the_bounds():
    evolution = make(explore_method="perturb", population_size=2, hyperparams=[RATE])
    values = evolution.initial_hyperparams(DEFAULTS)
    seen = set()
    for generation in range(200):
        values = decided(
            evolution, generation, scored([0.0, 1.0] if generation % 2 else [1.0, 0.0]), values
        ).hyperparams
        seen |= set(values["learning_rate"].tolist())
    assert all(1e-5 <= rate <= 1e-2 for rate in seen)


def test_each_hyperparameter_and_generation_draws_its_own():
    spaces = [HyperparamConfig(name, min_value=0.1, max_value=0.9) for name in ("clip_range", "gamma")]
    evolution = make(explore_method="perturb", hyperparams=spaces, population_size=2)
    values = {"clip_range": torch.full((2,), 0.5), "gamma": torch.full((2,), 0.5)}
    ups = []
    for generation in range(200):
        new = decided(evolution, generation, scored([0.0, 1.0]), values).hyperparams
        ups.append([float(new[name][0]) > 0.5 for name in values])
    first, second = np.array(ups).T
    for share in (first.mean(), second.mean(), (first == second).mean()):
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(200)


def test_each_recipient_draws_its_own():
    evolution = make(explore_method="resample", truncation_ratio=0.5)
    decision = decided(evolution, 0, scored(range(8)), evolution.initial_hyperparams(DEFAULTS))
    assert len(set(decision.hyperparams["learning_rate"][:4].tolist())) == 4


def test_low_is_good_on_negated_scores_is_the_same_run():
    assert history(make(metric_mode="min"), sign=-1.0) == history(make(metric_mode="max"))


def test_a_part_of_the_population_decides():
    """Recipients are those who decide, donors those who can be compared, and both are chosen as among these alone."""
    evolution, values = make(truncation_ratio=0.5), make().initial_hyperparams(DEFAULTS)
    compared, deciding = torch.tensor([1, 2, 4, 6]), torch.tensor([1, 6])
    mean = torch.tensor([90.0, 1.0, 5.0, 80.0, 6.0, 70.0, 2.0, NAN])
    parts = [
        decided(evolution, n, scored(mean), values, compared=compared, deciding=deciding, heirs=4, together=False)
        for n in range(20)
    ]
    assert {int(parent) for one in parts for parent in one.parents[deciding]} == {2, 4}
    for one in parts:
        others = torch.tensor([0, 2, 3, 4, 5, 7])
        assert torch.equal(one.parents[others], others)  # not even the one without a score
        assert one.reasons == {1: "truncation", 6: "truncation"}
        assert all(torch.equal(one.hyperparams[name][others], column[others]) for name, column in values.items())
        assert not torch.equal(
            one.hyperparams["learning_rate"][deciding], values["learning_rate"][one.parents[deciding]]
        )
    mean[[1, 2]] = NAN
    rescued = decided(
        evolution, 20, scored(mean), values, compared=compared, deciding=deciding, together=False
    )  # two of eight are ready: nobody else copies
    assert (rescued.reasons, int(rescued.parents[6])) == ({1: "rescue"}, 6)
    assert evolution.readiness.failed == 1
    with pytest.raises(PopulationLost):
        decided(
            evolution, 21, scored(torch.full((8,), NAN)), values, compared=compared, deciding=deciding, together=False
        )


def test_the_record_is_the_last_of_those_compared():
    values = make().initial_hyperparams(DEFAULTS)
    evolution = make(exploit_method="backtracking", ready_percentage=0.1)
    state = object.__new__(Member)  # a decision looks at nothing but its hyperparameters and its age
    state.age = torch.zeros(1, dtype=torch.long)
    state.hyperparams = {name: torch.full_like(column[:1], 0.125) for name, column in values.items()}
    record = Record(state, scored([99.0]), 0, 0)
    compared = torch.tensor([3, 5, 7])
    one = decided(
        evolution, 0, scored(range(8)), values, record, compared=compared, deciding=torch.tensor([3, 5]), together=False
    )
    assert one.parents.tolist() == [0, 1, 2, 8, 4, 5, 6, 7]
    assert (one.hyperparams["clip_range"] == 0.125).tolist() == [member == 3 for member in range(8)]


def test_the_seed_decides_the_history():
    assert history(make(seed=3)) == history(make(seed=3))
    assert history(make(seed=3)) != history(make(seed=4))


def test_a_resumed_evolution_decides_as_the_uninterrupted_one():
    full, values = make(ready_check_max_wait=3), make().initial_hyperparams(DEFAULTS)
    mean = [1.0, 2.0, 3.0] + [NAN] * 5
    for generation in range(2):
        decided(full, generation, scored(mean), values)
    resumed = make(ready_check_max_wait=3)
    resumed.load_state_dict(full.state_dict())
    assert resumed.readiness.failed == 2
    for generation in range(2, 6):
        a, b = (decided(evolution, generation, scored(mean), values) for evolution in (full, resumed))
        assert torch.equal(a.parents, b.parents)
        assert all(torch.equal(a.hyperparams[name], b.hyperparams[name]) for name in values)
    assert full.state_dict() == resumed.state_dict()


def test_not_ready_only_rescues(caplog):
    evolution = make(ready_percentage=0.8, truncation_ratio=0.5)
    values = evolution.initial_hyperparams(DEFAULTS)
    decision = decided(evolution, 0, scored([NAN, NAN, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), values)  # 6 of 8, 7 needed
    assert decision.reasons == {0: "rescue", 1: "rescue"}
    assert evolution.readiness.failed == 1
    decision = decided(evolution, 1, scored([NAN, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), values)
    assert decision.reasons == {0: "rescue", 1: "truncation", 2: "truncation", 3: "truncation"}
    assert evolution.readiness.failed == 0
    assert not caplog.records


@pytest.mark.parametrize(
    ("n", "percentage", "needed"), [(10, 0.7, 7), (10, 0.71, 8), (100, 0.07, 7), (3, 0.1, 1), (4, 1.0, 4)]
)
def test_the_share_that_must_be_ready_is_rounded_up(n, percentage, needed):
    for ready in (needed - 1, needed):
        evolution = make(population_size=n, ready_percentage=percentage)
        mean = [NAN] * (n - ready) + list(range(ready))
        if ready:
            decided(evolution, 0, scored(mean), evolution.initial_hyperparams(DEFAULTS))
            assert evolution.readiness.failed == (0 if ready == needed else 1)


def test_after_enough_failed_checks_a_few_members_suffice(caplog):
    evolution = make(ready_check_max_wait=3, min_ready_members=3, truncation_ratio=0.5)
    values = evolution.initial_hyperparams(DEFAULTS)
    mean = [NAN] * 3 + [5.0, 4.0, 3.0, 2.0, 1.0]  # the worst four are 0, 1, 2 and 7
    proceeded, counts = [], []
    with caplog.at_level(logging.WARNING):
        for generation in range(7):
            decision = decided(evolution, generation, scored(mean), values)
            proceeded.append(decision.reasons.get(7) == "truncation")
            counts.append(evolution.readiness.failed)
    assert proceeded == [False, False, True, False, False, True, False]
    assert counts == [1, 2, 0, 1, 2, 0, 1]
    assert len(caplog.records) == 2
    assert "5 of 8 members have a finite score" in caplog.records[0].getMessage()


def test_too_few_members_never_suffice(caplog):
    evolution = make(ready_check_max_wait=2, min_ready_members=3, truncation_ratio=0.5)
    values = evolution.initial_hyperparams(DEFAULTS)
    for generation in range(4):
        decision = decided(evolution, generation, scored([NAN] * 6 + [1.0, 0.0]), values)
        assert set(decision.reasons.values()) == {"rescue"}
        assert 7 not in decision.reasons
    assert evolution.readiness.failed == 4
    assert not caplog.records


def test_random_search_replaces_only_unhealthy_members(caplog):
    evolution = make(exploit_method="none", ready_check_max_wait=1)
    values = evolution.initial_hyperparams(DEFAULTS)
    assert decided(evolution, 0, scored(range(8)), values).reasons == {}
    assert set(decided(evolution, 1, scored([NAN] * 7 + [1.0]), values).reasons.values()) == {"rescue"}
    assert evolution.readiness.failed == 0
    assert not caplog.records


def test_a_single_healthy_agent_goes_on_and_a_lost_one_does_not():
    evolution = make(population_size=1, exploit_method="none")
    values = evolution.initial_hyperparams(DEFAULTS)
    assert decided(evolution, 0, scored([1.0]), values).parents.tolist() == [0]
    with pytest.raises(PopulationLost):
        decided(evolution, 0, scored([NAN]), values)


@pytest.mark.heavy
def test_pythons_own_generator_is_untouched():
    # In a process of its own: here the run-time type checks draw from it.
    code = """
import random, torch
from popgraft.config import PopulationConfig
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt import Evolution, everybody
from popgraft.state import Member, Record, Scores
evolution = Evolution(PopulationConfig(hyperparams=[HyperparamConfig("gamma", min_value=0.9, max_value=1.0)]), 0)
before = random.getstate()
values = evolution.initial_hyperparams({"gamma": 0.9})
scores = Scores(torch.arange(8.0), torch.zeros(8), torch.ones(8, dtype=torch.long))
evolution(everybody(0, scores, values, evolution.config, 0))
assert random.getstate() == before
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "ttest"])
def test_every_method_copies_by_its_name_and_rescues(method):
    evolution = make(exploit_method=method, truncation_ratio=0.5)
    values = evolution.initial_hyperparams(DEFAULTS)
    scores = Scores(torch.tensor([NAN, *range(7)]), torch.full((8,), 1e-3), torch.full((8,), 10))
    found = [decided(evolution, generation, scores, values).reasons for generation in range(8)]
    assert all(reasons[0] == "rescue" for reasons in found)
    assert {reason for reasons in found for member, reason in reasons.items() if member} == {method}


@pytest.mark.parametrize("method", ["truncation", "none"])
def test_survivors_explore_too_if_asked_once_the_population_is_ready(method):
    evolution = make(exploit_method=method, explore_always=True, explore_method="perturb", truncation_ratio=0.5)
    values = evolution.initial_hyperparams(DEFAULTS)
    values["learning_rate"] = torch.linspace(1e-4, 8e-4, 8)
    decision = decided(evolution, 0, scored(range(8)), values)
    moved = decision.hyperparams["learning_rate"] / values["learning_rate"][decision.parents]
    assert all(ratio == pytest.approx(1.2, rel=1e-5) or ratio == pytest.approx(1 / 1.2, rel=1e-5) for ratio in moved)
    assert len(decision.recipients) == (4 if method == "truncation" else 0)
    assert torch.equal(decision.hyperparams["clip_range"], values["clip_range"])
    waiting = decided(evolution, 1, scored([1.0] + [NAN] * 7), values)
    assert evolution.readiness.failed == 1
    assert waiting.hyperparams["learning_rate"][0] == values["learning_rate"][0]


def test_backtracking_returns_the_worst_to_the_record_with_its_hyperparameters():
    evolution = make(exploit_method="backtracking", truncation_ratio=0.25, explore_method="none")
    values = evolution.initial_hyperparams(DEFAULTS)
    state = object.__new__(Member)  # a decision looks at nothing but its hyperparameters and its age
    state.age = torch.zeros(1, dtype=torch.long)
    state.hyperparams = {name: column[:1] + 0.5 for name, column in values.items()}
    record = Record(state, scored([6.5]), generation=3, place=5)
    decision = decided(evolution, 4, scored(range(8)), values, record)
    assert decision.reasons == {0: "backtracking", 1: "backtracking"}
    assert decision.parents.tolist() == [8, 8, *range(2, 8)]
    assert torch.equal(decision.hyperparams["gamma"][:2], (values["gamma"][:1] + 0.5).expand(2))
    assert torch.equal(decision.hyperparams["gamma"][2:], values["gamma"][2:])
    assert decided(evolution, 5, scored(range(7, 15)), values, record).reasons == {}
    lost = decided(evolution, 6, scored([NAN] * 8), values, record)
    assert lost.parents.tolist() == [8] * 8
    assert set(lost.reasons.values()) == {"rescue"}
    with pytest.raises(PopulationLost):
        decided(evolution, 7, scored([NAN] * 8), values)


@pytest.mark.parametrize("explore", ["none", "perturb"])
@pytest.mark.parametrize("compared", [range(8), (0, 1, 2, 5)])
def test_who_is_the_best_state_there_ever_was_does_not_return_to_it(explore, compared):
    """Its score of the latest generation may be low, and that of its contests high."""
    evolution = make(exploit_method="backtracking", truncation_ratio=0.25, explore_method=explore, ready_percentage=0.1)
    values = evolution.initial_hyperparams(DEFAULTS)
    state = object.__new__(Member)
    state.age = torch.zeros(1, dtype=torch.long)
    state.hyperparams = {name: column[:1] for name, column in values.items()}
    record = Record(state, scored([9.0]), generation=4, place=0)
    standing = everybody(4, scored(range(8)), values, evolution.config, 0, record, compared=torch.tensor(compared))
    standing = dataclasses.replace(standing, best=dataclasses.replace(standing.best, member=0))
    decision = evolution.decide(standing, values, record)
    lost = {1: 8} if len(compared) == 8 else {}  # the worst two of eight, the worst of four
    assert {member: int(decision.parents[member]) for member in decision.recipients.tolist()} == lost
    assert list(decision.reasons) == list(lost)
    assert all(decision.hyperparams[name][0] == values[name][0] for name in values)
