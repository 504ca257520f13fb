"""A whole run of models that are trained elsewhere is stopped and goes on exactly."""

import hashlib
import json
import os
import pickle
import shutil

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3 import PPO, SAC
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from popgraft import DistributionalPPO, HyperparamConfig, tree
from popgraft.errors import ConfigError, StoreError
from popgraft.foreign import PBTAdversarialConfig, PBTConfig, PBTTrainingCoordinator, SAPPOConfig
from popgraft.foreign.member import PopulationMember
from popgraft.foreign.resume import restoring, snapshot

pytestmark = pytest.mark.usefixtures("global_generators_come_back")

STEPS, ENVS, POP = 16, 2, 4
KINDS = {
    PPO: ("MlpPolicy", {"net_arch": [8]}),
    RecurrentPPO: ("MlpLstmPolicy", {"net_arch": [8], "lstm_hidden_size": 8}),
    DistributionalPPO: ("MlpLstmPolicy", {"net_arch": [8], "lstm_hidden_size": 8}),
}
SPACES = [
    HyperparamConfig("learning_rate", min_value=1e-4, max_value=1e-2, is_log_scale=True),
    HyperparamConfig("robust_kl_coef", min_value=0.1, max_value=10.0, is_log_scale=True),
]
SCORES = [[1.0, 2.0, 3.0, 9.0], [8.0, 2.0, 3.0, 0.5], [0.0, 7.0, 3.0, 9.0]]


def coordinator_of(folder, seed=0, size=POP):
    pbt = PBTConfig(
        population_size=size,
        perturbation_interval=1,
        hyperparams=SPACES,
        truncation_ratio=0.25,
        optimizer_exploit_strategy="copy",
        checkpoint_dir=folder,
    )
    adversarial = SAPPOConfig(enabled=True, warmup_updates=1, adversarial_ratio=0.6)
    return PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt, adversarial=adversarial), seed)


def builder(coordinator, kind, **settings):
    policy, arguments = KINDS[kind]

    def build(member):
        env = make_vec_env("CartPole-v1", ENVS, seed=member.member_id)
        env = VecNormalize(env, norm_reward=kind is not DistributionalPPO)
        model, _ = coordinator.create_member_model(
            member, kind, policy=policy, env=env, seed=member.member_id, device="cpu",
            **{"n_steps": STEPS, "batch_size": STEPS, "n_epochs": 1, "policy_kwargs": arguments, "clip_range": lambda left: 0.1 + 0.1 * left} | settings,
        )  # fmt: skip
        return model

    return build


def play(coordinator, models, number):
    """One round; what a process draws from global generators is set anew in every round."""
    for i, (member, model) in enumerate(zip(coordinator.scheduler.population, models, strict=True)):
        coordinator.on_member_update_start(member)
        model.env.seed(100 * number + i)
        model._last_obs = None
        np.random.seed(100 * number + i)
        torch.manual_seed(100 * number + i)
        model.learn(STEPS * ENVS, reset_num_timesteps=False)
        parameters = coordinator.collect_parameters(model)
        new, *_ = coordinator.on_member_update_end(member, SCORES[number][i], number + 1, model_parameters=parameters)
        coordinator.apply_exploited_parameters(model, new, member)
        model._last_obs = None


def leaves(value, path=""):
    if isinstance(value, dict):
        for name, part in value.items():
            yield from leaves(part, f"{path}.{name}")
    elif isinstance(value, (list, tuple)):
        for place, part in enumerate(value):
            yield from leaves(part, f"{path}.{place}")
    else:
        yield path, value.tolist() if isinstance(value, (torch.Tensor, np.ndarray)) else value


def everything(coordinator, models):
    """All numbers of a run, by path, without the names of files."""
    state = coordinator.state_dict()
    state.pop("files")
    found = {"coordinator": state}
    for i, model in enumerate(models):
        found[f"model {i}"] = {
            "parameters": coordinator.collect_parameters(model),
            "member": dict(tree.items(model.member)) if isinstance(model, DistributionalPPO) else {},
            "plain": {k: v for k, v in vars(model).items() if isinstance(v, (int, float, str)) and k != "start_time"},
            "now": [model.lr_schedule(0.5), model.clip_range(model._current_progress_remaining)],
            "window": model.ep_info_buffer.maxlen,
            "episodes": [{k: v for k, v in info.items() if k != "t"} for info in model.ep_info_buffer],
            "generators": [generator.get_state() for generator in getattr(model, "generators", [])],
            "normaliser": [model.env.obs_rms.mean, model.env.obs_rms.var, model.env.ret_rms.var, model.env.returns],
        }
    return {path: value for path, value in leaves(found) if not path.endswith("_path")}


@pytest.mark.parametrize("kind", [PPO, *(pytest.param(kind, marks=pytest.mark.slow) for kind in list(KINDS)[1:])])
def test_a_run_that_was_stopped_ends_as_one_that_was_not(kind, tmp_path):
    one = coordinator_of(tmp_path / "one")
    one.initialize_population()
    models = [builder(one, kind)(member) for member in one.scheduler.population]
    play(one, models, 0)
    one.save(tmp_path / "save", models)
    for number in (1, 2):
        play(one, models, number)
    other = coordinator_of(tmp_path / "other", seed=5)
    resumed = other.load(tmp_path / "save", builder(other, kind))
    for number in (1, 2):
        play(other, resumed, number)
    expected, found = everything(one, models), everything(other, resumed)
    assert [path for path in expected if str(found.get(path)) != str(expected[path])] == []
    assert set(found) == set(expected)
    assert one.scheduler.exploitation_count >= 3
    for file in (tmp_path / "one").iterdir():
        assert (tmp_path / "other" / file.name).is_file()


@pytest.fixture
def saved(tmp_path):
    """A saved run of two PPO, its coordinator and its models."""
    coordinator = coordinator_of(tmp_path / "one", size=2)
    coordinator.initialize_population()
    models = [builder(coordinator, PPO)(member) for member in coordinator.scheduler.population]
    for i, (member, model) in enumerate(zip(coordinator.scheduler.population, models, strict=True)):
        model.learn(STEPS * ENVS)
        parameters = coordinator.collect_parameters(model)
        coordinator.on_member_update_end(member, float(i), 1, model_parameters=parameters)
    coordinator.save(tmp_path / "save", models)
    return coordinator, models


def test_models_that_exist_go_back(saved, tmp_path):
    coordinator, models = saved
    before = everything(coordinator, models)
    files = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    for member, model in zip(coordinator.scheduler.population, models, strict=True):
        coordinator.on_member_update_start(member)
        model.learn(STEPS * ENVS, reset_num_timesteps=False)
        parameters = coordinator.collect_parameters(model)
        new, *_ = coordinator.on_member_update_end(member, -1.0, 2, model_parameters=parameters)
        coordinator.apply_exploited_parameters(model, new, member)
    assert everything(coordinator, models) != before
    assert coordinator.load(tmp_path / "save", models) == models
    after = everything(coordinator, models)
    assert [path for path in before if str(after.get(path)) != str(before[path])] == []
    assert {name: (tmp_path / "one" / name).read_bytes() for name in files} == files


def test_a_save_replaces_the_one_before_and_nothing_else(saved, tmp_path):
    coordinator, models = saved
    models[0].learn(STEPS * ENVS)
    coordinator.save(tmp_path / "save", models)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "save"]
    coordinator.load(tmp_path / "save", models)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("three years")
    with pytest.raises(StoreError, match="holds something else"):
        coordinator.save(tmp_path / "mine", models)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "three years"
    os.rename(tmp_path / "save", tmp_path / ".save.old")  # as after a crash between the two renamings
    coordinator.load(tmp_path / "save", models)


def test_a_member_that_has_failed_goes_on_as_failed(saved, tmp_path):
    coordinator, models = saved
    with torch.no_grad():
        models[0].policy.action_net.bias.fill_(torch.nan)
    coordinator.save(tmp_path / "save", models)
    other = coordinator_of(tmp_path / "other", size=2)
    assert other.load(tmp_path / "save", builder(other, PPO))[0].policy.action_net.bias.isnan().all()


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def flip(folder):
    blob = bytearray((folder / "model_1.pt").read_bytes())
    blob[len(blob) // 2] ^= 1
    (folder / "model_1.pt").write_bytes(blob)


def other_format(folder):
    (folder / "run.json").write_text(json.dumps({"format": "something else"}))


def escape(folder):
    head = json.loads((folder / "run.json").read_text())
    head["files"] = dict.fromkeys(head["files"], "../../escaped.pt")
    (folder / "run.json").write_text(json.dumps(head))


@pytest.mark.parametrize(
    "spoil",
    [
        flip, other_format, escape, shutil.rmtree,
        lambda folder: (folder / "run.json").write_text("{"),
        lambda folder: (folder / "model_0.pt").unlink(),
    ],
)  # fmt: skip
def test_a_damaged_folder_changes_nothing(saved, tmp_path, spoil):
    coordinator, models = saved
    before = everything(coordinator, models)
    spoil(tmp_path / "save")
    with pytest.raises(StoreError, match="save"):
        coordinator.load(tmp_path / "save", models)
    assert str(everything(coordinator, models)) == str(before)
    assert not (tmp_path / "escaped.pt").exists()


def test_nothing_of_a_folder_is_executed(saved, tmp_path):
    coordinator, models = saved
    victim, folder = tmp_path / "executed", tmp_path / "save"
    blob = pickle.dumps(Malicious(str(victim)))
    (folder / "model_0.pt").write_bytes(blob)
    head = json.loads((folder / "run.json").read_text())
    head["sha256"]["model_0.pt"] = hashlib.sha256(blob).hexdigest()
    (folder / "run.json").write_text(json.dumps(head))
    with pytest.raises(StoreError):
        coordinator.load(folder, models)
    assert not victim.exists()


def test_another_population_and_other_models_are_refused(saved, tmp_path):
    coordinator, models = saved
    with pytest.raises(ConfigError, match="1 models for 2 members"):
        coordinator.save(tmp_path / "save", models[:1])
    with pytest.raises(ConfigError, match="has models of 2 members, but population_size=4"):
        coordinator_of(tmp_path / "other").load(tmp_path / "save", models)
    other = coordinator_of(tmp_path / "other", size=2)
    with pytest.raises(ConfigError, match="the same network"):
        other.load(tmp_path / "save", builder(other, PPO, policy_kwargs={"net_arch": [9]}))


def test_a_refused_load_leaves_the_running_coordinator_as_it_was(saved, tmp_path):
    coordinator, models = saved
    (member, *_), (model, *_) = coordinator.scheduler.population, models
    coordinator.on_member_update_start(member)
    model.learn(STEPS * ENVS, reset_num_timesteps=False)
    coordinator.on_member_update_end(member, 5.0, 2, model_parameters=coordinator.collect_parameters(model))
    before = everything(coordinator, models)
    files = {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()}
    with pytest.raises(ConfigError, match="the same network"):
        coordinator.load(
            tmp_path / "save", builder(coordinator_of(tmp_path / "x", size=2), PPO, policy_kwargs={"net_arch": [9]})
        )
    after = everything(coordinator, models)
    assert [path for path in before if str(after.get(path)) != str(before[path])] == []
    assert {file.name: file.read_bytes() for file in (tmp_path / "one").iterdir()} == files


class Scheduled(SAC):
    """SAC with a scheduler of torch's over its critic's rate."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self.critic.optimizer, step_size=3, gamma=0.5)


def learned(model, seed):
    """Sixty steps and as many updates, from global generators that are seeded, in episodes that begin."""
    np.random.seed(seed)
    torch.manual_seed(seed)
    model.env.seed(seed)
    model.action_space.seed(seed)
    model._last_obs = None
    model.learn(60, reset_num_timesteps=False)
    model.scheduler.step()
    return model


@pytest.mark.parametrize("size", [pytest.param(500, marks=pytest.mark.heavy), 100], ids=["filling", "full"])
def test_off_policy_models_go_on_exactly(size, tmp_path):
    def build(member):
        settings = {"buffer_size": size, "learning_starts": 20, "batch_size": 8, "policy_kwargs": {"net_arch": [8]}}
        return Scheduled("MlpPolicy", "Pendulum-v1", seed=member.member_id, device="cpu", **settings)

    def coordinator():
        pbt = PBTConfig(population_size=2, checkpoint_dir=str(tmp_path / "files"), explore_method="none")
        return PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt), 0)

    first = coordinator()
    models = [learned(learned(build(member), 1), 2) for member in first.initialize_population()]
    first.save(tmp_path / "save", models)
    found = [learned(model, 3) for model in coordinator().load(tmp_path / "save", build)]
    for model, again in zip([learned(model, 3) for model in models], found, strict=True):
        assert (again.num_timesteps, again._n_updates) == (model.num_timesteps, model._n_updates) == (180, 160)
        assert again.scheduler.state_dict() == model.scheduler.state_dict()
        assert again.scheduler.last_epoch == 3
        for name, leaf in model.policy.state_dict().items():
            assert torch.equal(again.policy.state_dict()[name], leaf), name
        assert torch.equal(again.log_ent_coef, model.log_ent_coef)
        assert (again.replay_buffer.pos, again.replay_buffer.full) == (
            model.replay_buffer.pos,
            model.replay_buffer.full,
        )
        filled = size if model.replay_buffer.full else model.replay_buffer.pos
        np.testing.assert_array_equal(again.replay_buffer.rewards[:filled], model.replay_buffer.rewards[:filled])


def test_a_buffer_of_another_size_and_one_of_objects_are_refused():
    models = [
        SAC("MlpPolicy", "Pendulum-v1", buffer_size=size, policy_kwargs={"net_arch": [4]}, device="cpu")
        for size in (10, 11)
    ]
    with pytest.raises(ConfigError, match=r"a replay buffer of 10 steps was saved, which does not fit this .* of 11"):
        restoring(models[1], snapshot(models[0]), PopulationMember(0, {}), None)
    models[0].replay_buffer.infos = np.array([{}], dtype=object)
    with pytest.raises(ConfigError, match=r"ReplayBuffer.infos is a ndarray, which cannot be kept without code"):
        snapshot(models[0])


def test_a_state_whose_files_have_gone_on_is_refused(saved, tmp_path):
    coordinator, models = saved
    state = json.loads(json.dumps(coordinator.state_dict()))
    coordinator.load_state_dict(state)
    member = coordinator.scheduler.population[0]
    folder = tmp_path / "one"
    shutil.copytree(folder, tmp_path / "kept")
    coordinator.on_member_update_end(
        member, 5.0, 2, model_parameters=coordinator.collect_parameters(models[0].learn(STEPS * ENVS))
    )
    before = coordinator.state_dict()
    with pytest.raises(StoreError, match=r"the run has gone on since; put back the checkpoint_dir"):
        coordinator.load_state_dict(state)
    assert str(coordinator.state_dict()) == str(before)
    shutil.rmtree(folder)
    shutil.copytree(tmp_path / "kept", folder)
    coordinator.load_state_dict(state)


def test_a_resumed_coordinator_knows_how_far_attacks_have_come(saved, tmp_path):
    coordinator, _ = saved
    first = coordinator.sa_ppo[0]
    first.choose_rows(7)
    for _ in range(5):
        coordinator.on_member_update_start(coordinator.scheduler.population[0])
    other = coordinator_of(tmp_path / "one", seed=9, size=2)
    other.load_state_dict(json.loads(json.dumps(coordinator.state_dict())))
    builder(other, PPO)(other.scheduler.population[0])
    resumed = other.sa_ppo[0]
    assert resumed.update_count == first.update_count == 6
    assert resumed.get_stats() == first.get_stats()
    assert torch.equal(resumed.choose_rows(9), first.choose_rows(9))
    states = [each.state_dict()["sa_ppo"] for each in (other, coordinator)]
    assert sorted(states[0].items()) == sorted(states[1].items())
