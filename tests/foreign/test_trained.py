"""Models with several optimizers and parameters beside their policy: Stable-Baselines3's SAC and TD3, and own ones."""

import copy

import numpy as np
import pytest
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.logger import configure
from torch import nn

from popgraft.errors import ConfigError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, PopulationMember
from popgraft.hyperparams import HyperparamConfig

from .conftest import same

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

RATE = HyperparamConfig("learning_rate", min_value=1e-5, max_value=1e-1, is_log_scale=True)
OPTIMIZERS = {
    SAC: ("actor.optimizer", "critic.optimizer", "ent_coef_optimizer"),
    TD3: ("actor.optimizer", "critic.optimizer"),
}


@pytest.fixture
def make(tmp_path):
    def build(strategy="copy", **settings):
        pbt = {"population_size": 2, "perturbation_interval": 1, "hyperparams": [RATE], "checkpoint_dir": tmp_path}
        config = PBTConfig(**{**pbt, "optimizer_exploit_strategy": strategy, **settings})
        return PBTTrainingCoordinator(PBTAdversarialConfig(pbt=config), seed=0)

    return build


def off_policy(kind, seed, steps, **settings):
    model = kind(
        "MlpPolicy", make_vec_env("Pendulum-v1", 1, seed=seed), learning_starts=5, batch_size=8, seed=seed,
        policy_kwargs={"net_arch": [4]}, device="cpu", **settings,
    )  # fmt: skip
    model.set_logger(configure(None, []))
    return model.learn(steps)


def everything(model):
    """Weights, targets, every optimizer's state and what is trained beside the policy."""
    found = {"policy": model.policy.state_dict()}
    for name in OPTIMIZERS[type(model)]:
        owner = model
        for part in name.split("."):
            owner = getattr(owner, part)
        found[name] = owner.state_dict()
    if isinstance(model, SAC):
        found["log_ent_coef"] = model.log_ent_coef
    return copy.deepcopy(found)


def exploit(coordinator, recipient, donor):
    """The first member becomes a copy of the second, through a file."""
    loser, winner = coordinator.scheduler.population or coordinator.initialize_population()
    coordinator.on_member_update_end(winner, 1.0, 1, model_parameters=coordinator.collect_parameters(donor))
    new, *_ = coordinator.on_member_update_end(
        loser, 0.0, 1, model_parameters=coordinator.collect_parameters(recipient)
    )
    assert loser.exploited_from == winner.member_id
    coordinator.apply_exploited_parameters(recipient, new, loser)
    return loser


@pytest.mark.parametrize("kind", [SAC, TD3])
def test_the_next_updates_are_the_donors_bit_for_bit(make, kind):
    coordinator = make(explore_method="none", hyperparams=[])
    recipient, donor = off_policy(kind, 0, 12), off_policy(kind, 1, 31)  # TD3 trains its actor every other update
    exploit(coordinator, recipient, donor)
    assert same(everything(recipient), everything(donor))
    recipient.replay_buffer = copy.deepcopy(donor.replay_buffer)
    for model in (recipient, donor):
        np.random.seed(0)
        torch.manual_seed(0)
        model.train(gradient_steps=3, batch_size=8)
    assert same(everything(recipient), everything(donor))


@pytest.mark.parametrize("kind", [SAC, TD3])
@pytest.mark.parametrize("strategy", ["reset", "copy", "partial"])
def test_every_optimizer_follows_the_strategy_and_has_the_explored_rate(make, kind, strategy):
    coordinator = make(strategy)
    recipient, donor = off_policy(kind, 0, 12), off_policy(kind, 1, 30)
    member = exploit(coordinator, recipient, donor)
    rate, found, theirs = member.hyperparams["learning_rate"], everything(recipient), everything(donor)
    assert rate != donor.lr_schedule(1.0)
    for name in OPTIMIZERS[kind]:
        assert [group["lr"] for group in found[name]["param_groups"]] == [rate]
        if strategy == "reset":
            assert found[name]["state"] == {}
        elif strategy == "copy":
            assert same(found[name]["state"], theirs[name]["state"])
        for index, own in found[name]["state"].items() if strategy == "partial" else ():
            old = theirs[name]["state"][index]  # as after one step along the mean gradient m / (1 - beta1^t)
            mean = old["exp_avg"] / (1 - 0.9 ** float(old["step"]))
            torch.testing.assert_close(own["exp_avg"], 0.1 * mean)
    recipient.train(gradient_steps=1, batch_size=8)  # sets all rates from the model's schedule
    assert {group["lr"] for name in OPTIMIZERS[kind] for group in everything(recipient)[name]["param_groups"]} == {rate}


def test_a_fixed_entropy_coefficient_is_live_and_a_learned_one_has_no_place(make, caplog):
    coordinator = make(hyperparams=[HyperparamConfig("ent_coef", min_value=0.01, max_value=1.0)])
    member, *_ = coordinator.initialize_population({"ent_coef": 0.3})
    settings = {"policy": "MlpPolicy", "env": "Pendulum-v1", "policy_kwargs": {"net_arch": [4]}, "device": "cpu"}
    model, _ = coordinator.create_member_model(member, SAC, **settings)
    member.hyperparams["ent_coef"] = 0.5
    coordinator.apply_hyperparameters(model, member)
    assert model.ent_coef_tensor.item() == 0.5  # what its loss reads
    assert not caplog.records
    coordinator.apply_hyperparameters(SAC(**settings), member)
    assert "ent_coef=0.5 is not used" in caplog.text


def test_models_that_stable_baselines3_saved_or_reports_itself_are_donors(make, tmp_path, caplog):
    coordinator = make(explore_method="none", hyperparams=[])
    loser, winner = coordinator.initialize_population()
    recipient, donor = off_policy(SAC, 0, 12), off_policy(SAC, 1, 30)
    donor.save(tmp_path / "donor.zip")
    winner.checkpoint_path = tmp_path / "donor.zip"
    coordinator.on_member_update_end(winner, 1.0, 1)
    new, *_ = coordinator.on_member_update_end(loser, 0.0, 1)
    coordinator.apply_exploited_parameters(recipient, new, loser)
    assert same(everything(recipient), everything(donor))
    assert "log_ent_coef" not in caplog.text
    recipient = off_policy(SAC, 0, 12)
    own = recipient.log_ent_coef.clone()
    coordinator.apply_exploited_parameters(recipient, donor.get_parameters(), loser)  # without log_ent_coef
    assert recipient.log_ent_coef == own
    assert "keeps its own log_ent_coef" in caplog.text


class ActorCritic:
    """Two networks, one of them the policy, each with an optimizer; a temperature and a target network beside."""

    def __init__(self, learning_rate=1e-3, critic_rate=None, seed=0, steps=3, hidden=3):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.policy = nn.Linear(2, 2)
            self.critic = nn.Sequential(nn.Linear(2, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, 1))
        self.targets = {"critic": copy.deepcopy(self.critic).requires_grad_(False)}
        self.learning_rate = learning_rate
        self.temperature = torch.tensor(0.5 + seed, requires_grad=True)
        critic_rate = critic_rate or learning_rate
        self.optimizers = [
            torch.optim.Adam(self.policy.parameters(), lr=learning_rate),
            torch.optim.SGD(self.critic.parameters(), lr=critic_rate, momentum=0.9),
        ]
        self.opt_temperature = torch.optim.Adam([self.temperature], lr=learning_rate)
        for _ in range(steps):
            self.step()

    def step(self):
        x = torch.linspace(-1, 1, 8).reshape(4, 2)
        everyone = [*self.optimizers, self.opt_temperature]
        for optimizer in everyone:
            optimizer.zero_grad()
        loss = self.policy(x).square().mean() * self.temperature + (self.critic(x) - 1).square().mean()
        loss.backward()
        for optimizer in everyone:
            optimizer.step()
        for own, target in zip(self.critic.parameters(), self.targets["critic"].parameters(), strict=True):
            target.data.lerp_(own.data, 0.1)

    def all(self):
        everyone = [*self.optimizers, self.opt_temperature]
        modules = (self.policy, self.critic, self.targets["critic"])
        return copy.deepcopy(
            ([m.state_dict() for m in modules], [o.state_dict() for o in everyone], self.temperature.detach())
        )


def test_everything_that_a_model_trains_is_found_and_nothing_is_shared(make):
    recipient, donor = ActorCritic(seed=1), ActorCritic(seed=2, steps=7)
    exploit(make(explore_method="none", hyperparams=[]), recipient, donor)
    assert same(recipient.all(), donor.all())
    before = donor.all()
    for _ in range(3):
        recipient.step()
    assert same(donor.all(), before)
    for _ in range(3):
        donor.step()
    assert same(recipient.all(), donor.all())


@pytest.mark.parametrize(("critic_rate", "follows"), [(None, True), (1e-2, False)])
def test_the_explored_rate_is_that_of_groups_which_had_the_models(make, critic_rate, follows):
    coordinator = make()
    members = coordinator.initialize_population()
    models = [coordinator.create_member_model(m, ActorCritic, critic_rate=critic_rate, seed=1)[0] for m in members]
    for member, model in zip(members, models, strict=True):
        assert model.optimizers[0].param_groups[0]["lr"] == member.hyperparams["learning_rate"]
    member = exploit(coordinator, *models)
    rate = member.hyperparams["learning_rate"]
    (actor, critic), temperature = models[0].optimizers, models[0].opt_temperature
    assert (actor.param_groups[0]["lr"], temperature.param_groups[0]["lr"]) == (rate, rate)
    assert critic.param_groups[0]["lr"] == (rate if follows else 1e-2)
    assert models[0].learning_rate == rate


def test_a_rate_that_a_scheduler_has_moved_is_the_models_still(make):
    coordinator = make()
    members = coordinator.initialize_population()
    models = [coordinator.create_member_model(m, ActorCritic, seed=1)[0] for m in members]
    for model in models:
        scheduler = torch.optim.lr_scheduler.StepLR(model.optimizers[0], 1, 0.5)
        model.step()
        scheduler.step()
        assert model.optimizers[0].param_groups[0]["lr"] != model.learning_rate
    rate = exploit(coordinator, *models).hyperparams["learning_rate"]
    everyone = [*models[0].optimizers, models[0].opt_temperature]
    assert [optimizer.param_groups[0]["lr"] for optimizer in everyone] == [rate] * 3


def test_an_optimizer_in_an_object_that_is_not_searched_is_refused(make):
    class Learner:
        def __init__(self, model):
            self.critic, self.actor_optimizer = nn.Linear(2, 1), model.optimizers[0]  # the latter is known
            self.optimizer = torch.optim.Adam(self.critic.parameters())

    model = ActorCritic()
    model.learner = Learner(model)
    with pytest.raises(ConfigError, match=r"learner\.optimizer is an optimizer in a Learner"):
        make().collect_parameters(model)
    del model.learner.optimizer
    make().collect_parameters(model)


def test_a_momentum_is_rescaled_where_the_rate_is_the_explored_one(make):
    coordinator = make(optimizer_rescale=True)
    members = coordinator.initialize_population([{"learning_rate": 1e-3}, {"learning_rate": 4e-3}])
    models = [coordinator.create_member_model(m, ActorCritic, critic_rate=1e-2, seed=1)[0] for m in members]
    member = exploit(coordinator, *models)
    ratio = 4e-3 / member.hyperparams["learning_rate"]
    assert ratio != 1
    for place, (name, factor) in enumerate([("exp_avg", ratio), ("momentum_buffer", 1.0)]):
        own, theirs = (model.optimizers[place].state_dict()["state"] for model in models)
        for index, state in own.items():
            torch.testing.assert_close(state[name], theirs[index][name] * factor)


def test_a_rate_that_could_be_anybodys_is_refused(make):
    model = ActorCritic(critic_rate=1e-2)
    del model.learning_rate
    coordinator = make()
    before = model.all()
    with pytest.raises(ConfigError, match=r"optimizers\.0\.optimizer.*cannot be told.*0\.001, 0\.01"):
        coordinator.apply_hyperparameters(model, PopulationMember(0, {"learning_rate": 3e-3}))
    assert same(model.all(), before)
    alike = ActorCritic()
    del alike.learning_rate  # one rate is everybody's
    coordinator.apply_hyperparameters(alike, PopulationMember(0, {"learning_rate": 3e-3}))
    assert {o.param_groups[0]["lr"] for o in (*alike.optimizers, alike.opt_temperature)} == {3e-3}


def without_an_optimizer(model):
    model.optimizers.pop()


def without_the_temperature(model):
    model.temperature, model.opt_temperature = None, None


def with_another_critic(model):
    model.critic = nn.Linear(2, 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (without_an_optimizer, r"optimizers\.1\.optimizer"),
        (without_the_temperature, "temperature"),
        (with_another_critic, r"critic\."),
    ],
)
@pytest.mark.parametrize("swapped", [False, True])
def test_models_with_other_parts_are_refused_and_nothing_changes(make, change, words, swapped):
    recipient, donor = ActorCritic(seed=1), ActorCritic(seed=2)
    change(donor if swapped else recipient)
    everyone = [recipient.optimizers, recipient.policy.state_dict()]
    before = copy.deepcopy(([o.state_dict() for o in everyone[0]], everyone[1]))
    coordinator = make(hyperparams=[])
    with pytest.raises(ConfigError, match=words):
        exploit(coordinator, recipient, donor)
    assert same(([o.state_dict() for o in recipient.optimizers], recipient.policy.state_dict()), before)
    assert coordinator.scheduler.exploitation_count == 0


def test_weights_beside_the_policy_that_are_not_finite_fail_a_member(make):
    coordinator, model = make(), ActorCritic()
    member, *_ = coordinator.initialize_population()
    with torch.no_grad():
        model.critic[0].weight.fill_(torch.nan)
    coordinator.on_member_update_end(member, 9.0, 1, model_parameters=coordinator.collect_parameters(model))
    assert not member.is_healthy
