"""What another model takes over: complete, strict, all or nothing."""

import copy

import numpy as np
import pytest
import torch
from stable_baselines3.common.logger import configure

from popgraft import HyperparamConfig, tree
from popgraft.errors import ConfigError, PopgraftError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, checkpoint

FULL = {"vgs": True, "kl_penalty": True, "target_kl": 0.01, "normalize_obs": True, "optimizer": "upgdw"}
VGS_KEYS = {
    "step_count",
    "grad_mean_ema",
    "grad_var_ema",
    "grad_norm_ema",
    "grad_max_ema",
    "param_grad_mean_ema",
    "param_grad_sq_ema",
    "vgs_version",
}
KL_KEYS = {"kl_beta", "kl_err_int", "kl_err_prev", "kl_penalty_error", "kl_pid_p", "kl_pid_i", "kl_pid_d"}


def state(model):
    return {name: leaf.clone() for name, leaf in tree.items(model.member)}


def test_names(make):
    model = make(**FULL).learn(64)
    parameters = model.get_parameters()
    parts = {"policy", "kl_penalty_state", "vgs_state", "return_stats_state", "schedule_state", "age"}
    assert set(parameters) == parts
    assert set(model.get_parameters(include_optimizer=True)) - set(parameters) == {"optimizer_state"}
    assert set(parameters["vgs_state"]) == VGS_KEYS
    assert set(parameters["kl_penalty_state"]) == KL_KEYS
    assert all(isinstance(value, torch.Tensor) and value.shape[:1] != (1,) for value in parameters["policy"].values())


def test_everything_is_taken_over(make, played):
    donor, recipient = (make(played(), seed=seed, **FULL) for seed in (1, 2))
    donor.learn(192)
    recipient.learn(64)
    donor.member.optimizer.skipped.fill_(3)
    before = state(recipient)
    blob = checkpoint.encode(checkpoint.V2, donor.get_parameters(include_optimizer=True))
    assert b"popgraft" not in blob
    recipient.set_parameters(copy.deepcopy(donor.get_parameters(include_optimizer=True)))
    ours, theirs = state(recipient), state(donor)
    assert theirs["age"] != before["age"]
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert not any(part.any() for memory in recipient._last_lstm_states for part in memory)
    observation = np.ones((4, 3), np.float32)
    np.testing.assert_array_equal(*(m.predict(observation, deterministic=True)[0] for m in (donor, recipient)))


def test_the_optimizer_stays_where_it_is_not_given(make, played):
    donor, recipient = (make(played(), seed=seed).learn(64) for seed in (1, 2))
    before = recipient.member.optimizer.averages["exp_avg"].clone()
    recipient.set_parameters(donor.get_parameters())
    assert torch.equal(recipient.member.optimizer.averages["exp_avg"], before)


def broken(parameters, how):
    parameters = copy.deepcopy(parameters)
    match how:
        case "missing part":
            del parameters["vgs_state"]
        case "unknown part":
            parameters["extra"] = {}
        case "missing weight":
            parameters["policy"].popitem()
        case "left-over weight":
            parameters["policy"]["more"] = torch.zeros(1)
        case "other shape":
            parameters["policy"]["head.linear.bias"] = torch.zeros(7)
        case "controller":
            parameters["kl_penalty_state"]["kl_beta"] = float("nan")
        case "statistics":
            parameters["return_stats_state"]["std"] = "much"
        case "vgs":
            parameters["vgs_state"]["vgs_version"] = 99
        case "optimizer":
            parameters["optimizer_state"]["state"][0]["exp_avg"] = torch.zeros(3, 3, 3)
    return parameters


@pytest.mark.parametrize(
    "how",
    [
        "missing part",
        "unknown part",
        "missing weight",
        "left-over weight",
        "other shape",
        "controller",
        "statistics",
        "vgs",
        "optimizer",
    ],
)
def test_all_or_nothing(how, make, played):
    donor, recipient = (make(played(), seed=seed, vgs=True).learn(64) for seed in (1, 2))
    before = state(recipient)
    optimizer = copy.deepcopy(recipient.policy.optimizer.state_dict())
    with pytest.raises(PopgraftError):
        recipient.set_parameters(broken(donor.get_parameters(include_optimizer=True), how))
    after = state(recipient)
    assert all(torch.equal(before[name], after[name]) for name in before)
    for own, old in zip(
        recipient.policy.optimizer.state_dict()["state"].values(), optimizer["state"].values(), strict=True
    ):
        assert all(torch.equal(own[name], old[name]) for name in old)


def test_a_part_alone(make, played):
    donor, recipient = (make(played(), seed=seed).learn(64) for seed in (1, 2))
    with pytest.raises(ConfigError, match="missing"):
        recipient.set_parameters({"policy": donor.policy.state_dict()})
    recipient.set_parameters({"policy": donor.policy.state_dict()}, exact_match=False)
    assert torch.equal(recipient.member.params, donor.member.params)
    recipient.learn(64, reset_num_timesteps=False)
    assert not torch.equal(recipient.member.params, donor.member.params)


@pytest.mark.parametrize("strategy", ["reset", "copy"])
def test_a_coordinator_transplants_it(strategy, make, played, tmp_path):
    donor, recipient = (make(played(), seed=seed, vgs=True).learn(128) for seed in (1, 2))
    spaces = [HyperparamConfig("learning_rate", min_value=1e-4, max_value=1.0)]
    pbt = PBTConfig(population_size=2, hyperparams=spaces, checkpoint_dir=tmp_path, optimizer_exploit_strategy=strategy)
    coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt), seed=0)
    _, member = coordinator.initialize_population({"learning_rate": 0.01})
    coordinator.apply_exploited_parameters(recipient, coordinator.collect_parameters(donor), member)
    ours, theirs = state(recipient), state(donor)
    inherited = [name for name in ours if name.startswith(("params", "vgs", "returns", "kl"))]
    assert all(torch.equal(ours[name], theirs[name]) for name in inherited)
    momentum = "optimizer.averages.exp_avg"
    recipient.policy.optimizer.pull()
    after = state(recipient)[momentum]
    assert torch.equal(after, theirs[momentum]) if strategy == "copy" else not after.any()
    assert not any(part.any() for memory in recipient._last_lstm_states for part in memory)
    recipient.learn(64, reset_num_timesteps=False)
    assert float(recipient.member.hyperparams["learning_rate"]) == pytest.approx(0.01)


@pytest.mark.parametrize(
    "ramp",
    [
        pytest.param({"adversary": {"enabled": True, "warmup_updates": 4}}, marks=pytest.mark.slow),
        {"cvar_weight": 0.5, "cvar_start": 4},
    ],
)
def test_warm_ups_go_on_where_the_donors_are(make, played, ramp):
    donor, recipient = (make(played(), seed=seed, **ramp) for seed in (1, 2))
    donor.learn(64 * 6)
    recipient.set_parameters(donor.get_parameters(include_optimizer=True))
    for model in (donor, recipient):  # the same steps with the same noise
        model.rollout_buffer, model.seat = copy.deepcopy(donor.rollout_buffer), copy.deepcopy(donor.seat)
        model.generators[0].manual_seed(5)
        model._logger = configure(None, [])
        model.train()
    ours, theirs = state(recipient), state(donor)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("age", [{}, {"updates": -1, "skipped_steps": 0}, {"updates": 1.5, "skipped_steps": 0}])
def test_an_age_that_is_no_count_is_refused(make, age):
    model = make().learn(64)
    before = state(model)
    with pytest.raises(ConfigError, match="age="):
        model.set_parameters({**model.get_parameters(), "age": age})
    assert all(torch.equal(leaf, before[name]) for name, leaf in state(model).items())


def test_a_graft_that_fails_late_leaves_every_leaf_and_the_record_alone(make, played, tmp_path, monkeypatch):
    space = HyperparamConfig("learning_rate", min_value=1e-4, max_value=1e-2)
    pbt = PBTConfig(
        population_size=2, hyperparams=[space], perturbation_interval=1, checkpoint_dir=tmp_path,
        optimizer_exploit_strategy="copy",
    )  # fmt: skip
    coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt), seed=0)
    members = coordinator.initialize_population()
    models = [make(played(), seed=seed, **FULL).learn(64 * (3 - seed)) for seed in (0, 1)]
    coordinator.on_member_update_end(members[0], 1.0, 1, model_parameters=coordinator.collect_parameters(models[0]))
    parameters = coordinator.collect_parameters(models[1])
    coordinator.scheduler.update_performance(members[1], 0.0, 1, parameters)
    record = copy.deepcopy(members[1])
    new, *_ = coordinator.on_member_update_end(members[1], 0.0, 1, model_parameters=parameters)
    record.history = members[1].history
    assert members[1].exploited_from == 0
    before = state(models[1])

    def broken():
        raise RuntimeError("the last step")

    monkeypatch.setattr(models[1], "reset_lstm_states_to_initial", broken)
    with pytest.raises(RuntimeError, match="the last step"):
        coordinator.apply_exploited_parameters(models[1], new, members[1])
    assert all(torch.equal(leaf, before[name]) for name, leaf in state(models[1]).items())
    stats = coordinator.get_stats()
    assert (stats["pbt/exploitation_count"], stats["pbt/exploration_count"]) == (0, 0)
    assert torch.load(members[1].checkpoint_path, weights_only=True)["member_id"] == 1
    record.checkpoint_path, record.reference_step = str(tmp_path / "member_1_reported.pt"), 1
    assert members[1] == record
