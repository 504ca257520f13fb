"""What is given by hand and cannot work is refused in words, at once, and before anything has changed."""

import re

import pytest
import torch
from torch import nn

from popgraft import (
    ConfigError,
    PBTAdversarialConfig,
    PBTConfig,
    PBTScheduler,
    PBTTrainingCoordinator,
    StateAdversarialPPO,
)
from popgraft.foreign import given
from popgraft.hyperparams import HyperparamConfig
from popgraft.sb3 import DistributionalPPO

RATE = HyperparamConfig("learning_rate", 1e-4, 1e-2, is_log_scale=True)


class Model:
    def __init__(self, optimizer=torch.optim.Adam, **settings):
        with torch.random.fork_rng():
            self.policy = nn.Linear(2, 1)
        self.policy.optimizer = optimizer(self.policy.parameters(), lr=1e-3, **settings)


@pytest.fixture
def config(tmp_path):
    return lambda **more: PBTConfig(population_size=2, checkpoint_dir=str(tmp_path), hyperparams=[RATE], **more)


@pytest.mark.parametrize("wrong", ["rates", 5, [5], [None], {5: 1.0}, [{5: 1.0}]])
def test_initial_values_are_named(wrong):
    with pytest.raises(ConfigError, match=re.escape(f"initial_hyperparams={wrong!r} must be values by name")):
        given.values_of(wrong, 2)


@pytest.mark.parametrize(
    ("seed", "words"),
    [("a", "seed='a' is not a whole number"), (1.5, "seed=1.5 is not a whole"), (-1, "seed=-1 is below 0")],
)
def test_a_seed_is_a_whole_number(seed, words):
    with pytest.raises(ConfigError, match=words):
        given.root(seed)


def test_a_negative_seed_is_refused_where_it_is_given(config):
    for kind, settings in ((PBTScheduler, config()), (PBTTrainingCoordinator, PBTAdversarialConfig(pbt=config()))):
        with pytest.raises(ConfigError, match="seed=-1 is below 0"):
            kind(settings, -1)


@pytest.mark.parametrize("state", [{}, {"seed": 1}])
def test_a_state_is_what_state_dict_returned(state, config):
    for each in (PBTScheduler(config(), 0), PBTTrainingCoordinator(PBTAdversarialConfig(pbt=config()), 0)):
        before = each.state_dict()
        with pytest.raises(ConfigError, match=re.escape(f"state={state} is not what state_dict returned")):
            each.load_state_dict(state)
        assert each.state_dict() == before
    for other in (None, 5, [1]):
        with pytest.raises(ConfigError, match="is not what state_dict returned"):
            given.check_state(other)


@pytest.mark.parametrize(
    ("report", "words"),
    [({"stderr": -1.0}, r"stderr=-1\.0 and episodes=0: neither is"), ({"episodes": -3}, "episodes=-3: neither is")],
)
def test_errors_and_counts_are_not_below_0(report, words, config):
    scheduler = PBTScheduler(config(), 0)
    member, _ = scheduler.initialize_population()
    with pytest.raises(ConfigError, match=words):
        scheduler.update_performance(member, 1.0, 1, **report)
    assert member.performance is None
    scheduler.update_performance(member, 1.0, 1, stderr=0.0, episodes=0)
    assert member.performance == 1.0


def test_models_are_a_list_and_a_folder_is_a_path():
    for models in (None, 5, "xy", {0: 1, 1: 2}):
        with pytest.raises(ConfigError, match=r"models=.* must be a list of the members' models"):
            given.paired([], models)
    with pytest.raises(ConfigError, match="folder=5 must be a path"):
        given.place(5)


def test_a_model_is_built_by_something_that_can():
    for factory in (None, 5, "PPO"):
        with pytest.raises(ConfigError, match=f"base_model_factory={factory!r} must build a model"):
            given.check_builder(factory)
    given.check_builder(Model)


@pytest.mark.parametrize("kind", [torch.optim.RMSprop, torch.optim.Adagrad, torch.optim.NAdam, torch.optim.Adadelta])
def test_what_partial_cannot_inherit_is_refused_when_the_model_is_made(kind, config):
    """And not hours later, at the first exploit; nothing is drawn from the global generator."""
    partial = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=config(optimizer_exploit_strategy="partial")), 0)
    member, _ = partial.initialize_population()
    model = Model(kind)
    before = torch.get_rng_state()
    with pytest.raises(
        ConfigError, match=r"'partial' is not defined for an optimizer that remembers .*; choose copy or"
    ):
        partial.create_member_model(member, lambda: model)
    assert torch.equal(torch.get_rng_state(), before)
    for known in (Model(), Model(torch.optim.SGD, momentum=0.9), Model(torch.optim.SGD)):
        partial.create_member_model(member, lambda known=known: known)
        assert not known.policy.optimizer.state
    copying = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=config(optimizer_exploit_strategy="copy")), 0)
    copying.create_member_model(copying.initialize_population()[0], lambda: model)


def test_a_distributional_ppo_is_not_asked_for_attacks_in_losses_of_others():
    model = DistributionalPPO(
        "MlpLstmPolicy", "CartPole-v1", n_steps=8, batch_size=8, adversary={"enabled": True}, device="cpu"
    )
    for name in ("robust_kl_penalty", "choose_rows", "on_update_start"):
        assert hasattr(StateAdversarialPPO, name)
        with pytest.raises(
            AttributeError, match=f"{name} is for losses of other models; a DistributionalPPO attacks in"
        ):
            getattr(model.adversary, name)
    assert not hasattr(model.adversary, "nonsense")
