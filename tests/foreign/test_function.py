"""Networks of the same shapes that are another function, and critics in other units."""

import copy

import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from torch import nn

from popgraft import DistributionalPPO
from popgraft.errors import ConfigError, StoreError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, PopulationMember
from popgraft.foreign.function import check, describe
from popgraft.sb3 import MlpLstmPolicy

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

SMALL = {"n_steps": 8, "batch_size": 8, "n_epochs": 1, "device": "cpu"}
POLICIES = {PPO: "MlpPolicy", RecurrentPPO: "MlpLstmPolicy", SAC: "MlpPolicy", DistributionalPPO: "MlpLstmPolicy"}


@pytest.fixture
def coordinator(tmp_path):
    pbt = PBTConfig(2, 1, checkpoint_dir=tmp_path, optimizer_exploit_strategy="copy")
    return PBTTrainingCoordinator(PBTAdversarialConfig(pbt), seed=0)


def make(kind, learn=0, seed=0, env="CartPole-v1", **settings):
    width = {} if kind in (PPO, SAC) else {"lstm_hidden_size": 4}
    network = {"net_arch": [4], **width, **settings.pop("policy_kwargs", {})}
    sizes = {"device": "cpu", "buffer_size": 10} if kind is SAC else SMALL
    model = kind(POLICIES[kind], env, seed=seed, policy_kwargs=network, **sizes, **settings)
    return model.learn(learn * 8) if learn else model


class Scaled(nn.Module):
    """A network with settings that no weight shows."""

    def __init__(self, activation=nn.Tanh, scale=1.0, clip=False, inner=torch.tanh, reduce="min"):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, 3), activation(), nn.Linear(3, 1))
        self.scale, self.clip, self.inner, self.reduce = scale, clip, inner, reduce
        self.calls, self.lr_init = 0, scale


def policy_only(**settings):
    model = Scaled(**settings)
    model.calls = len(settings)  # a counter is not a setting
    return model


@pytest.mark.parametrize(
    ("one", "other", "words"),
    [
        (lambda: make(PPO), lambda: make(PPO, policy_kwargs={"activation_fn": nn.ReLU}), "ReLU"),
        (
            lambda: make(RecurrentPPO),
            lambda: make(RecurrentPPO, policy_kwargs={"activation_fn": nn.ELU}),
            "ELU",
        ),
        (
            lambda: make(SAC, env="Pendulum-v1", use_sde=True, policy_kwargs={"clip_mean": 2.0}),
            lambda: make(SAC, env="Pendulum-v1", use_sde=True, policy_kwargs={"clip_mean": 1.0}),
            "clip_mean",
        ),
        (
            lambda: make(PPO, env="Pendulum-v1", use_sde=True),
            lambda: make(PPO, env="Pendulum-v1", use_sde=True, policy_kwargs={"squash_output": True}),
            "squash_output",
        ),
        (
            lambda: make(DistributionalPPO),
            lambda: make(DistributionalPPO, policy_kwargs={"activation_fn": nn.ReLU}),
            "activation is relu at the donor, tanh here",
        ),
        (
            lambda: make(DistributionalPPO, twin_critics=True),
            lambda: make(DistributionalPPO, twin_critics=True, twin_reduce="mean"),
            "twin_reduce is mean at the donor, min here",
        ),
        (
            lambda: make(DistributionalPPO, critic="categorical", n_bins=5, normalize_returns=False),
            lambda: make(DistributionalPPO, critic="quantile", n_quantiles=5, normalize_returns=False),
            "critic is quantile at the donor, categorical here",
        ),
        (
            lambda: make(DistributionalPPO, critic="categorical", n_bins=5, support=(-1, 1), normalize_returns=False),
            lambda: make(DistributionalPPO, critic="categorical", n_bins=5, support=(-2, 2), normalize_returns=False),
            "support",
        ),
        (
            lambda: make(DistributionalPPO, critic_recurrent="shared"),
            lambda: make(DistributionalPPO, critic_recurrent="detached"),
            "critic_recurrent",
        ),
        (policy_only, lambda: policy_only(activation=nn.ReLU), r"body\.1 is ReLU\(\)"),
        (policy_only, lambda: policy_only(scale=2.0), r"policy\.scale is 2\.0 at the donor, 1\.0 here"),
        (policy_only, lambda: policy_only(clip=True), "clip is True"),
        (policy_only, lambda: policy_only(inner=torch.relu), "inner"),
        (policy_only, lambda: policy_only(reduce="mean"), "reduce is 'mean'"),
    ],
)
def test_another_function_is_refused_in_words(coordinator, one, other, words):
    with torch.random.fork_rng():
        recipient, donor = one(), other()
    own = getattr(recipient, "policy", recipient)
    before = copy.deepcopy(own.state_dict())
    member = PopulationMember(0, {})
    with pytest.raises(ConfigError, match=f"another function.*{words}"):
        coordinator.apply_exploited_parameters(recipient, coordinator.collect_parameters(donor), member)
    assert all(torch.equal(value, before[name]) for name, value in own.state_dict().items())
    with torch.random.fork_rng():
        donor = one()
    parameters = coordinator.collect_parameters(donor)
    coordinator.apply_exploited_parameters(recipient, parameters, member)  # the same function is welcome
    assert all(torch.equal(value, parameters["policy"][name]) for name, value in own.state_dict().items())
    if parameters.pop("function"):  # as in files of earlier versions
        coordinator.apply_exploited_parameters(recipient, parameters, member)


def raw_values(model):
    """The critic's predictions in units of return."""
    states = model.policy.recurrent_initial_state
    memory = tuple(part.expand(-1, 3, -1).contiguous() for part in states.vf)
    obs = torch.linspace(-1, 1, 12).reshape(3, 4)
    with torch.no_grad():
        return model.policy.predict_values(obs, memory, torch.ones(3))


def test_weights_without_return_statistics_come_with_a_warning(coordinator, caplog):
    recipient, donor = make(DistributionalPPO, learn=1), make(DistributionalPPO, learn=8, seed=1)
    loser, winner = coordinator.initialize_population()
    coordinator.on_member_update_end(winner, 1.0, 1, model_state_dict=donor.policy.state_dict())
    new, _, form = coordinator.on_member_update_end(loser, 0.0, 1)
    assert form == "v1_policy_only"
    coordinator.apply_exploited_parameters(recipient, new, loser)
    mean, std, own_mean, own_std = (
        getattr(model, f"_ret_{name}_snapshot") for model in (donor, recipient) for name in ("mean", "std")
    )
    assert (mean, std) != (own_mean, own_std)
    expected = (raw_values(donor) - mean) / std * own_std + own_mean  # the same predictions, in other units
    torch.testing.assert_close(raw_values(recipient), expected)
    assert "return_stats_state is absent: the donor's critic predicts in units of its own" in caplog.text


@pytest.mark.parametrize("given", ["collected", "file", "best"])
def test_a_distributional_ppo_takes_what_a_coordinator_collects(coordinator, given, caplog):
    recipient, donor = make(DistributionalPPO, learn=1), make(DistributionalPPO, learn=4, seed=1)
    member = coordinator.initialize_population()[0]
    if given == "file":
        coordinator.save_member_checkpoint(member, donor)
    parameters = coordinator.collect_parameters(donor)
    coordinator.on_member_update_end(member, 1.0, 1, model_parameters=None if given == "file" else parameters)
    path = member.checkpoint_path if given == "file" else coordinator.scheduler.best.checkpoint_path
    recipient.set_parameters(parameters if given == "collected" else path)
    torch.testing.assert_close(raw_values(recipient), raw_values(donor), rtol=0, atol=0)
    assert recipient._n_updates == donor._n_updates
    assert not caplog.records
    for load in (DistributionalPPO.load, MlpLstmPolicy.load):
        with pytest.raises(StoreError, match=r"call its set_parameters\(path\)"):
            load(path)


def test_a_checkpoint_of_another_function_or_of_weights_alone_is_refused(coordinator):
    recipient, donor = make(DistributionalPPO), make(DistributionalPPO, policy_kwargs={"activation_fn": nn.ReLU})
    member = coordinator.initialize_population()[0]
    coordinator.save_member_checkpoint(member, donor)
    with pytest.raises(ConfigError, match="another function"):
        recipient.set_parameters(member.checkpoint_path)
    coordinator.on_member_update_end(
        member, 1.0, 1, model_state_dict=make(DistributionalPPO, seed=2).policy.state_dict()
    )
    with pytest.raises(ConfigError, match=r"missing .*return_stats_state"):
        recipient.set_parameters(member.checkpoint_path)
    recipient.set_parameters(member.checkpoint_path, exact_match=False)


def test_whole_numbers_of_torchs_own_modules_are_settings():
    two, four = (nn.TransformerEncoderLayer(8, heads, 16) for heads in (2, 4))
    with pytest.raises(ConfigError, match="num_heads"):
        check(two, describe(four))
    check(two, describe(nn.TransformerEncoderLayer(8, 2, 16)))


def test_a_checkpoint_of_a_version_without_a_setting_is_of_its_usual_value(coordinator):
    """What the first version with descriptions said of a network; what came later is not there."""
    donor = make(DistributionalPPO, learn=1)
    parameters = coordinator.collect_parameters(donor)
    later = ("recurrent_kwargs", "action_head", "action_head_kwargs", "critic_kwargs")
    for name in later:
        assert parameters["function"].pop(f"policy.{name}") in ("{}", "auto")
    recipient, member = make(DistributionalPPO, seed=1), PopulationMember(0, {})
    coordinator.apply_exploited_parameters(recipient, parameters, member)
    torch.testing.assert_close(raw_values(recipient), raw_values(donor), rtol=0, atol=0)
    del parameters["function"]["policy.twin_reduce"]
    other = make(DistributionalPPO, twin_reduce="mean")
    with pytest.raises(ConfigError, match=r"twin_reduce is min at the donor, mean here"):
        coordinator.apply_exploited_parameters(other, parameters, member)
