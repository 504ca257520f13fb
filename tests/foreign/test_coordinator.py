"""The coordinator with models of no library: what is looked for, what is tolerated, what is refused."""

import copy
import inspect
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from torch import nn

from popgraft.errors import ConfigError
from popgraft.foreign import (
    UPGD,
    AdaptiveUPGD,
    PBTAdversarialConfig,
    PBTConfig,
    PBTTrainingCoordinator,
    PopulationMember,
    SAPPOConfig,
    VarianceGradientScaler,
)
from popgraft.hyperparams import HyperparamConfig

from .conftest import same

RATE = HyperparamConfig("learning_rate", min_value=1e-4, max_value=1e-1, is_log_scale=True)


class Part:
    """A part of a model with a state of its own."""

    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"value": self.value}

    def load_state_dict(self, state):
        self.value = state["value"]


class Model:
    """A plain PyTorch model with everything that the coordinator looks for."""

    def __init__(self, seed=0, optimizer=torch.optim.Adam, learning_rate=1e-3, steps=3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.policy = nn.Linear(3, 2)
            self.inputs = torch.randn(8, 3)
        self.learning_rate, self.ent_coef, self.clip_range = learning_rate, 0.0, 0.2
        own = {"seed": seed} if optimizer in (UPGD, AdaptiveUPGD) else {}
        self.optimizer = optimizer(self.policy.parameters(), lr=learning_rate, **own)
        self.vgs = VarianceGradientScaler(self.policy.parameters(), warmup_steps=1)
        self.return_stats, self.kl_penalty = Part(float(seed)), Part(float(seed))
        self.resets = 0
        for _ in range(steps):
            self.step()

    def step(self):
        self.optimizer.zero_grad()
        self.policy(self.inputs).square().mean().backward()
        self.vgs.scale_gradients()
        self.optimizer.step()
        self.vgs.step()

    def reset_lstm_states_to_initial(self):
        self.resets += 1


def state(model):
    return copy.deepcopy(
        (model.policy.state_dict(), model.optimizer.state_dict(), model.vgs.state_dict(), model.return_stats.value,
         model.kl_penalty.value, model.learning_rate, model.ent_coef, model.clip_range)
    )  # fmt: skip


@pytest.fixture
def make(tmp_path):
    def build(strategy="copy", adversarial=False, faults=(), **settings):
        return PBTTrainingCoordinator(
            PBTAdversarialConfig(
                pbt=PBTConfig(
                    **{
                        "population_size": 2,
                        "perturbation_interval": 1,
                        "hyperparams": [RATE],
                        "optimizer_exploit_strategy": strategy,
                        "checkpoint_dir": tmp_path,
                        **settings,
                    }
                ),
                adversarial=SAPPOConfig(enabled=adversarial),
                graft_faults=list(faults),
            ),
            seed=0,
        )

    return build


def graft(coordinator, recipient, donor, hyperparams=None):
    member = PopulationMember(0, {"learning_rate": 2e-3} if hyperparams is None else hyperparams)
    coordinator.apply_exploited_parameters(recipient, coordinator.collect_parameters(donor), member)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, UPGD, AdaptiveUPGD])
def test_everything_moves_and_nothing_is_shared(make, optimizer):
    recipient, donor = Model(1, optimizer), Model(2, optimizer, steps=5)
    before = state(donor)
    graft(make(), recipient, donor)
    assert same(recipient.policy.state_dict(), donor.policy.state_dict())
    assert same(recipient.optimizer.state_dict()["state"], donor.optimizer.state_dict()["state"])
    assert same(recipient.vgs.state_dict(), donor.vgs.state_dict())
    assert (recipient.return_stats.value, recipient.kl_penalty.value, recipient.resets) == (2.0, 2.0, 1)
    recipient.step()
    assert same(state(donor), before)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, UPGD, AdaptiveUPGD])
def test_the_next_update_is_the_donors_bit_for_bit(make, optimizer):
    recipient, donor = Model(1, optimizer), Model(2, optimizer, steps=5)
    graft(make(), recipient, donor, {"learning_rate": 1e-3})
    recipient.inputs = donor.inputs
    for _ in range(3):
        recipient.step()
        donor.step()
    assert same(recipient.policy.state_dict(), donor.policy.state_dict())
    assert same(recipient.optimizer.state_dict(), donor.optimizer.state_dict())
    assert same(recipient.vgs.state_dict(), donor.vgs.state_dict())


@pytest.mark.parametrize("strategy", ["reset", "copy"])
@pytest.mark.parametrize(("hyperparams", "rate"), [({"learning_rate": 2e-3}, 2e-3), ({}, None)])
def test_optimizer_groups_and_schedulers_stay_bound(make, strategy, hyperparams, rate):
    recipient, donor = Model(1, learning_rate=5e-3), Model(2, learning_rate=7e-3)
    optimizer, groups, group = (
        recipient.optimizer,
        recipient.optimizer.param_groups,
        recipient.optimizer.param_groups[0],
    )
    scheduler = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda _: 0.5)
    graft(make(strategy), recipient, donor, hyperparams)
    assert recipient.optimizer is optimizer
    assert optimizer.param_groups is groups
    assert groups[0] is group
    assert bool(optimizer.state) is (strategy == "copy")
    expected = rate or (5e-3 if strategy == "reset" else 7e-3)
    assert group["lr"] == expected
    assert recipient.learning_rate == (rate or 5e-3)
    recipient.step()
    scheduler.step()
    assert group["lr"] == expected / 2


def test_a_copy_without_a_state_keeps_the_optimizer(make, caplog):
    recipient, donor = Model(1), Model(2)
    coordinator, before = make("copy"), copy.deepcopy(recipient.optimizer.state_dict()["state"])
    parameters = coordinator.collect_parameters(donor)
    del parameters["optimizer_state"]
    coordinator.apply_exploited_parameters(recipient, parameters, PopulationMember(0, {"learning_rate": 2e-3}))
    assert same(recipient.optimizer.state_dict()["state"], before)
    assert recipient.optimizer.param_groups[0]["lr"] == 2e-3
    assert "Optimizer state is absent" in caplog.text


@pytest.mark.parametrize("last", ["vgs", "return_stats", "kl_penalty", "optimizer"])
def test_any_part_that_fails_undoes_the_graft(make, last, monkeypatch):
    recipient, donor = Model(1), Model(2)
    before, optimizer = state(recipient), recipient.optimizer
    part, load = getattr(recipient, last), getattr(recipient, last).load_state_dict
    failed = []

    def fail_once(loaded):
        load(loaded)  # changes it, then fails
        if not failed:
            failed.append(True)
            raise OSError("disk")

    monkeypatch.setattr(part, "load_state_dict", fail_once)
    with pytest.raises(OSError, match="disk"):
        graft(make(), recipient, donor)
    assert same(state(recipient), before)
    assert recipient.optimizer is optimizer
    assert recipient.resets == 0


@pytest.mark.parametrize("name", ["policy", "policy_state", None])
def test_weights_are_found_under_three_names(make, name):
    recipient, donor = Model(1), Model(2)
    weights = donor.policy.state_dict()
    make("reset").apply_exploited_parameters(
        recipient, weights if name is None else {name: weights}, PopulationMember(0, {})
    )
    assert same(recipient.policy.state_dict(), donor.policy.state_dict())


@pytest.mark.parametrize("parameters", [{}, {"weights": {"weight": torch.zeros(1)}}, {"policy": 3}, {"a": 1.0}])
def test_parameters_without_weights_are_refused(make, parameters):
    recipient = Model()
    before = state(recipient)
    with pytest.raises(ValueError, match="no weights among the parameters"):
        make().apply_exploited_parameters(recipient, parameters, PopulationMember(0, {}))
    assert same(state(recipient), before)


def test_a_model_that_cannot_load_is_an_error(make, caplog):
    with pytest.raises(ValueError, match=r"neither policy\.load_state_dict nor load_state_dict"):
        make().apply_exploited_parameters(object(), {"policy": {"w": torch.zeros(1)}}, PopulationMember(0, {}))
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_a_module_is_a_model(make):
    recipient, donor = nn.Linear(2, 1), nn.Linear(2, 1)
    with torch.no_grad():
        donor.weight.add_(1)
    make().apply_exploited_parameters(recipient, donor.state_dict(), PopulationMember(0, {}))
    assert same(recipient.state_dict(), donor.state_dict())


@pytest.fixture(autouse=True)
def _torch_generator_comes_back():
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("double", [Mock, MagicMock])
def test_mocks_are_tolerated(make, double):
    model, weights = double(), {"w": torch.zeros(2)}
    coordinator = make()
    coordinator.apply_exploited_parameters(model, {"policy": weights}, PopulationMember(0, {"learning_rate": 3e-4}))
    ((given,), _) = model.policy.load_state_dict.call_args
    assert given == weights
    model.reset_lstm_states_to_initial.assert_called_once_with()
    assert model.learning_rate == 3e-4
    coordinator.apply_exploited_parameters(model, {"policy": weights}, PopulationMember(0, {"learning_rate": double()}))
    assert model.learning_rate == 3e-4


def test_a_value_without_a_place_is_named(make, caplog):
    model = Model()
    del model.clip_range
    graft(make(), model, Model(2), {"clip_range": 0.1, "ent_coef": True})
    assert "clip_range=0.1 is not used" in caplog.text
    assert "ent_coef=True is not used" in caplog.text
    assert model.ent_coef == 0.0


def test_an_entry_that_nothing_takes_over_is_named(make, caplog):
    recipient, donor = Model(1), Model(2)
    coordinator = make()
    parameters = {**coordinator.collect_parameters(donor), "world_model": {"w": torch.zeros(1)}}
    coordinator.apply_exploited_parameters(recipient, parameters, PopulationMember(0, {}))
    assert [record.message for record in caplog.records if "not used" in record.message] == [
        "Member 0: world_model not used, nothing takes it over"
    ]


def test_an_absent_scaler_state_is_a_warning(make, caplog):
    recipient, donor = Model(1), Model(2)
    before = recipient.vgs.state_dict()
    make().apply_exploited_parameters(recipient, {"policy": donor.policy.state_dict()}, PopulationMember(0, {}))
    assert same(recipient.vgs.state_dict(), before)
    assert any(record.levelname == "WARNING" and "vgs_state is absent" in record.message for record in caplog.records)


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("forget_vgs", lambda model: model.vgs.state_dict()),
        ("forget_return_scale", lambda model: model.return_stats.value),
        ("forget_kl_penalty", lambda model: model.kl_penalty.value),
    ],
)
def test_a_fault_spares_its_part(make, fault, part):
    recipient, donor = Model(1), Model(2, steps=5)
    before = copy.deepcopy(part(recipient))
    graft(make(faults=[fault]), recipient, donor)
    assert same(part(recipient), before)
    assert not same(part(recipient), part(donor))
    assert same(recipient.policy.state_dict(), donor.policy.state_dict())


def test_the_factory_gets_what_it_takes_and_the_rest_is_set(make):
    coordinator = make()
    (member, *_) = coordinator.initialize_population({"learning_rate": 4e-3})
    member.hyperparams["entropy_coef"] = 0.02

    def seed_alone(seed):
        return Model(seed)

    def anything(**arguments):
        assert arguments == {"seed": 5, "learning_rate": 4e-3, "ent_coef": 0.02}
        return Model(arguments["seed"])

    for factory in (Model, seed_alone, anything):
        model, adversary = coordinator.create_member_model(member, factory, seed=5)
        assert adversary is None
        assert (model.learning_rate, model.ent_coef) == (4e-3, 0.02)
        assert model.optimizer.param_groups[0]["lr"] == 4e-3


def test_adversarial_training_needs_a_distribution(make):
    coordinator = make(adversarial=True)
    (member, *_) = coordinator.initialize_population()
    with pytest.raises(ConfigError, match="get_distribution"):
        coordinator.create_member_model(member, Model)


def test_adversarial_values_are_the_members_own_and_live_after_an_exploit(make):
    class Attackable(Model):
        def __init__(self, **_):
            super().__init__()
            self.policy.get_distribution = lambda observations: torch.distributions.Normal(observations, 1.0)

    coordinator = make(adversarial=True)
    first, second, *_ = coordinator.initialize_population()
    made = []
    for member, epsilon in ((first, 0.3), (second, 0.1)):
        member.hyperparams["adversarial_epsilon"] = epsilon
        made.append(coordinator.create_member_model(member, Attackable))
    (model, own), (_, other) = made
    assert (own.adversarial_epsilon, other.adversarial_epsilon) == (0.3, 0.1)
    coordinator.on_member_update_start(first)
    assert (own.update_count, other.update_count) == (1, 0)
    first.hyperparams["adversarial_epsilon"] = 0.2
    coordinator.apply_exploited_parameters(model, coordinator.collect_parameters(made[1][0]), first)
    assert (own.adversarial_epsilon, other.adversarial_epsilon) == (0.2, 0.1)
    assert (own.update_count, other.update_count) == (0, 0)
    coordinator.on_member_update_start(second)
    assert coordinator.get_stats()["avg_sa_ppo/update_count"] == 0.5


@pytest.mark.parametrize("given", [{"learing_rate": 1e-3}, [{}, {"adversarial_epsilon": 0.1}]])
def test_a_name_that_no_model_reads_is_refused(make, given):
    with pytest.raises(ConfigError, match=r"learning_rate|adversarial\.enabled"):
        make().initialize_population(given)


def test_a_member_of_another_population_is_refused(make):
    coordinator = make()
    coordinator.initialize_population()
    stranger = PopulationMember(0, {})
    with pytest.raises(ConfigError, match="not of this population"):
        coordinator.on_member_update_start(stranger)
    with pytest.raises(ConfigError, match="not of this population"):
        coordinator.on_member_update_end(stranger, 1.0, 1, model_parameters={"policy": {"w": torch.ones(1)}})
    assert coordinator.scheduler.best is None


def test_statistics_average_numbers_alone(make):
    coordinator = make()
    coordinator.initialize_population()
    assert coordinator.get_stats() == coordinator.scheduler.get_stats()
    for member, (epsilon, on) in enumerate([(0.1, True), (0.3, True)]):
        stats = {"sa_ppo/current_epsilon": epsilon, "sa_ppo/enabled": on, "sa_ppo/attack_method": "pgd"}
        coordinator.sa_ppo[member] = Mock(get_stats=lambda stats=stats: stats)
    found = coordinator.get_stats()
    assert found["avg_sa_ppo/current_epsilon"] == pytest.approx(0.2)
    assert set(found) - set(coordinator.scheduler.get_stats()) == {"avg_sa_ppo/current_epsilon"}


def test_survivors_can_explore(make):
    coordinator = make(explore_always=True, explore_method="perturb")
    members, models = coordinator.initialize_population(), [Model(1), Model(2)]
    for member, model, score in zip(members, models, (0.0, 1.0), strict=True):
        new, *_ = coordinator.on_member_update_end(
            member, score, 1, model_parameters=coordinator.collect_parameters(model)
        )
    assert new is None
    coordinator.apply_hyperparameters(models[1], members[1])
    assert (
        models[1].optimizer.param_groups[0]["lr"] == models[1].learning_rate == members[1].hyperparams["learning_rate"]
    )


def test_a_resumed_coordinator_goes_on(make):
    one, other = make(), make()
    one.initialize_population()
    one.on_member_update_end(one.scheduler.population[0], 1.0, 1)
    other.load_state_dict(one.state_dict())
    assert other.scheduler.population[0].performance == 1.0
    assert other.state_dict() == one.state_dict()


def test_saved_members_go_back_to_the_best_ever(make):
    coordinator = make(exploit_method="backtracking", explore_method="none")
    members, models = coordinator.initialize_population(), [Model(1), Model(2)]
    record = copy.deepcopy(models[1].policy.state_dict())
    for step, scores in ((1, (0.0, 9.0)), (2, (1.0, 2.0))):
        for member, model, score in zip(members, models, scores, strict=True):
            coordinator.save_member_checkpoint(member, model)
            new, *_ = coordinator.on_member_update_end(member, score, step)
            if (step, member.member_id) == (2, 0):
                assert same(new["policy"], record)
            model.step()
    assert (coordinator.scheduler.best.member_id, coordinator.scheduler.best.performance) == (1, 9.0)


def test_a_t_test_gets_its_episodes_through_the_coordinator(make):
    coordinator = make(exploit_method="ttest")
    members = coordinator.initialize_population()
    with pytest.raises(ConfigError, match="pass both"):
        coordinator.on_member_update_end(members[0], 1.0, 1)
    for score, stderr, copied in ((2.0, 0.5, False), (2.0, 0.3, True)):  # t = 1.41 and 2.36
        for member, own in zip(reversed(members), (score, 1.0), strict=True):
            parameters = coordinator.collect_parameters(Model(member.member_id))
            new, *_ = coordinator.on_member_update_end(
                member, own, 1, model_parameters=parameters, stderr=stderr, episodes=10
            )
        assert (new is not None) is copied
    assert (members[0].stderr, members[0].episodes) == (0.3, 10)
    assert members[0].performance is None


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("persistent", [True, False])
def test_a_mask_that_is_not_finite_is_named_with_its_remedy(make, saved, persistent, caplog):
    coordinator, model = make(), Model()
    member, *_ = coordinator.initialize_population()
    model.policy.register_buffer("mask", torch.tensor(-torch.inf), persistent=persistent)
    if saved:
        coordinator.save_member_checkpoint(member, model)
        coordinator.on_member_update_end(member, 1.0, 1)
    else:
        coordinator.on_member_update_end(member, 1.0, 1, model_parameters=coordinator.collect_parameters(model))
    assert member.is_healthy is not persistent
    assert (
        "weights are not finite (mask); it counts as failed" in caplog.text
        and "register_buffer(..., persistent=False)" in caplog.text
    ) is persistent


@pytest.mark.parametrize(
    ("arguments", "given", "reason"),
    [
        ((np.array([1.0, 2.0]), 1), {}, "performance=array"),
        ((1.0, 1), {"model_parameters": {"weights": {"w": torch.ones(1)}}}, "no weights among the parameters"),
        ((1.0, 1), {"model_parameters": {}}, "no weights among the parameters"),
    ],
)
def test_a_report_that_says_nothing_is_refused_at_once(make, arguments, given, reason):
    coordinator = make()
    member, *_ = coordinator.initialize_population()
    before = copy.deepcopy(member)
    with pytest.raises(ConfigError, match=reason):
        coordinator.on_member_update_end(member, *arguments, **given)
    assert member == before


@pytest.mark.parametrize("member", [0, None, "0", {"member_id": 0}])
def test_something_else_in_place_of_a_member_is_refused(make, member):
    coordinator, model = make(), Model()
    (known, *_) = coordinator.initialize_population()
    parameters = coordinator.collect_parameters(model)
    before = state(model)
    for name, *arguments in (
        ("create_member_model", member, Model),
        ("on_member_update_start", member),
        ("on_member_update_end", member, 1.0, 1, None, parameters),
        ("apply_exploited_parameters", model, parameters, member),
        ("apply_exploited_parameters", model, parameters, known, member or 0),
        ("apply_hyperparameters", model, member),
        ("save_member_checkpoint", member, model),
    ):
        method = inspect.unwrap(getattr(PBTTrainingCoordinator, name))  # as outside of tests, which check annotations
        with pytest.raises(ConfigError, match="not a PopulationMember; pass one of those"):
            method(coordinator, *arguments)
    assert same(state(model), before)
