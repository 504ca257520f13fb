"""Normalisation of observations and rewards at a graft: every layer of it arrives, or the graft is refused."""

import copy
import functools
from pathlib import Path

import gymnasium
import numpy as np
import pytest
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnvWrapper, VecNormalize

from popgraft import DistributionalPPO
from popgraft.errors import ConfigError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, PopulationMember
from popgraft.foreign.normalization import read_statistics
from popgraft.hyperparams import HyperparamConfig

pytestmark = pytest.mark.usefixtures("global_generators_come_back")


class Drift(gymnasium.Env):
    """Numbers of a scale of their own."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, scale=1.0):
        self.scale, self.time = scale, 0

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.time = 0
        return self.observe(), {}

    def step(self, action):
        self.time += 1
        return self.observe(), self.scale * float(self.np_random.normal()), self.time >= 5, False, {}

    def observe(self):
        return self.np_random.normal(self.scale, self.scale, 2).astype(np.float32)


def vector(scale=1.0, wrap=lambda env: env, kind=DummyVecEnv):
    return kind([lambda: wrap(Drift(scale))] * 2)


def observations(env):
    return VecNormalize(env, norm_reward=False)


def rewards(env):
    return VecNormalize(env, norm_obs=False)


class Plain(VecEnvWrapper):
    """A wrapper that changes nothing."""

    def reset(self):
        return self.venv.reset()

    def step_wait(self):
        return self.venv.step_wait()


STACKS = {
    "observations": observations,
    "beneath another": lambda env: Plain(observations(env)),
    "observations inside": lambda env: rewards(Plain(observations(env))),
    "rewards inside": lambda env: observations(rewards(env)),
    "observations twice": lambda env: VecNormalize(VecNormalize(env)),
}


def ppo(env, seed=0, learn=2):
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=8, n_epochs=1, seed=seed, policy_kwargs={"net_arch": [4]})
    return model.learn(16 * learn) if learn else model


def layers(env):
    found = []
    while isinstance(env, VecEnvWrapper):
        found += [env] if isinstance(env, VecNormalize) else []
        env = env.venv
    return found


def moments(env):
    running = [getattr(layer, name, None) for layer in layers(env) for name in ("obs_rms", "ret_rms")]
    return [(each.mean.tolist(), each.var.tolist(), each.count) for each in running if each is not None]


@pytest.fixture
def coordinator(tmp_path):
    pbt = PBTConfig(population_size=2, perturbation_interval=1, checkpoint_dir=tmp_path)
    return PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt), seed=0)


def exploit(coordinator, recipient, donor, saved=False):
    """The first member becomes a copy of the second, through a file."""
    loser, winner = coordinator.initialize_population()
    for member, model, score in ((winner, donor, 1.0), (loser, recipient, 0.0)):
        if saved:
            coordinator.save_member_checkpoint(member, model)
        parameters = None if saved else coordinator.collect_parameters(model)
        new, *_ = coordinator.on_member_update_end(member, score, 1, model_parameters=parameters)
    coordinator.apply_exploited_parameters(recipient, new, loser)


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("saved", [False, True])
def test_every_layer_arrives_in_place(coordinator, stack, saved):
    recipient, donor = (ppo(STACKS[stack](vector(scale))) for scale in (1.0, 5.0))
    objects, running = layers(recipient.env), [layer.returns for layer in layers(recipient.env)]
    assert moments(recipient.env) != moments(donor.env)
    exploit(coordinator, recipient, donor, saved)
    assert moments(recipient.env) == moments(donor.env)
    assert layers(recipient.env) == objects
    assert all(layer.returns is own for layer, own in zip(layers(recipient.env), running, strict=True))


@pytest.mark.parametrize("stack", ["observations", "observations inside", "observations twice"])
def test_the_next_observation_is_normalised_anew_through_all_layers(coordinator, stack):
    env, other = (STACKS[stack](vector(scale)) for scale in (1.0, 5.0))
    recipient, donor = ppo(env), ppo(other)
    raw = layers(env)[-1].old_obs.copy()
    exploit(coordinator, recipient, donor)
    expected = raw.astype(np.float64)
    for layer in reversed(layers(other)):  # from the innermost outwards, by the donor's statistics
        if layer.norm_obs:
            rms = layer.obs_rms
            expected = np.clip((expected - rms.mean) / np.sqrt(rms.var + layer.epsilon), -10, 10)
    np.testing.assert_allclose(recipient._last_obs, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("recipient", "donor", "words"),
    [
        (lambda env: env, observations, "has none; wrap its environments"),
        (observations, lambda env: env, "expect observations as they are"),
        (observations, STACKS["rewards inside"], "2 VecNormalize in its stack, but the recipient has 1"),
        (STACKS["rewards inside"], STACKS["observations inside"], "give all members the same VecNormalize"),
    ],
)
@pytest.mark.parametrize("saved", [False, True])
def test_other_layers_are_refused_and_nothing_changes(coordinator, recipient, donor, words, saved):
    recipient, donor = ppo(recipient(vector())), ppo(donor(vector(5.0)))
    before = copy.deepcopy((recipient.policy.state_dict(), moments(recipient.env)))
    with pytest.raises(ConfigError, match=words):
        exploit(coordinator, recipient, donor, saved)
    after = recipient.policy.state_dict()
    assert all(after[name].equal(value) for name, value in before[0].items())
    assert moments(recipient.env) == before[1]


@pytest.mark.parametrize("kind", [PPO, RecurrentPPO, DistributionalPPO])
def test_a_loaded_model_without_environments_is_given_them_first(coordinator, tmp_path, kind):
    policy = "MlpPolicy" if kind is PPO else "MlpLstmPolicy"
    recipient, donor = (
        kind(policy, observations(vector(scale)), n_steps=8, batch_size=8, n_epochs=1).learn(16) for scale in (1.0, 5.0)
    )
    recipient.save(tmp_path / "model.zip")
    recipient = kind.load(tmp_path / "model.zip")
    parameters = coordinator.collect_parameters(donor)
    with pytest.raises(ConfigError, match="env=None has none; give it one with set_env"):
        coordinator.apply_exploited_parameters(recipient, parameters, PopulationMember(0, {}))
    recipient.set_env(observations(vector()))
    coordinator.apply_exploited_parameters(recipient, parameters, PopulationMember(0, {}))
    assert moments(recipient.env) == moments(donor.env)


@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward"])
@pytest.mark.parametrize("stack", [lambda env: env, Plain])
def test_statistics_inside_the_environments_are_refused_by_name(coordinator, name, stack):
    def wrap(env):
        return gymnasium.wrappers.TimeLimit(getattr(gymnasium.wrappers, name)(env), 5)

    model, plain = ppo(stack(vector(wrap=wrap)), learn=0), ppo(stack(vector()), learn=0)
    for refused in (
        lambda: coordinator.collect_parameters(model),
        lambda: coordinator.save_member_checkpoint(PopulationMember(0, {}), model),
        lambda: coordinator.apply_exploited_parameters(model, plain.get_parameters(), PopulationMember(0, {})),
    ):
        with pytest.raises(ConfigError, match=rf"wrapped in {name}.*VecNormalize"):
            refused()
    assert coordinator.collect_parameters(plain)


def in_observations(env):
    return gymnasium.wrappers.NormalizeObservation(env)


def test_environments_of_other_processes_are_asked(coordinator):
    kind = functools.partial(SubprocVecEnv, start_method="fork")
    env, plain = vector(wrap=in_observations, kind=kind), vector(kind=kind)
    try:
        with pytest.raises(ConfigError, match="wrapped in NormalizeObservation"):
            coordinator.collect_parameters(ppo(env, learn=0))
        model = ppo(plain, learn=0)
        assert coordinator.collect_parameters(model)
    finally:
        env.close()
        plain.close()
    assert coordinator.collect_parameters(model)  # nobody answers any more


@pytest.mark.parametrize("kind", [PPO, DistributionalPPO])
def test_an_explored_discount_reaches_the_normalisation_of_rewards(coordinator, kind):
    space = HyperparamConfig("gamma", min_value=0.9, max_value=0.999)
    pbt = coordinator.config.pbt.model_copy(update={"hyperparams": [space]})
    explorer = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt), seed=0)
    members = explorer.initialize_population()
    recipient, donor = (
        explorer.create_member_model(
            member, kind, policy="MlpPolicy" if kind is PPO else "MlpLstmPolicy",
            env=STACKS["observations inside"](vector()), n_steps=8, batch_size=8, n_epochs=1,
        )[0]
        for member in members
    )  # fmt: skip
    for member, model in zip(members, (recipient, donor), strict=True):
        assert {layer.gamma for layer in layers(model.env)} == {member.hyperparams["gamma"]}
    before = [layer.gamma for layer in layers(recipient.env)]
    recipient.reset_lstm_states_to_initial = lambda: 1 / 0  # the last step
    parameters, member = explorer.collect_parameters(donor), PopulationMember(0, {"gamma": 0.95})
    with pytest.raises(ZeroDivisionError):
        explorer.apply_exploited_parameters(recipient, parameters, member)
    assert [layer.gamma for layer in layers(recipient.env)] == before
    del recipient.reset_lstm_states_to_initial
    explorer.apply_exploited_parameters(recipient, parameters, member)
    assert [layer.gamma for layer in layers(recipient.env)] == [0.95, 0.95]


def test_statistics_of_an_heir_stay_when_its_donor_saves_again(coordinator):
    recipient, donor = ppo(observations(vector())), ppo(observations(vector(5.0)))
    loser, winner = coordinator.initialize_population()
    for member, model, score in ((winner, donor, 1.0), (loser, recipient, 0.0)):
        coordinator.save_member_checkpoint(member, model)  # statistics in a file of their own, parameters without them
        new, *_ = coordinator.on_member_update_end(member, score, 1, model_parameters=model.get_parameters())
    coordinator.apply_exploited_parameters(recipient, new, loser)
    inherited = moments(donor.env)
    assert moments(recipient.env) == inherited
    donor.learn(16, reset_num_timesteps=False)
    coordinator.save_member_checkpoint(winner, donor)
    assert moments(donor.env) != inherited
    (layer,) = layers(recipient.env)
    state = read_statistics(Path(loser.vecnormalize_stats_path))
    assert state["obs_rms"]["mean"].tolist() == layer.obs_rms.mean.tolist()
    assert state["obs_rms"]["count"] == layer.obs_rms.count
    assert loser.vecnormalize_stats_path != winner.vecnormalize_stats_path
