"""The published contract of the coordinator, entry by entry, on real models: the product's, other libraries', one's own."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize
from torch import nn

from popgraft import (
    DistributionalPPO,
    HyperparamConfig,
    PBTAdversarialConfig,
    PBTConfig,
    PBTTrainingCoordinator,
    PopulationMember,
)

from .conftest import same

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

RATE = {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}
ON_POLICY = {"n_steps": 16, "batch_size": 16, "n_epochs": 1}
LSTM = {"lstm_hidden_size": 4}
KINDS = {
    "DistributionalPPO": (DistributionalPPO, "MlpLstmPolicy", ON_POLICY, LSTM),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy", ON_POLICY, LSTM),
    "PPO": (PPO, "MlpPolicy", ON_POLICY, {}),
    "SAC": (SAC, "MlpPolicy", {"learning_starts": 4, "buffer_size": 100, "batch_size": 8}, {}),
    "own": (None, None, {}, {}),
}
RECURRENT = ("DistributionalPPO", "RecurrentPPO")
LIBRARY = [kind for kind in KINDS if kind != "own"]


def marked(kinds):
    """The product's own model and a plain module every day, those of other libraries before a change is taken in."""
    everyday = ("DistributionalPPO", "own")
    return [kind if kind in everyday else pytest.param(kind, marks=pytest.mark.heavy) for kind in kinds]


class Own:
    """A trainer of one's own: two networks, an optimizer and a scheduler for each, a temperature that is learned."""

    def __init__(self, learning_rate=1e-3, seed=0):
        torch.manual_seed(seed)
        self.policy = nn.ModuleDict({"actor": nn.Linear(3, 2), "critic": nn.Linear(3, 1)})
        self.log_temperature = torch.zeros(1, requires_grad=True)
        self.learning_rate = learning_rate
        self.actor_optimizer = torch.optim.Adam(
            [*self.policy["actor"].parameters(), self.log_temperature], lr=learning_rate
        )
        self.critic_optimizer = torch.optim.Adam(self.policy["critic"].parameters(), lr=learning_rate)

    def learn(self, steps):
        for _ in range(steps // 8):
            x = torch.randn(4, 3)
            loss = (self.policy["actor"](x).square() * self.log_temperature.exp()).mean() + self.policy["critic"](
                x
            ).square().mean()
            for optimizer in (self.actor_optimizer, self.critic_optimizer):
                optimizer.zero_grad()
            loss.backward()
            for optimizer in (self.actor_optimizer, self.critic_optimizer):
                optimizer.step()
        return self


def optimizers_of(model):
    found = {
        "policy": getattr(model.policy, "optimizer", None),
        "actor": getattr(getattr(model, "actor", None), "optimizer", getattr(model, "actor_optimizer", None)),
        "critic": getattr(getattr(model, "critic", None), "optimizer", getattr(model, "critic_optimizer", None)),
        "entropy": getattr(model, "ent_coef_optimizer", None),
    }
    return {name: optimizer for name, optimizer in found.items() if optimizer is not None}


def state_of(model):
    """All that a graft may change."""
    normalizer = model.get_vec_normalize_env() if hasattr(model, "get_vec_normalize_env") else None
    return copy.deepcopy(
        {
            "policy": dict(model.policy.state_dict()),
            "optimizers": {name: each.state_dict() for name, each in optimizers_of(model).items()},
            "free": [getattr(model, name) for name in ("log_temperature", "log_ent_coef") if hasattr(model, name)],
            "values": {name: getattr(model, name, None) for name in ("learning_rate", "ent_coef", "gamma")},
            "normalizer": None if normalizer is None else [vars(normalizer.obs_rms), normalizer.gamma],
            "carry": getattr(model, "_last_lstm_states", None),
            "parts": model.get_parameters() if isinstance(model, DistributionalPPO) else None,
        }
    )


@pytest.fixture
def make(tmp_path):
    """A coordinator, its members and a model for each, the first trained for longer."""

    def build(kind, strategy="copy", explore="perturb", normalize=True, **settings):
        config = PBTConfig(
            **{
                "population_size": 2,
                "perturbation_interval": 1,
                "truncation_ratio": 0.5,
                "hyperparams": [RATE],
                "explore_method": explore,
                "checkpoint_dir": tmp_path,
                "optimizer_exploit_strategy": strategy,
                **settings,
            }
        )
        coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=config), seed=3)
        members = coordinator.initialize_population()
        models = [built(coordinator, member, kind, normalize) for member in members]
        for model, steps in zip(models, (64, 32), strict=False):
            model.learn(steps)
        return coordinator, members, models

    return build


def built(coordinator, member, kind, normalize=True):
    algorithm, policy, settings, more = KINDS[kind]
    if algorithm is None:
        return coordinator.create_member_model(member, Own, seed=member.member_id)[0]
    env = make_vec_env("Pendulum-v1" if kind == "SAC" else "CartPole-v1", 1, seed=member.member_id)
    model, adversary = coordinator.create_member_model(
        member, algorithm, policy=policy, env=VecNormalize(env) if normalize else env, seed=member.member_id,
        device="cpu", policy_kwargs={"net_arch": [4], **more}, **settings,
    )  # fmt: skip
    assert adversary is None
    return model


def exploited(coordinator, members, models, **report):
    """What the second member gets, the first one being better."""
    for member, model, score in zip(members, models, (1.0, 0.0), strict=True):
        given = report or {"model_parameters": coordinator.collect_parameters(model)}
        outcome = coordinator.on_member_update_end(member, score, 1, **given)
    assert members[1].exploited_from == 0
    return outcome


def test_a1_a_population_is_drawn_from_its_spaces_by_its_seed(make):
    coordinator, members, _ = make("own")
    again = PBTTrainingCoordinator(coordinator.config, seed=3).initialize_population()
    assert [type(member) for member in members] == [PopulationMember] * 2
    assert [member.hyperparams for member in members] == [member.hyperparams for member in again]
    assert members[0].hyperparams != members[1].hyperparams
    given = PBTTrainingCoordinator(coordinator.config).initialize_population({"learning_rate": 1e-3})
    assert [member.hyperparams["learning_rate"] for member in given] == [1e-3] * 2


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a2_a3_a4_a10_a_graft_is_whole_and_the_explored_rate_is_live(make, kind):
    coordinator, members, models = make(kind)
    donor = state_of(models[0])
    assert all(
        model.learning_rate == member.hyperparams["learning_rate"]
        for member, model in zip(members, models, strict=True)
    )
    parameters, hyperparams, form = exploited(coordinator, members, models)
    assert form == "v2_full_parameters"
    assert hyperparams == members[1].hyperparams != members[0].hyperparams
    coordinator.apply_exploited_parameters(models[1], parameters, members[1], members[0])
    heir = state_of(models[1])
    for part in ("policy", "free", "normalizer"):
        assert same(heir[part], donor[part]), part
    for name, optimizer in heir["optimizers"].items():
        assert same(optimizer["state"], donor["optimizers"][name]["state"]), name
        assert [group["lr"] for group in optimizer["param_groups"]] == [hyperparams["learning_rate"]]
    assert heir["optimizers"]
    if heir["parts"]:
        assert same(heir["parts"], donor["parts"])
    assert same(state_of(models[0]), donor)
    models[1].learn(32)  # the schedule, too, is the explored value's
    for optimizer in optimizers_of(models[1]).values():
        assert [group["lr"] for group in optimizer.param_groups] == [pytest.approx(hyperparams["learning_rate"])]


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a4_a_refused_graft_leaves_everything_as_it_was(make, kind):
    coordinator, members, models = make(kind)
    parameters, *_ = exploited(coordinator, members, models)
    optimizer = next(name for name in parameters if str(name).endswith(("optimizer", "optimizer_state")))
    spoilt = {**parameters, optimizer: {"state": {0: {"exp_avg": torch.zeros(99)}}, "param_groups": []}}
    before = state_of(models[1])
    with pytest.raises(ValueError, match="optimizer"):
        coordinator.apply_exploited_parameters(models[1], spoilt, members[1])
    assert same(state_of(models[1]), before)
    assert (members[1].exploited_from, members[1].performance) == (None, 0.0)


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a5_none_changes_nothing_and_says_nothing(make, kind, caplog):
    coordinator, members, models = make(kind)
    before = state_of(models[1])
    caplog.clear()
    coordinator.apply_exploited_parameters(models[1], None, members[1])
    assert same(state_of(models[1]), before)
    assert not caplog.records


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a6_weights_are_taken_by_three_names_and_strictly(make, kind):
    coordinator, members, models = make(kind, normalize=False)
    weights = dict(copy.deepcopy(models[0].policy.state_dict()))
    for parameters in ({"policy": weights}, {"policy_state": weights}, weights):
        models[1].learn(16)
        coordinator.apply_exploited_parameters(models[1], parameters, members[1])
        assert same(dict(models[1].policy.state_dict()), weights)
    first = next(iter(weights))
    for wrong in ({name: weights[name] for name in weights if name != first}, {**weights, "more": torch.zeros(1)}):
        for parameters in ({"policy": wrong}, wrong):
            with pytest.raises(ValueError, match="network"):
                coordinator.apply_exploited_parameters(models[1], parameters, members[1])
    for nothing in ({"weights": weights}, {}):
        with pytest.raises(ValueError, match="no weights"):
            coordinator.apply_exploited_parameters(models[1], nothing, members[1])
    assert same(dict(models[1].policy.state_dict()), weights)


def test_a7_a_model_that_cannot_load_weights_is_refused(make, caplog):
    coordinator, members, _ = make("own")
    with pytest.raises(ValueError, match="load_state_dict"):
        coordinator.apply_exploited_parameters(SimpleNamespace(), {"policy": {"w": torch.zeros(1)}}, members[1])
    assert [record.levelname for record in caplog.records][-1] == "ERROR"


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a8_recurrent_states_begin_at_zero(make, kind, caplog):
    coordinator, members, models = make(kind)
    parameters, *_ = exploited(coordinator, members, models)
    caplog.set_level("DEBUG", "popgraft")
    coordinator.apply_exploited_parameters(models[1], parameters, members[1], members[0])
    if kind in RECURRENT:
        assert "LSTM states reset to initial after PBT exploit" in caplog.text
        states = [state for part in models[1]._last_lstm_states for state in part]
        assert states
        assert not any(state.any() for state in states)
    else:
        assert "Model does not have LSTM states (reset_lstm_states_to_initial not found)" in caplog.text


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a9_a22_reset_empties_the_same_optimizers(make, kind, caplog):
    coordinator, members, models = make(kind, "reset")
    optimizers = optimizers_of(models[1])
    groups = {name: [id(group) for group in optimizer.param_groups] for name, optimizer in optimizers.items()}
    caplog.set_level("INFO", "popgraft")
    parameters, hyperparams, _ = exploited(coordinator, members, models)
    assert "Optimizer state REMOVED (strategy=reset)" in caplog.text
    assert not any(str(name).endswith(("optimizer", "optimizer_state")) for name in parameters)
    coordinator.apply_exploited_parameters(models[1], parameters, members[1], members[0])
    for name, optimizer in optimizers.items():
        assert optimizers_of(models[1])[name] is optimizer
        assert [id(group) for group in optimizer.param_groups] == groups[name]
        assert not optimizer.state_dict()["state"]
        assert [group["lr"] for group in optimizer.param_groups] == [hyperparams["learning_rate"]]


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a10_a22_a_copy_without_a_state_keeps_the_optimizer_with_a_warning(make, kind, caplog):
    coordinator, members, models = make(kind)
    reports = [coordinator.collect_parameters(model) for model in models]
    for report in reports:
        for name in [name for name in report if str(name).endswith(("optimizer", "optimizer_state"))]:
            del report[name]
    for member, report, score in zip(members, reports, (1.0, 0.0), strict=True):
        parameters, *_ = coordinator.on_member_update_end(member, score, 1, model_parameters=report)
    before = {name: copy.deepcopy(each.state_dict()["state"]) for name, each in optimizers_of(models[1]).items()}
    coordinator.apply_exploited_parameters(models[1], parameters, members[1], members[0])
    assert {record.levelname for record in caplog.records if "ptimizer state" in record.message} == {"WARNING"}
    assert same({name: each.state_dict()["state"] for name, each in optimizers_of(models[1]).items()}, before)


@pytest.mark.parametrize("kind", marked(LIBRARY))
def test_a11_statistics_are_synchronized_in_place(make, kind, caplog):
    coordinator, members, models = make(kind)
    normalizer = models[1].get_vec_normalize_env()
    caplog.set_level("INFO", "popgraft")
    parameters, *_ = exploited(coordinator, members, models)
    coordinator.apply_exploited_parameters(models[1], parameters, members[1], members[0])
    assert models[1].get_vec_normalize_env() is normalizer
    theirs = models[0].get_vec_normalize_env()
    assert np.array_equal(normalizer.obs_rms.mean, theirs.obs_rms.mean)
    assert normalizer.obs_rms is not theirs.obs_rms
    message = "Member 1: VecNormalize stats synchronized from source agent (prevents LSTM-normalization mismatch)"
    assert message in caplog.messages


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a12_saved_members_are_inherited_from_their_files(make, kind):
    coordinator, members, models = make(kind)
    donor = state_of(models[0])
    for member, model in zip(members, models, strict=True):
        coordinator.save_member_checkpoint(member, model, getattr(model, "env", None))
        assert (member.vecnormalize_stats_path is not None) is (kind != "own")
    for member, score in zip(members, (1.0, 0.0), strict=True):
        parameters, *_ = coordinator.on_member_update_end(member, score, 1)
    coordinator.apply_exploited_parameters(models[1], parameters, members[1], members[0])
    heir = state_of(models[1])
    assert same({**heir["policy"], "n": heir["normalizer"]}, {**donor["policy"], "n": donor["normalizer"]})


@pytest.mark.parametrize("kind", marked(LIBRARY))
def test_a13_older_code_that_loads_weights_itself_keeps_working(make, kind):
    coordinator, members, models = make(kind, normalize=False)
    parameters, *_ = exploited(coordinator, members, models)
    models[1].policy.load_state_dict(parameters["policy"])
    models[1].set_parameters(models[0].get_parameters())
    assert same(dict(models[1].policy.state_dict()), dict(models[0].policy.state_dict()))
    models[1].learn(16)


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a14_a19_statistics_are_numbers(make, kind):
    coordinator, members, models = make(kind)
    exploited(coordinator, members, models)
    stats = coordinator.get_stats()
    assert all(type(value) is float for value in stats.values())
    expected = {"population_size": 2, "ready_members": 2, "exploitation_count": 1, "exploration_count": 1}
    assert {name: stats[f"pbt/{name}"] for name in expected} == expected


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a18_a20_a21_records_name_the_donor(make, kind):
    coordinator, members, models = make(kind)
    record = members[1]
    assert not coordinator.scheduler.should_exploit_and_explore(record)
    parameters, hyperparams, _ = exploited(coordinator, members, models)
    assert (record.exploited_from, record.performance, record.hyperparams) == (0, None, hyperparams)
    assert [entry["performance"] for entry in record.history] == [0.0]
    assert same(dict(parameters["policy"]), dict(models[0].policy.state_dict()))
    record.record_step(7, 0.5, hyperparams)
    assert (record.step, record.performance, len(record.history)) == (7, 0.5, 2)


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a20_a23_weights_alone_are_deprecated_and_say_what_is_lost(make, kind, caplog):
    coordinator, members, models = make(kind, normalize=False)
    for member, model, score in zip(members, models, (1.0, 0.0), strict=True):
        weights = model.policy.state_dict()
        parameters, _, form = coordinator.on_member_update_end(member, score, 1, model_state_dict=dict(weights))
    assert form == "v1_policy_only"
    assert "deprecated" in caplog.text
    assert "VGS and optimizer state are not transferred" in caplog.text
    coordinator.apply_exploited_parameters(models[1], parameters, members[1], members[0])
    assert same(dict(models[1].policy.state_dict()), dict(models[0].policy.state_dict()))


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a23_checkpoints_are_read_with_weights_only(make, kind):
    coordinator, members, models = make(kind)
    coordinator.save_member_checkpoint(members[0], models[0], getattr(models[0], "env", None))
    found = torch.load(members[0].checkpoint_path, weights_only=True)
    assert (found["format_version"], found["schema"], found["has_optimizer_state"]) == ("v2_full_parameters", 2, True)
    assert {"policy", "kl_penalty_state", "vgs_state", "return_stats_state"} <= set(found["data"])
    assert ("vecnormalize_state" in found["data"]) is (kind != "own")
    assert found["hyperparams"] == members[0].hyperparams


@pytest.mark.parametrize("kind", marked(KINDS))
def test_a24_no_global_generator_is_read_and_the_state_says_all(make, kind):
    coordinator, members, models = make(kind)
    parameters = [coordinator.collect_parameters(model) for model in models]
    before = np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()
    for member, own, score in zip(members, parameters, (1.0, 0.0), strict=True):
        new, *_ = coordinator.on_member_update_end(member, score, 1, model_parameters=own)
    coordinator.apply_exploited_parameters(models[1], new, members[1], members[0])
    assert (np.random.get_state()[1].tolist(), torch.random.get_rng_state().tolist()) == before
    state = json.loads(json.dumps(coordinator.state_dict()))
    again = PBTTrainingCoordinator(coordinator.config, seed=99)
    again.initialize_population()
    again.load_state_dict(state)
    assert json.loads(json.dumps(again.state_dict())) == state


def test_a16_a17_spaces_and_settings_say_what_is_allowed():
    assert HyperparamConfig("gamma", 0.9, 0.99).is_continuous
    assert HyperparamConfig("gamma", values=[0.9, 0.99]).is_categorical
    for wrong in ({}, {"values": [1], "min_value": 0.0, "max_value": 1.0}):
        with pytest.raises(ValueError, match="gamma"):
            HyperparamConfig("gamma", **wrong)
    with pytest.raises(ValueError, match=r"optimizer_exploit_strategy must be 'reset' or 'copy'.*not 'keep'"):
        PBTConfig(optimizer_exploit_strategy="keep")
    defaults = PBTConfig()
    assert (defaults.population_size, defaults.perturbation_interval, defaults.truncation_ratio) == (10, 5, 0.2)
    assert (defaults.exploit_method, defaults.explore_method, defaults.metric_mode) == ("truncation", "both", "max")
    assert (defaults.ready_percentage, defaults.min_ready_members, defaults.ready_check_max_wait) == (0.8, 2, 10)
    assert (defaults.checkpoint_dir, defaults.optimizer_exploit_strategy) == ("pbt_checkpoints", "reset")
