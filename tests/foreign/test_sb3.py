"""Grafts of real Stable-Baselines3 and sb3-contrib models, with VecNormalize under VecMonitor."""

import copy
import logging
import pickle
from pathlib import Path

import gymnasium
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor, VecNormalize

from popgraft.errors import ConfigError, StoreError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, normalization
from popgraft.foreign.normalization import layers, read_statistics, write_statistics
from popgraft.hyperparams import HyperparamConfig

from .conftest import same

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

STEPS, ENVS = 8, 2
RATE = HyperparamConfig("learning_rate", min_value=1e-4, max_value=1e-2, is_log_scale=True)
CLIP = HyperparamConfig("clip_range", min_value=0.05, max_value=0.5)
ENTROPY = HyperparamConfig("entropy_coef", min_value=1e-4, max_value=1e-1, is_log_scale=True)
KINDS = {"ppo": (PPO, "MlpPolicy"), "recurrent": (RecurrentPPO, "MlpLstmPolicy")}


def find(model):
    (normalizer,) = layers(model)
    return normalizer


def statistics(normalizer):
    return normalization.statistics([normalizer])


class Drift(gymnasium.Env):
    """Observations of a scale of their own, so that normalisation matters."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (3,), np.float32)
    action_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)

    def __init__(self, scale):
        self.scale = scale

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.state, self.time = self.np_random.normal(size=3), 0
        return self.observe(), {}

    def step(self, action):
        self.state = 0.9 * self.state + 0.3 * self.np_random.normal(size=3) + 0.1 * action
        self.time += 1
        return self.observe(), float(self.state[0]), self.time >= 5, False, {}

    def observe(self):
        return (self.scale * self.state + self.scale).astype(np.float32)


@pytest.fixture
def make(tmp_path):
    """A coordinator and its models, each trained for two rollouts."""

    def build(kind="ppo", strategy="copy", learn=2, pop=2, faults=(), method="perturb", **settings):
        config = PBTAdversarialConfig(
            pbt=PBTConfig(
                population_size=pop,
                perturbation_interval=1,
                hyperparams=[RATE, CLIP, ENTROPY],
                optimizer_exploit_strategy=strategy,
                explore_method=method,
                checkpoint_dir=tmp_path / "checkpoints",
                **settings,
            ),
            graft_faults=list(faults),
        )
        coordinator = PBTTrainingCoordinator(config, seed=1)
        members = coordinator.initialize_population()
        return coordinator, [(member, model(coordinator, member, kind, learn)) for member in members]

    return build


def model(coordinator, member, kind, learn, env=None):
    algorithm, policy = KINDS[kind]
    scale = 1 + 2 * member.member_id
    if env is None:
        env = VecMonitor(VecNormalize(DummyVecEnv([lambda: Drift(scale)] * ENVS)))
    small = {"net_arch": [4]} | ({"lstm_hidden_size": 4} if kind == "recurrent" else {})
    made, adversary = coordinator.create_member_model(
        member, algorithm, policy=policy, env=env, n_steps=STEPS, batch_size=STEPS, n_epochs=2,
        seed=member.member_id, device="cpu", policy_kwargs=small,
    )  # fmt: skip
    assert adversary is None
    made.set_logger(configure(None, []))
    if learn:
        made.learn(learn * STEPS * ENVS)
    return made


def state(model):
    """Everything of a model that an exploit could change."""
    names = (
        "learning_rate",
        "ent_coef",
        "_last_obs",
        "_last_lstm_states",
        "_last_original_obs",
        "_last_episode_starts",
    )
    normalizer = find(model)
    return copy.deepcopy(
        {
            "policy": dict(model.policy.state_dict()),
            "optimizer": model.policy.optimizer.state_dict(),
            "attributes": {name: getattr(model, name, None) for name in names},
            "schedules": (model.lr_schedule(0.3), model.clip_range(0.3)),
            "normalizer": (statistics(normalizer), normalizer.returns, normalizer.old_obs, normalizer.training),
        }
    )


def exploit(coordinator, trained, step=1):
    """The first model becomes a copy of the second, through files."""
    (loser, recipient), (winner, donor) = trained[:2]
    for (member, made), score in (((winner, donor), 1.0), ((loser, recipient), 0.0)):
        parameters = coordinator.collect_parameters(made)
        new, hyperparams, form = coordinator.on_member_update_end(member, score, step, model_parameters=parameters)
    assert loser.exploited_from == winner.member_id
    assert form == "v2_full_parameters"
    coordinator.apply_exploited_parameters(recipient, new, loser, winner)
    return hyperparams


def play(model, raw):
    """Deterministic actions, values and normalised observations along a sequence of raw ones."""
    normalizer, carry, starts, found = find(model), None, np.ones(ENVS, bool), []
    for obs in raw:
        obs = normalizer.normalize_obs(obs)
        action, carry = model.predict(obs, carry, starts, deterministic=True)
        tensor = torch.as_tensor(obs)
        with torch.no_grad():
            if carry is None:
                value = model.policy.predict_values(tensor)
            else:
                states = tuple(torch.as_tensor(part) for part in carry)
                value = model.policy.predict_values(tensor, states, torch.as_tensor(starts, dtype=torch.float32))
        starts = np.zeros(ENVS, bool)
        found.append((obs, action, value))
    return found


def sequence():
    return np.random.default_rng(0).normal(3, 5, size=(6, ENVS, 3)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["reset", "copy", "partial", "adaptive"])
def test_the_recipient_acts_and_values_as_its_donor(make, kind, strategy, caplog):
    coordinator, trained = make(kind, strategy)
    (member, recipient), (_, donor) = trained
    before, objects = (
        state(recipient),
        (recipient.env, find(recipient), find(recipient).obs_rms, find(recipient).ret_rms),
    )
    optimizer, groups = recipient.policy.optimizer, recipient.policy.optimizer.param_groups
    assert not same(play(recipient, sequence()), play(donor, sequence()))
    with caplog.at_level(logging.DEBUG):
        exploit(coordinator, trained)
    assert same(play(recipient, sequence()), play(donor, sequence()))
    assert same(statistics(find(recipient)), statistics(find(donor)))
    assert (recipient.env, find(recipient), find(recipient).obs_rms, find(recipient).ret_rms) == objects
    assert recipient.env.venv is find(recipient)  # VecMonitor, VecNormalize: as deep as before
    assert (recipient.policy.optimizer, recipient.policy.optimizer.param_groups) == (optimizer, groups)
    expected = find(donor).normalize_obs(find(recipient).old_obs)
    assert same(recipient._last_obs, expected)
    assert not same(before["attributes"]["_last_obs"], expected)
    messages = [record.message for record in caplog.records]
    assert (
        f"Member {member.member_id}: VecNormalize stats synchronized from source agent "
        "(prevents LSTM-normalization mismatch)"
    ) in messages
    if kind == "recurrent":
        assert "LSTM states reset to initial after PBT exploit" in messages
        states = [leaf for who in recipient._last_lstm_states for leaf in who]
        assert all(not leaf.any() for leaf in states)
        assert any(leaf.any() for who in before["attributes"]["_last_lstm_states"] for leaf in who)
    else:
        assert "Model does not have LSTM states (reset_lstm_states_to_initial not found)" in messages


@pytest.mark.parametrize("kind", KINDS)
def test_explored_values_are_live_in_the_next_update(make, kind):
    coordinator, trained = make(kind)
    (member, recipient), (winner, _) = trained
    hyperparams = exploit(coordinator, trained)
    assert hyperparams is member.hyperparams
    for name in ("learning_rate", "clip_range", "entropy_coef"):
        assert hyperparams[name] != winner.hyperparams[name]
    recipient.learn(STEPS * ENVS, reset_num_timesteps=False, log_interval=None)
    logged = recipient.logger.name_to_value
    assert logged["train/learning_rate"] == hyperparams["learning_rate"]
    assert logged["train/clip_range"] == hyperparams["clip_range"]
    assert {group["lr"] for group in recipient.policy.optimizer.param_groups} == {hyperparams["learning_rate"]}
    assert recipient.ent_coef == hyperparams["entropy_coef"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_next_update_is_the_donors_bit_for_bit(make, kind):
    # Specification C15: strategy copy, nothing explored, the same data and the same order of minibatches.
    coordinator, trained = make(kind, "copy", method="none")
    (_, recipient), (_, donor) = trained
    exploit(coordinator, trained)
    data = copy.deepcopy(vars(donor.rollout_buffer))
    for made in (recipient, donor):
        vars(made.rollout_buffer).update(copy.deepcopy(data))
        np.random.seed(0)
        made._current_progress_remaining = 0.5
        made.train()
    assert same(state(recipient)["policy"], state(donor)["policy"])
    assert same(state(recipient)["optimizer"], state(donor)["optimizer"])


@pytest.mark.parametrize(
    ("strategy", "kept"), [("reset", None), ("copy", ("exp_avg", "exp_avg_sq", "step")), ("partial", ("exp_avg",))]
)
def test_the_optimizer_follows_its_strategy(make, strategy, kept):
    coordinator, trained = make(strategy=strategy)
    (member, recipient), (_, donor) = trained
    exploit(coordinator, trained)
    found, theirs = recipient.policy.optimizer.state_dict(), donor.policy.optimizer.state_dict()
    assert {group["lr"] for group in found["param_groups"]} == {member.hyperparams["learning_rate"]}
    if kept is None:
        assert found["state"] == {}
    for index, own in found["state"].items():
        old = theirs["state"][index]
        if strategy == "copy":
            assert same(own, old)
        else:  # as after one step along the donor's mean gradient
            mean = old["exp_avg"] / (1 - 0.9 ** float(old["step"]))
            assert float(own["step"]) == 1
            torch.testing.assert_close(own["exp_avg"], 0.1 * mean)
            torch.testing.assert_close(own["exp_avg_sq"], 0.001 * mean.square())
    assert set(found["state"]) == (set() if kept is None else set(theirs["state"]))
    before = copy.deepcopy(theirs)
    recipient.learn(STEPS * ENVS, reset_num_timesteps=False)
    assert same(donor.policy.optimizer.state_dict(), before)  # nothing is shared


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["truncated", "foreign", "malicious"])
def test_a_bad_file_leaves_the_recipient_as_it_was(make, tmp_path, kind, damage):
    coordinator, trained = make(kind)
    (loser, recipient), (winner, donor) = trained
    victim = tmp_path / "executed"
    coordinator.save_member_checkpoint(winner, donor, donor.env)
    coordinator.on_member_update_end(winner, 1.0, 1)
    blob = {
        "truncated": Path(winner.checkpoint_path).read_bytes()[:-200],
        "foreign": pickle.dumps({"weights": [1, 2, 3]}),
        "malicious": pickle.dumps(Malicious(str(victim))),
    }[damage]
    Path(winner.checkpoint_path).write_bytes(blob)
    before = state(recipient)
    with pytest.raises(StoreError):
        coordinator.on_member_update_end(loser, 0.0, 1, model_parameters=coordinator.collect_parameters(recipient))
    assert same(state(recipient), before)
    assert not victim.exists()


@pytest.mark.parametrize("damage", ["truncated", "foreign", "malicious", "pickled", "missing"])
def test_a_bad_file_of_statistics_leaves_the_recipient_as_it_was(make, tmp_path, damage):
    coordinator, trained = make("recurrent")
    (loser, recipient), (winner, donor) = trained
    victim, path = tmp_path / "executed", tmp_path / "stats.pkl"
    write_statistics(path, [find(donor)])
    blob = {
        "truncated": path.read_bytes()[:-50],
        "foreign": pickle.dumps({"obs_rms": 1}),
        "malicious": pickle.dumps(Malicious(str(victim))),
        "pickled": pickle.dumps(statistics(find(donor))),
        "missing": None,
    }[damage]
    path.unlink() if blob is None else path.write_bytes(blob)
    winner.vecnormalize_stats_path = path
    parameters = donor.get_parameters()  # Stable-Baselines3's own names, without statistics
    before = state(recipient)
    with pytest.raises(StoreError, match="VecNormalize"):
        coordinator.apply_exploited_parameters(recipient, parameters, loser, winner)
    assert same(state(recipient), before)
    assert not victim.exists()


def test_statistics_are_read_from_a_file_of_their_own(make):
    coordinator, trained = make()
    (loser, recipient), (winner, donor) = trained
    coordinator.save_member_checkpoint(winner, donor, donor.env)
    assert same(read_statistics(Path(winner.vecnormalize_stats_path)), statistics(find(donor)))
    coordinator.apply_exploited_parameters(recipient, donor.get_parameters(), loser, winner)
    assert same(statistics(find(recipient)), statistics(find(donor)))


def wrong_shape(data):
    data["policy"]["action_net.weight"] = data["policy"]["action_net.weight"][:, :-1]


def wrong_dtype(data):
    data["policy"]["action_net.weight"] = data["policy"]["action_net.weight"].double()


def nan(data):
    data["policy"]["action_net.weight"][0] = torch.nan


def wrong_moment(data):
    data["optimizer_state"]["state"][0]["exp_avg"] = torch.zeros(7, 7)


def other_optimizer(data):
    data["optimizer_state"] = torch.optim.SGD([torch.zeros(1)]).state_dict()


def other_observations(data):
    data["vecnormalize_state"]["obs_rms"]["mean"] = torch.zeros(4)


def no_variance(data):
    data["vecnormalize_state"]["obs_rms"]["var"].neg_()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("policy"),
        lambda data: data["policy"].pop("log_std"),
        lambda data: data["policy"].update(extra=torch.zeros(1)),
        wrong_shape, wrong_dtype, nan, wrong_moment, other_optimizer, other_observations, no_variance,
        lambda data: data["vecnormalize_state"].pop("ret_rms"),
        lambda data: data.update(optimizer_state=[1]),
        lambda data: data.update(optimizer_state={"exp_avg": torch.zeros(1)}),
        lambda data: data.update(vecnormalize_state=[1]),
    ],
)  # fmt: skip
def test_parameters_that_do_not_fit_are_refused_before_anything_changes(make, spoil):
    coordinator, ((loser, recipient), (_, donor)) = make("recurrent")
    parameters = copy.deepcopy(coordinator.collect_parameters(donor))
    spoil(parameters)
    before = state(recipient)
    with pytest.raises(ConfigError):
        coordinator.apply_exploited_parameters(recipient, parameters, loser)
    assert same(state(recipient), before)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["reset", "copy"])
def test_a_step_that_fails_undoes_all_before_it(make, kind, strategy):
    coordinator, ((loser, recipient), (_, donor)) = make(kind, strategy)

    def fail():
        recipient._last_lstm_states = "half done"
        raise RuntimeError("the last step")

    recipient.reset_lstm_states_to_initial = fail
    loser.hyperparams = {"learning_rate": 1e-3, "clip_range": 0.3, "entropy_coef": 0.05}
    if kind == "ppo":
        recipient._last_lstm_states = None
    before, objects = state(recipient), (recipient.policy.optimizer, recipient.lr_schedule, recipient._last_obs)
    with pytest.raises(RuntimeError, match="the last step"):
        coordinator.apply_exploited_parameters(recipient, coordinator.collect_parameters(donor), loser)
    assert same(state(recipient), before)
    assert (recipient.policy.optimizer, recipient.lr_schedule) == objects[:2]
    assert recipient._last_obs is objects[2]
    del recipient.reset_lstm_states_to_initial
    recipient.learn(STEPS * ENVS, reset_num_timesteps=False)


def test_none_is_a_silent_no_op(make, caplog):
    coordinator, ((loser, recipient), _) = make()
    before = state(recipient)
    caplog.clear()
    coordinator.apply_exploited_parameters(recipient, None, loser)
    assert same(state(recipient), before)
    assert not caplog.records


@pytest.mark.parametrize(
    ("fault", "part"),
    [
        ("keep_recurrent_state", lambda model: model._last_lstm_states),
        ("forget_normalizer", lambda model: statistics(find(model))),
        ("keep_optimizer", lambda model: model.policy.optimizer.state_dict()["state"]),
    ],
)
def test_a_fault_spares_its_part_alone_and_loudly(make, caplog, fault, part):
    found = {}
    for faults in ((), (fault,)):
        coordinator, trained = make("recurrent", faults=faults)
        before = copy.deepcopy(part(trained[0][1]))
        caplog.clear()
        exploit(coordinator, trained)
        assert same(part(trained[0][1]), before) is bool(faults)
        assert any(fault in record.message for record in caplog.records if record.levelno >= logging.WARNING) is bool(
            faults
        )
        found[bool(faults)] = trained[0][1].policy.state_dict()
    assert same(found[True], found[False])


def test_an_overwritten_learning_rate_is_the_donors(make):
    coordinator, trained = make(faults=["overwrite_learning_rate"])
    (loser, recipient), (winner, _) = trained
    exploit(coordinator, trained)
    assert loser.hyperparams["learning_rate"] != winner.hyperparams["learning_rate"]
    assert recipient.policy.optimizer.param_groups[0]["lr"] == winner.hyperparams["learning_rate"]


def test_older_code_that_loads_by_itself_keeps_working(make):
    coordinator, ((loser, recipient), (winner, donor)) = make()
    coordinator.on_member_update_end(winner, 1.0, 1, model_parameters=donor.get_parameters())
    new, *_ = coordinator.on_member_update_end(loser, 0.0, 1, model_parameters=recipient.get_parameters())
    recipient.set_parameters(new)
    assert same(state(recipient)["policy"], state(donor)["policy"])
    recipient.policy.load_state_dict(new["policy"])


def test_a_saved_model_can_be_a_donor(make, tmp_path, caplog):
    coordinator, ((loser, recipient), (winner, donor)) = make()
    donor.save(tmp_path / "donor.zip")
    winner.checkpoint_path, winner.vecnormalize_stats_path = tmp_path / "donor.zip", tmp_path / "stats.pt"
    write_statistics(winner.vecnormalize_stats_path, [find(donor)])
    coordinator.on_member_update_end(winner, 1.0, 1)
    new, *_ = coordinator.on_member_update_end(loser, 0.0, 1)
    coordinator.apply_exploited_parameters(recipient, new, loser)
    assert same(play(recipient, sequence()), play(donor, sequence()))
    assert "vgs_state is absent" in caplog.text


def test_weights_only_arrive_with_a_warning(make, caplog):
    coordinator, ((loser, recipient), (winner, donor)) = make()
    before = state(recipient)
    coordinator.on_member_update_end(winner, 1.0, 1, model_state_dict=donor.policy.state_dict())
    new, _, form = coordinator.on_member_update_end(loser, 0.0, 1)
    assert form == "v1_policy_only"
    coordinator.apply_exploited_parameters(recipient, new, loser, winner)
    assert same(state(recipient)["policy"], state(donor)["policy"])
    assert same(state(recipient)["optimizer"]["state"], before["optimizer"]["state"])
    for text in ("VGS and optimizer state are not transferred", "VecNormalize statistics are absent"):
        assert text in caplog.text


def test_weights_that_are_not_finite_fail_a_saved_member(make):
    coordinator, ((loser, recipient), (winner, donor)) = make()
    coordinator.save_member_checkpoint(winner, donor)
    coordinator.on_member_update_end(winner, 0.0, 1)
    with torch.no_grad():
        recipient.policy.log_std.fill_(torch.nan)
    coordinator.save_member_checkpoint(loser, recipient)
    new, *_ = coordinator.on_member_update_end(loser, 100.0, 1)
    assert loser.exploited_from == winner.member_id
    coordinator.apply_exploited_parameters(recipient, new, loser, winner)
    assert same(play(recipient, sequence()), play(donor, sequence()))


def test_a_wrapper_that_changes_observations_above_is_named(make, caplog):
    coordinator, ((loser, _), (winner, _)) = make(learn=0)
    models = [
        model(coordinator, member, "ppo", 1, VecFrameStack(VecNormalize(DummyVecEnv([lambda s=s: Drift(s)] * ENVS)), 2))
        for s, member in enumerate((loser, winner))
    ]
    before = models[0]._last_obs
    coordinator.apply_exploited_parameters(models[0], coordinator.collect_parameters(models[1]), loser)
    assert models[0]._last_obs is before
    assert "put VecNormalize outermost" in caplog.text
    assert same(statistics(find(models[0])), statistics(find(models[1])))


def test_dictionaries_of_observations_are_synchronized(make):
    class Keyed(Drift):
        observation_space = gymnasium.spaces.Dict({"a": Drift.observation_space, "b": gymnasium.spaces.Discrete(2)})

        def observe(self):
            return {"a": super().observe(), "b": 1}

    coordinator, _ = make(learn=0)
    models = []
    for member in coordinator.scheduler.population:
        scale = 1.0 + member.member_id
        env = VecMonitor(VecNormalize(DummyVecEnv([lambda s=scale: Keyed(s)] * ENVS), norm_obs_keys=["a"]))
        made, _ = coordinator.create_member_model(
            member, PPO, policy="MultiInputPolicy", env=env, n_steps=STEPS, batch_size=STEPS, device="cpu"
        )
        models.append(made.learn(STEPS * ENVS))
    coordinator.apply_exploited_parameters(
        models[0], coordinator.collect_parameters(models[1]), coordinator.scheduler.population[0]
    )
    assert same(statistics(find(models[0])), statistics(find(models[1])))
    assert same(models[0]._last_obs, find(models[1]).normalize_obs(find(models[0]).old_obs))


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_population_of_real_models_exploits_twenty_times(make, kind):
    coordinator, trained = make(kind, pop=4, learn=0, truncation_ratio=0.5, ready_percentage=1.0)
    scores = np.random.default_rng(0)
    exploits, step, lineage = 0, 0, []
    while exploits < 20:
        step += 1
        for member, made in trained:
            coordinator.on_member_update_start(member)
            made.learn(STEPS * ENVS, reset_num_timesteps=step == 1)
            parameters = coordinator.collect_parameters(made)
            reported = {other.member_id: other.performance for other, _ in trained}
            member.exploited_from = None
            new, hyperparams, _ = coordinator.on_member_update_end(
                member, float(scores.normal()), step, model_parameters=parameters
            )
            donor = member.exploited_from
            assert (new is None) is (donor is None)
            coordinator.apply_exploited_parameters(made, new, member)
            if donor is None:
                continue
            exploits += 1
            lineage.append((step, donor, member.member_id))
            assert member.performance == reported[donor]
            kept = torch.load(coordinator.scheduler.population[donor].checkpoint_path, weights_only=True)
            assert same(state(made)["policy"], dict(kept["data"]["policy"]))
            assert made.policy.optimizer.param_groups[0]["lr"] == hyperparams["learning_rate"]
    assert coordinator.get_stats()["pbt/exploitation_count"] == exploits == len(lineage)
    assert all(donor != member for _, donor, member in lineage)
    assert len({donor for _, donor, _ in lineage}) > 1
