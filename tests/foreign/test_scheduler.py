import copy
import dataclasses
import json
import logging
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from popgraft.errors import ConfigError, StoreError
from popgraft.foreign import PBTConfig, PBTScheduler, PopulationMember
from popgraft.foreign.checkpoint import V1, V2
from popgraft.hyperparams import HyperparamConfig
from popgraft.rng import numpy_generator

from .conftest import GAMMA, RATE, parameters

NAN, INF = math.nan, math.inf


def report(scheduler, scores, step=5, **options):
    """Everybody reports; the weights of member i are i."""
    for member, score in zip(scheduler.population, scores, strict=True):
        if score is not None:
            scheduler.update_performance(member, score, step, parameters(member.member_id, **options))


def test_a_member_is_the_published_contract():
    # Specification A18: these names in this order.
    names = ["member_id", "hyperparams", "performance", "step", "checkpoint_path", "vecnormalize_stats_path", "history"]
    assert [field.name for field in dataclasses.fields(PopulationMember)][:7] == names
    member = PopulationMember(3, {"lr": 0.1})
    assert [getattr(member, name) for name in names] == [3, {"lr": 0.1}, None, 0, None, None, []]
    assert member.exploited_from is None
    assert PopulationMember(0, {}).history is not PopulationMember(1, {}).history
    member.record_step(7, 1.5, member.hyperparams)
    member.hyperparams["lr"] = 0.2
    assert member.history == [{"step": 7, "performance": 1.5, "hyperparams": {"lr": 0.1}}]
    assert (member.step, member.performance, member.is_healthy) == (7, 1.5, True)


def test_initial_values_are_drawn_from_the_spaces_or_given(make):
    scheduler = make(population_size=8)
    assert [member.member_id for member in scheduler.population] == list(range(8))
    for member in scheduler.population:
        assert RATE.contains(member.hyperparams["learning_rate"])
        assert GAMMA.contains(member.hyperparams["gamma"])
    assert len({member.hyperparams["learning_rate"] for member in scheduler.population}) == 8
    given = scheduler.initialize_population([{"learning_rate": 1e-3}, {"gamma": 0.9, "other": "kept"}])
    assert given[0].hyperparams["learning_rate"] == 1e-3
    assert given[1].hyperparams == {**given[1].hyperparams, "gamma": 0.9, "other": "kept"}
    same = scheduler.initialize_population({"learning_rate": 1e-3, "gamma": 0.9})
    assert [member.hyperparams for member in same] == [{"learning_rate": 1e-3, "gamma": 0.9}] * 8
    same[0].hyperparams["gamma"] = 0.95
    assert same[1].hyperparams["gamma"] == 0.9
    assert scheduler.population is same


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ([{}] * 5, "5 entries for a population of 4"),
        ({"learning_rate": 0.5}, r"learning_rate=0\.5 is outside its bounds"),
        ([{}, {"gamma": 0.5}], r"gamma=0\.5 is outside its values"),
    ],
)
def test_initial_values_that_cannot_be_are_refused(make, given, reason):
    with pytest.raises(ConfigError, match=reason):
        make().initialize_population(given)


@pytest.mark.parametrize("interval", [1, 3, 6])
@pytest.mark.parametrize("exploits", [True, False])
def test_unit_steps_are_due_where_the_interval_divides_them(make, interval, exploits):
    scheduler = make(perturbation_interval=interval, truncation_ratio=0.5)
    due = []
    for step in range(13):
        for member in scheduler.population:
            scheduler.update_performance(member, float(member.member_id), step, parameters(member.member_id))
            asked = [scheduler.should_exploit_and_explore(member) for _ in range(2)]
            assert asked[0] is asked[1]
            assert asked[0] is (step > 0 and step % interval == 0)
            due += [asked[0]]
            if asked[0] and exploits:
                scheduler.exploit_and_explore(member)
    assert scheduler.exploitation_count > 0 if exploits else scheduler.exploitation_count == 0
    assert due.count(True) == 4 * (12 // interval)


def test_long_steps_are_due_once_the_interval_has_passed(make):
    scheduler = make(perturbation_interval=100)
    (member, *_), due = scheduler.population, []
    for step in (0, 64, 128, 192, 256, 320, 1000, 1001):
        scheduler.update_performance(member, 1.0, step)
        due.append(scheduler.should_exploit_and_explore(member))
    assert due == [False, False, True, False, True, False, True, False]  # 128, then 256 ≥ 128 + 100, then 1000


def test_a_copy_of_a_member_far_ahead_is_due_where_it_would_have_been(make):
    scheduler = make(perturbation_interval=10)
    report(scheduler, [0.0, 1.0, 2.0, 3.0], step=10)
    worst, best = scheduler.population[0], scheduler.population[3]
    scheduler.update_performance(best, 3.0, 95, parameters(3))
    assert scheduler.should_exploit_and_explore(worst)
    scheduler.exploit_and_explore(worst)
    assert (worst.step, worst.performance) == (95, None)  # a trainer that adopts the donor's step …
    due = []
    for step in range(11, 21):  # … and one that goes on with its own
        scheduler.update_performance(worst, 3.0, step)
        due.append(scheduler.should_exploit_and_explore(worst))
    assert due == [False] * 9 + [True]


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_recipient_becomes_its_donor(make, mode, caplog):
    scheduler = make(metric_mode=mode, explore_method="perturb")
    sign = 1 if mode == "max" else -1
    report(scheduler, [sign * score for score in (4.0, 3.0, 2.0, 1.0)])
    donor, recipient = scheduler.population[0], scheduler.population[3]
    donor.vecnormalize_stats_path = "stats_of_0.pkl"
    donor.hyperparams = {"learning_rate": 1e-3, "gamma": 0.95, "extra": "inherited"}
    old = recipient.hyperparams
    with caplog.at_level(logging.INFO):
        found, hyperparams, form = scheduler.exploit_and_explore(recipient)
    assert form == "v2_full_parameters"
    expected = parameters(0, optimizer=False)
    assert list(found) == list(expected)
    assert torch.equal(found["policy"]["w"], expected["policy"]["w"])
    assert found["vgs_state"] == {"step_count": 0}
    assert hyperparams is recipient.hyperparams
    assert hyperparams is not old
    assert hyperparams["learning_rate"] in (pytest.approx(1.2e-3), pytest.approx(1e-3 / 1.2))
    assert hyperparams["gamma"] in (0.9, 0.99)
    assert hyperparams["extra"] == "inherited"
    assert (recipient.performance, recipient.step, recipient.exploited_from) == (None, 5, 0)
    assert recipient.vecnormalize_stats_path == "stats_of_0.pkl"
    assert donor.hyperparams == {"learning_rate": 1e-3, "gamma": 0.95, "extra": "inherited"}
    assert donor.exploited_from is None
    assert f"Member 3 (mean_reward {sign * 1.0}) exploits member 0 ({sign * 4.0})" in caplog.text


def test_a_recipient_has_no_score_and_nothing_to_decide_before_it_reports(make):
    scheduler = make()
    report(scheduler, [4.0, 3.0, 2.0, 1.0])
    recipient = scheduler.population[3]
    scheduler.exploit_and_explore(recipient)
    values = dict(recipient.hyperparams)
    assert (recipient.performance, recipient.is_healthy, recipient.exploited_from) == (None, False, 0)
    assert scheduler.exploit_and_explore(recipient) == (None, values, None)
    stats = scheduler.get_stats()
    assert (stats["pbt/ready_members"], stats["pbt/min_performance"], stats["pbt/mean_performance"]) == (4, 2.0, 3.0)
    scheduler.update_performance(recipient, 0.0, 6, parameters(33))
    assert (recipient.performance, recipient.exploited_from) == (0.0, 0)
    assert scheduler.get_stats()["pbt/mean_performance"] == 9 / 4


def test_a_copy_is_copied_as_what_it_is_now(make):
    # 3 copies 0, and 0 is lost; whoever then copies 3, the best, must get the weights of 0, not what 3 had before.
    scheduler = make(population_size=2, min_ready_members=2)
    report(scheduler, [4.0, 1.0])
    first, second = scheduler.population
    scheduler.exploit_and_explore(second)
    scheduler.update_performance(first, -5.0, 6, parameters(99))
    found, _, _ = scheduler.exploit_and_explore(first)
    assert first.exploited_from == 1
    assert found["policy"]["w"].tolist() == [0, 0, 0]


def test_who_is_overwritten_in_the_same_round_is_copied_as_it_reported(make):
    # All lose their draw in turn; each goes on with what its opponent reported, not with what that has become since.
    scheduler = make(population_size=12, exploit_method="binary_tournament", explore_method="none")
    report(scheduler, range(12))
    values = [dict(member.hyperparams) for member in scheduler.population]
    overwritten, seen = set(), 0
    for member in reversed(scheduler.population):  # the better first, so that many opponents are recipients already
        found, hyperparams, _ = scheduler.exploit_and_explore(member)
        if found is not None:
            donor = member.exploited_from
            assert donor > member.member_id
            assert found["policy"]["w"].tolist() == [donor] * 3
            assert hyperparams == values[donor]
            own = torch.load(member.checkpoint_path, weights_only=True)["data"]["policy"]["w"]
            assert own.tolist() == [donor] * 3, "its own file holds what it goes on with"
            seen += donor in overwritten
            overwritten.add(member.member_id)
    assert seen >= 2


def test_survivors_that_explore_are_copied_with_what_they_were_trained_with(make):
    scheduler = make(explore_always=True, explore_method="perturb")
    report(scheduler, [4.0, 3.0, 2.0, 1.0])
    trained = scheduler.population[0].hyperparams["learning_rate"]
    for member in scheduler.population:
        scheduler.exploit_and_explore(member)
    rates = [scheduler.population[place].hyperparams["learning_rate"] for place in (0, 3)]
    assert all(rate in (pytest.approx(trained * 1.2), pytest.approx(trained / 1.2)) for rate in rates)


def test_the_best_and_the_middle_keep_what_they_have(make):
    scheduler = make()
    report(scheduler, [4.0, 3.0, 2.0, 1.0])
    for member in scheduler.population[:3]:
        before = copy.deepcopy(member)
        assert scheduler.exploit_and_explore(member) == (None, member.hyperparams, None)
        assert member == before
    assert scheduler.exploitation_count == 0


def test_not_enough_ready_members(make):
    # Specification A21: ⌈4 · 0.8⌉ = 4 are needed, whether the others have not reported or failed.
    for missing in (None, NAN):
        scheduler = make()
        report(scheduler, [missing, 3.0, 2.0, 1.0])
        for rounds in (1, 2):  # all of whose checks fail once together
            for member in scheduler.population[1:]:
                assert scheduler.exploit_and_explore(member) == (None, member.hyperparams, None)
                assert scheduler.get_stats()["pbt/failed_ready_checks"] == rounds


def test_a_member_without_a_report_copies_nobody_and_is_copied_by_nobody(make):
    scheduler = make(ready_percentage=0.5, metric_mode="min", truncation_ratio=0.5)
    report(scheduler, [None, 3.0, 2.0, 1.0])
    silent, worst = scheduler.population[:2]
    assert scheduler.exploit_and_explore(silent) == (None, silent.hyperparams, None)
    assert silent.exploited_from is None
    scheduler.exploit_and_explore(worst)
    assert worst.exploited_from == 3


def test_after_enough_failed_checks_few_members_suffice(make, caplog):
    scheduler = make(population_size=10, ready_check_max_wait=3, min_ready_members=3, truncation_ratio=0.5)
    report(scheduler, [1.0, 2.0, 3.0] + [None] * 7)
    proceeded, failed = [], []
    with caplog.at_level(logging.WARNING):
        for _ in range(6):
            worst = scheduler.population[0]
            scheduler.update_performance(worst, 1.0, 5, parameters(0))
            proceeded.append(scheduler.exploit_and_explore(worst)[0] is not None)
            failed.append(scheduler.get_stats()["pbt/failed_ready_checks"])
    assert proceeded == [False, False, True, False, False, True]
    assert failed == [1, 2, 0, 1, 2, 0]
    assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
    assert "3 of 10 members have a finite score" in caplog.text


def test_a_round_that_goes_on_with_few_does_so_for_all(make):
    """As in the engine, where everybody decides at once: the third round that fails goes on, whoever asks in it."""
    scheduler = make(
        population_size=10, ready_check_max_wait=3, min_ready_members=3, exploit_method="binary_tournament"
    )
    exploits = []
    for rounds in range(6):
        report(scheduler, [*map(float, range(7)), None, None, None])
        before = scheduler.exploitation_count
        for member in scheduler.population[:7]:
            scheduler.exploit_and_explore(member)
        exploits.append(scheduler.exploitation_count - before)
        if rounds == 3:  # a resumed one is in the same round
            state = scheduler.state_dict()
            scheduler = make(
                population_size=10, ready_check_max_wait=3, min_ready_members=3, exploit_method="binary_tournament"
            )
            scheduler.load_state_dict(state)
    assert [count > 0 for count in exploits] == [False, False, True, False, False, True]
    assert exploits[2] > 1


def test_fewer_than_the_least_never_suffice(make):
    scheduler = make(ready_check_max_wait=2, min_ready_members=3)
    report(scheduler, [1.0, 2.0, None, None])
    for _ in range(6):
        assert scheduler.exploit_and_explore(scheduler.population[0])[0] is None
    assert scheduler.get_stats()["pbt/failed_ready_checks"] == 6


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "none"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_failed_member_is_always_rescued(make, method, bad, mode):
    scheduler = make(exploit_method=method, metric_mode=mode)
    report(scheduler, [bad, 1.0, None, None])  # the population is not ready
    failed = scheduler.population[0]
    found, _, form = scheduler.exploit_and_explore(failed)
    assert (failed.exploited_from, failed.performance, form) == (1, None, V2)
    assert found["policy"]["w"].tolist() == [1, 1, 1]


def test_weights_that_are_not_finite_fail_a_member_whatever_its_score(make, caplog):
    scheduler = make()
    report(scheduler, [1.0, 2.0, 3.0, 4.0])
    member = scheduler.population[3]
    broken = parameters(3)
    broken["policy"]["w"][1] = NAN
    scheduler.update_performance(member, 100.0, 6, broken)
    assert math.isnan(member.performance)
    assert "Member 3: weights are not finite (w)" in caplog.text
    scheduler.exploit_and_explore(member)
    assert member.exploited_from == 2
    assert scheduler.best.performance == 4.0


def test_a_population_of_which_nobody_is_healthy_waits(make):
    scheduler = make()
    report(scheduler, [NAN] * 4)
    for member in scheduler.population:
        assert scheduler.exploit_and_explore(member) == (None, member.hyperparams, None)


@pytest.mark.parametrize("n", range(2, 21))
def test_truncation_replaces_the_worst_and_never_the_best(make, n):
    scheduler = make(population_size=n, truncation_ratio=0.3)
    k = max(1, int(n * 0.3))
    order = np.random.default_rng(n).permutation(n)  # order[i] is the score of member i
    for member in scheduler.population:
        scheduler.update_performance(member, int(order[member.member_id]), 5)
    frozen = copy.deepcopy(scheduler.state_dict())
    for member in scheduler.population:
        scheduler.load_state_dict(frozen)  # so that everybody decides on the same scores
        scheduler.exploit_and_explore(member)
        score = order[member.member_id]
        if score >= k:
            assert member.exploited_from is None
        else:
            assert order[member.exploited_from] >= n - k


def history(scheduler, rounds=6, sign=1.0):
    """Scores that a seed fixes, one failure in ten."""
    scores = np.random.default_rng(1)
    for step in range(1, rounds + 1):
        for member in scheduler.population:
            score = NAN if scores.random() < 0.1 else sign * float(scores.normal())
            scheduler.update_performance(member, score, step, parameters(member.member_id))
            if scheduler.should_exploit_and_explore(member):
                scheduler.exploit_and_explore(member)
    return [
        (member.exploited_from, member.hyperparams, sign * member.ranked.performance) for member in scheduler.population
    ]


@pytest.mark.parametrize("method", ["truncation", "binary_tournament", "backtracking", "none"])
def test_the_seed_decides_the_history(make, method):
    settings = {"exploit_method": method, "perturbation_interval": 2, "population_size": 6}
    found = [history(make(seed, name=f"{seed} {i}", **settings)) for i, seed in enumerate([7, 7, 8])]
    assert str(found[0]) == str(found[1])  # NaN is not equal to itself
    assert str(found[0]) != str(found[2])
    low = history(make(7, name="low", metric_mode="min", **settings), sign=-1.0)
    assert str(low) == str(found[0])


def test_without_a_seed_every_scheduler_is_another(make):
    assert make(None).population != make(None).population


@pytest.mark.parametrize("form", ["json", "torch"])
def test_a_resumed_scheduler_goes_on_as_the_uninterrupted_one(make, form, tmp_path):
    full = make(seed=3, perturbation_interval=1, exploit_method="binary_tournament", ready_check_max_wait=4)
    history(full, rounds=3)
    if form == "json":
        state = json.loads(json.dumps(full.state_dict()))
    else:
        torch.save(full.state_dict(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed = PBTScheduler(full.config, seed=99)
    mine = resumed.initialize_population()
    resumed.load_state_dict(state)
    assert resumed.population[0] is mine[0], "members that the trainer holds are those that are restored"
    assert str(resumed.state_dict()) == str(full.state_dict())
    states = []
    for scheduler in (full, resumed):
        history(scheduler, rounds=4)
        states.append(str(scheduler.state_dict()))
    assert states[0] == states[1]
    fresh = PBTScheduler(full.config)
    fresh.load_state_dict(state)
    assert fresh.population[1].checkpoint_path == str(full.config.checkpoint_dir / "member_1.pt")
    with pytest.raises(ConfigError, match="population of 4, but population_size=5"):
        make(population_size=5).load_state_dict(state)


@pytest.mark.parametrize("choices", [((8, 8), (16, 16), (32, (32, 8))), [[8, 8], [16, 16], [32, [32, 8]]]])
def test_choices_that_are_tuples_or_lists_survive_a_file(make, choices):
    space = HyperparamConfig("layers", values=choices)
    full = make(hyperparams=[space], perturbation_interval=1, explore_method="perturb", truncation_ratio=0.5)
    report(full, [1.0, 2.0, 3.0, 4.0])
    resumed = make(hyperparams=[space], perturbation_interval=1, explore_method="perturb", truncation_ratio=0.5)
    resumed.load_state_dict(json.loads(json.dumps(full.state_dict())))
    for scheduler in (full, resumed):
        report(scheduler, [2.0, 1.0, 3.0, 4.0], step=6)
        for member in scheduler.population:
            scheduler.exploit_and_explore(member)
    assert full.exploitation_count > 0
    assert str(resumed.state_dict()) == str(full.state_dict())
    assert all(space.contains(member.hyperparams["layers"]) for member in [*resumed.population, resumed.best])
    swapped = HyperparamConfig("layers", values=list(map(list, choices)))
    other = make(hyperparams=[swapped])
    other.load_state_dict(full.state_dict())
    assert all(isinstance(member.hyperparams["layers"], list) for member in other.population)


def test_restored_members_share_nothing_with_the_state(make):
    scheduler = make()
    report(scheduler, [1.0, 2.0, 3.0, 4.0])
    state = scheduler.state_dict()
    text = str(state)
    other = make(name="other")
    other.load_state_dict(state)
    other.population[0].hyperparams["gamma"] = 0
    other.population[0].history.clear()
    other.best.hyperparams["gamma"] = 0
    assert str(state) == text


@pytest.mark.parametrize("key", ["optimizer_state", "policy.optimizer"])
def test_reset_removes_the_optimizers_state(make, key, caplog):
    scheduler = make(optimizer_exploit_strategy="reset")
    for member in scheduler.population:
        data = {**parameters(member.member_id, optimizer=False), key: {"state": {}}}
        scheduler.update_performance(member, member.member_id, 5, data)
    with caplog.at_level(logging.INFO):
        found, _, _ = scheduler.exploit_and_explore(scheduler.population[0])
    assert key not in found
    assert "policy" in found
    assert ("INFO", "Optimizer state REMOVED (strategy=reset)") in levels(caplog)


def levels(caplog):
    return [(record.levelname, record.getMessage()) for record in caplog.records]


def test_copy_includes_the_optimizers_state(make, caplog):
    scheduler = make(optimizer_exploit_strategy="copy")
    report(scheduler, [1.0, 2.0, 3.0, 4.0])
    with caplog.at_level(logging.INFO):
        found, _, _ = scheduler.exploit_and_explore(scheduler.population[0])
    assert torch.equal(found["optimizer_state"]["exp_avg"], torch.full((3,), 3.0))
    assert ("INFO", "Optimizer state INCLUDED (strategy=copy)") in levels(caplog)


def test_copy_warns_if_there_is_no_optimizers_state(make, caplog):
    scheduler = make(optimizer_exploit_strategy="copy")
    report(scheduler, [1.0, 2.0, 3.0, 4.0], optimizer=False)
    with caplog.at_level(logging.INFO):
        found, _, form = scheduler.exploit_and_explore(scheduler.population[0])
    assert form == V2
    assert "optimizer_state" not in found
    assert [level for level, text in levels(caplog) if "strategy=copy" in text] == ["WARNING"]


def test_the_deprecated_argument_works_and_warns(make, caplog):
    scheduler = make(optimizer_exploit_strategy="copy")
    with caplog.at_level(logging.WARNING):
        for member in scheduler.population:
            weights = {"w": torch.full((2,), float(member.member_id))}
            scheduler.update_performance(member, member.member_id, 5, model_state_dict=weights)
    assert len(caplog.records) == 4
    assert "model_state_dict is deprecated" in caplog.text
    assert torch.load(scheduler.population[0].checkpoint_path, weights_only=True)["format_version"] == V1
    caplog.clear()
    found, _, form = scheduler.exploit_and_explore(scheduler.population[0])
    assert form == "v1_policy_only"
    assert torch.equal(found["w"], torch.full((2,), 3.0))
    assert [level for level, text in levels(caplog) if "VGS and optimizer state are not transfer" in text] == [
        "WARNING"
    ]


def test_both_arguments_at_once_are_refused(make):
    scheduler = make()
    with pytest.raises(ConfigError, match="pass model_parameters alone"):
        scheduler.update_performance(scheduler.population[0], 1.0, 5, parameters(0), {"w": torch.ones(1)})


def test_a_report_is_recorded(make):
    scheduler = make()
    member = scheduler.population[2]
    scheduler.update_performance(member, np.float32(1.5), np.int64(5), parameters(2))
    scheduler.update_performance(member, torch.tensor(2.5), 6)
    assert (member.performance, member.step) == (2.5, 6)
    assert [(entry["step"], entry["performance"]) for entry in member.history] == [(5, 1.5), (6, 2.5)]
    file = torch.load(member.checkpoint_path, weights_only=True)
    assert (file["format_version"], file["schema"], file["member_id"], file["step"]) == (V2, 2, 2, 5)
    assert (file["performance"], file["hyperparams"]) == (1.5, member.hyperparams)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((1.0, -1), "step=-1 is below 0"), ((1.0, 5, {"policy": {"w": object()}}), r"model_parameters\.policy\.w is a")],
)
def test_a_report_that_cannot_be_leaves_the_member_as_it_was(make, arguments, reason):
    scheduler = make()
    member = scheduler.population[0]
    scheduler.update_performance(member, 1.0, 4, parameters(0))
    before = copy.deepcopy(member)
    with pytest.raises(ConfigError, match=reason):
        scheduler.update_performance(member, *arguments)
    assert member == before


def test_the_files_do_not_grow_in_number(make):
    scheduler = make(perturbation_interval=1)
    history(scheduler, rounds=8)
    assert scheduler.exploitation_count > 0
    names = {file.name for file in scheduler.config.checkpoint_dir.iterdir()}
    own = {f"member_{i}{end}.pt" for i in range(4) for end in ("", "_reported")}
    assert names == {*own, "best.pt"}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_best_report_ever_is_kept(make, mode):
    scheduler, sign = make(metric_mode=mode), 1 if mode == "max" else -1
    for step, scores in enumerate([[1.0, NAN, 3.0, 2.0], [9.0, 8.0, INF, 7.0], [5.0, 9.0, 4.0, 6.0]], 1):
        for member, score in zip(scheduler.population, scores, strict=True):
            scheduler.update_performance(member, sign * score, step, parameters(10 * step + member.member_id))
    best = scheduler.best
    assert (best.member_id, best.performance, best.step) == (0, sign * 9.0, 2)
    assert torch.load(best.checkpoint_path, weights_only=True)["data"]["policy"]["w"].tolist() == [20.0] * 3
    scheduler.population[0].hyperparams["gamma"] = 0
    assert best.hyperparams["gamma"] != 0


def test_backtracking_goes_back_to_the_best_ever(make):
    scheduler = make(exploit_method="backtracking", explore_method="none")
    report(scheduler, [1.0, 2.0, 9.0, 3.0], step=5)
    values = dict(scheduler.population[2].hyperparams)
    report(scheduler, [1.0, 2.0, 2.5, 3.0], step=10)
    worst = scheduler.population[0]
    found, hyperparams, _ = scheduler.exploit_and_explore(worst)
    assert (worst.exploited_from, worst.performance, worst.step) == (2, None, 5)
    assert found["policy"]["w"].tolist() == [2, 2, 2]
    assert hyperparams == values
    assert scheduler.exploit_and_explore(scheduler.population[3])[0] is None


def test_backtracking_brings_back_a_population_that_has_failed(make):
    scheduler = make(exploit_method="backtracking", ready_percentage=0.2)
    report(scheduler, [1.0, 2.0, 9.0, 3.0])
    report(scheduler, [NAN, NAN, NAN, 3.0], step=6)
    for member in scheduler.population[:3]:
        assert scheduler.exploit_and_explore(member)[0]["policy"]["w"].tolist() == [2, 2, 2]
        assert (member.exploited_from, member.performance) == (2, None)


def test_a_file_that_the_trainer_wrote_becomes_the_best_and_is_kept_as_it_was(make, tmp_path):
    scheduler = make(exploit_method="backtracking", explore_method="none")
    winner, statistics = scheduler.population[2], tmp_path / "statistics.pt"
    for step, scores in ((5, [1.0, 2.0, 9.0, 3.0]), (10, [1.0, 2.0, 2.5, 3.0])):
        for member, score in zip(scheduler.population, scores, strict=True):
            member.checkpoint_path = tmp_path / f"{member.member_id}.pt"
            torch.save({"w": torch.full((3,), step + score)}, member.checkpoint_path)
            member.vecnormalize_stats_path = statistics if member is winner else None
            statistics.write_bytes(bytes([step, int(score)]))
            scheduler.update_performance(member, score, step)
    assert (scheduler.best.member_id, scheduler.best.performance, scheduler.best.step) == (2, 9.0, 5)
    worst = scheduler.population[0]
    found, _, form = scheduler.exploit_and_explore(worst)
    assert (worst.performance, form, found["w"].tolist()) == (None, V1, [14.0] * 3)
    assert Path(worst.vecnormalize_stats_path).read_bytes() == bytes([5, 9])
    assert winner.checkpoint_path == tmp_path / "2.pt"


def test_a_file_with_bad_weights_is_never_the_best(make, tmp_path, caplog):
    scheduler = make()
    member = scheduler.population[0]
    member.checkpoint_path = tmp_path / "bad.pt"
    torch.save({"w": torch.tensor([1.0, NAN])}, member.checkpoint_path)
    scheduler.update_performance(member, 1.0, 5)
    assert scheduler.best is None
    assert not member.is_healthy
    assert "weights are not finite (w)" in caplog.text
    before = copy.deepcopy(member)
    member.checkpoint_path.unlink()
    with pytest.raises(StoreError, match=r"cannot read checkpoint .*bad\.pt"):
        scheduler.update_performance(member, 2.0, 6)
    assert member == before


def test_a_t_test_needs_the_episodes(make):
    scheduler = make(exploit_method="ttest", population_size=2)
    one, two = scheduler.population
    with pytest.raises(ConfigError, match="'ttest' compares episodes, but stderr=nan and episodes=0"):
        scheduler.update_performance(one, 1.0, 5)
    for stderr, copies in ((0.5, False), (0.3, True)):  # t = 1.41 and 2.36 with 18 degrees of freedom
        for member, score in ((one, 1.0), (two, 2.0)):
            scheduler.update_performance(member, score, 5, parameters(member.member_id), stderr=stderr, episodes=10)
        assert (scheduler.exploit_and_explore(one)[0] is not None) is copies
    assert (one.performance, one.stderr, one.episodes) == (None, 0.3, 10)
    scheduler.update_performance(one, NAN, 6)
    scheduler.exploit_and_explore(one)
    assert one.exploited_from == 1


def test_a_tournament_copies_with_the_probability_of_a_better_opponent(make):
    scheduler = make(exploit_method="binary_tournament", population_size=5)
    for member in scheduler.population:
        scheduler.update_performance(member, member.member_id, 5)
    asked, copied = scheduler.population[2], 0  # 2 of the 4 others are better
    for _ in range(400):
        scheduler.update_performance(asked, 2.0, 5)
        asked.exploited_from = None
        scheduler.exploit_and_explore(asked)
        copied += asked.exploited_from is not None
    assert abs(copied - 200) < 5 * 10


def test_survivors_explore_only_if_asked(make):
    for always in (False, True):
        scheduler = make(explore_always=always, explore_method="perturb", name=str(always))
        report(scheduler, [4.0, 3.0, 2.0, 1.0])
        best = scheduler.population[0]
        before = best.hyperparams
        assert scheduler.exploit_and_explore(best) == (None, best.hyperparams, None)
        assert (best.hyperparams["learning_rate"] != before["learning_rate"]) is always
        assert best.exploited_from is None
        assert scheduler.get_stats()["pbt/exploration_count"] == always


def test_each_hyperparameter_draws_its_own(make):
    spaces = [dataclasses.replace(RATE, name=name) for name in ("a", "b")]
    scheduler = make(hyperparams=spaces, explore_method="perturb", explore_always=True, population_size=2)
    member, ups = scheduler.population[1], []
    for _ in range(200):
        report(scheduler, [1.0, 2.0])
        member.hyperparams = {"a": 1e-3, "b": 1e-3}
        new = scheduler.exploit_and_explore(member)[1]
        ups.append([new["a"] > 1e-3, new["b"] > 1e-3])
    first, second = np.array(ups).T
    for share in (first.mean(), second.mean(), (first == second).mean()):
        assert abs(share - 0.5) < 5 * 0.5 / math.sqrt(200)


def test_without_checkpoints_the_decision_is_made_and_said(make, caplog):
    scheduler = make()
    for member in scheduler.population:
        scheduler.update_performance(member, member.member_id, 5)
    worst = scheduler.population[0]
    found, hyperparams, form = scheduler.exploit_and_explore(worst)
    assert (found, form, worst.exploited_from) == (None, None, 3)
    assert hyperparams is worst.hyperparams
    assert "copy the weights yourself" in caplog.text
    assert scheduler.best is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:200]),
        lambda path: torch.save({"epoch": 3}, path),
        lambda path: torch.save({"format_version": "v9", "data": {}}, path),
        lambda path: torch.save(print, path),
    ],
)
def test_a_checkpoint_that_cannot_be_read_leaves_everything_as_it_was(make, damage):
    scheduler = make(population_size=2)
    report(scheduler, [1.0, 2.0])
    recipient, donor = scheduler.population
    damage(scheduler.config.checkpoint_dir / "member_1.pt")
    before, own = copy.deepcopy(scheduler.population), Path(recipient.checkpoint_path).read_bytes()
    stats = scheduler.get_stats()
    with pytest.raises(StoreError, match=r"member_1\.pt"):
        scheduler.exploit_and_explore(recipient)
    assert scheduler.population == before
    assert Path(recipient.checkpoint_path).read_bytes() == own
    assert scheduler.get_stats() == stats
    scheduler.update_performance(donor, 2.0, 5, parameters(1))  # a new report mends it
    assert scheduler.exploit_and_explore(recipient)[2] == V2


def test_a_checkpoint_that_the_trainer_wrote_is_used(make, tmp_path):
    scheduler = make(population_size=2)
    weights = {"w": torch.ones(2)}
    torch.save(weights, tmp_path / "own.pth")
    for member in scheduler.population:
        scheduler.update_performance(member, member.member_id, 5)
    scheduler.population[1].checkpoint_path = tmp_path / "own.pth"
    found, _, form = scheduler.exploit_and_explore(scheduler.population[0])
    assert form == V1
    assert torch.equal(found["w"], weights["w"])
    json.dumps(scheduler.state_dict())


def test_a_stranger_is_refused(make):
    scheduler = make()
    with pytest.raises(ConfigError, match="member 0 is not of this population"):
        scheduler.exploit_and_explore(copy.deepcopy(scheduler.population[0]))


def test_statistics(make):
    scheduler = make(ready_percentage=0.5)
    empty = scheduler.get_stats()
    assert empty == {
        "pbt/population_size": 4,
        "pbt/ready_members": 0,
        "pbt/exploitation_count": 0,
        "pbt/exploration_count": 0,
        "pbt/failed_ready_checks": 0,
    }
    report(scheduler, [1.0, 2.0, 6.0, NAN])
    expected = {"mean": 3.0, "std": np.std([1.0, 2.0, 6.0]), "min": 1.0, "max": 6.0}
    stats = scheduler.get_stats()
    assert {name: stats[f"pbt/{name}_performance"] for name in expected} == pytest.approx(expected)
    assert stats["pbt/ready_members"] == 3
    scheduler.exploit_and_explore(scheduler.population[3])
    stats = scheduler.get_stats()
    assert (stats["pbt/exploitation_count"], stats["pbt/exploration_count"]) == (1, 1)
    assert all(type(value) is float for value in stats.values())


def test_what_is_inherited_stays_inside_the_spaces(make):
    scheduler = make(seed=5, perturbation_interval=1, truncation_ratio=0.5)
    history(scheduler, rounds=15)
    for member in scheduler.population:
        for entry in [member.hyperparams, *(report["hyperparams"] for report in member.history)]:
            assert RATE.contains(entry["learning_rate"])
            assert GAMMA.contains(entry["gamma"])


def test_it_draws_as_the_engine_does(make):
    # One implementation: the same streams give the same first values.
    member = make(seed=11).population[2]
    assert member.hyperparams["learning_rate"] == RATE.sample(numpy_generator(11, "initial", "learning_rate", 2))


@pytest.mark.heavy
def test_no_global_generator_is_touched():
    # In a process of its own: here the run-time type checks draw from Python's.
    code = """
import random, numpy, tempfile, torch
from popgraft.hyperparams import HyperparamConfig
from popgraft.foreign import (PBTConfig, PBTScheduler)
def state():
    return random.getstate(), str(numpy.random.get_state()), torch.random.get_rng_state().tolist()
before = state()
spaces = [HyperparamConfig("gamma", min_value=0.9, max_value=1.0)]
config = PBTConfig(population_size=4, hyperparams=spaces, checkpoint_dir=tempfile.mkdtemp())
for seed in (None, 0):
    scheduler = PBTScheduler(config, seed)
    for member in scheduler.initialize_population():
        scheduler.update_performance(member, member.member_id, 5, {"policy": {"w": torch.ones(1)}})
    assert scheduler.exploit_and_explore(scheduler.population[0])[0] is not None
    scheduler.load_state_dict(scheduler.state_dict())
assert state() == before
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_config_alone_makes_a_population():
    assert len(PBTScheduler(PBTConfig()).initialize_population()) == 10


def test_strangers_change_nothing(make):
    scheduler = make()
    report(scheduler, [1.0, 2.0, 3.0, 4.0])
    files = {file.name: file.read_bytes() for file in Path(scheduler.config.checkpoint_dir).iterdir()}
    stranger = PopulationMember(0, {"learning_rate": 1e-3}, step=99)
    for call in (
        lambda: scheduler.update_performance(stranger, 99.0, 1, parameters(7)),
        lambda: scheduler.should_exploit_and_explore(stranger),
        lambda: scheduler.exploit_and_explore(stranger),
    ):
        with pytest.raises(ConfigError, match="not of this population"):
            call()
    assert scheduler.best.performance == 4.0
    assert {file.name: file.read_bytes() for file in Path(scheduler.config.checkpoint_dir).iterdir()} == files


def test_a_huge_whole_number_is_no_score(make):
    scheduler = make()
    with pytest.raises(ConfigError, match="is not one number"):
        scheduler.update_performance(scheduler.population[0], 10**400, 1)
