"""Files: complete, readable without executing anything, and refused where they are foreign."""

import io
import json
import sys
import zipfile
from types import ModuleType

import gymnasium as gym
import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.utils import LinearSchedule

from popgraft import tree
from popgraft.errors import ArgumentError, ConfigError, StoreError
from popgraft.sb3 import DistributionalPPO, MlpLstmPolicy
from popgraft.sb3.values import Missing, decode, encode

RICH = {
    "learning_rate": LinearSchedule(1e-3, 1e-4, 0.5),
    "clip_range_vf": 0.5,
    "target_kl": 0.5,
    "critic": "quantile",
    "n_quantiles": 5,
    "twin_critics": True,
    "optimizer": "adaptive_upgd",
    "optimizer_kwargs": {"adaptive_noise": True, "instant_noise_scale": False},
    "vgs": {"alpha": 0.2, "warmup_steps": 2},
    "normalize_obs": True,
    "kl_penalty": True,
    "ent_coef_final": 0.1,
    "ent_coef_plateau_window": 3,
}


def leaves(model):
    return dict(tree.items(model.member))


@pytest.mark.parametrize("arguments", [{}, RICH], ids=["plain", "rich"])
def test_a_loaded_model_goes_on_bit_for_bit(arguments, make, played, tmp_path):
    model = make(**arguments)
    model.learn(192)
    model.save(tmp_path / "agent")
    loaded = DistributionalPPO.load(tmp_path / "agent", env=played(), device="cpu")
    before, after = leaves(model), leaves(loaded)
    hidden = {"optimizer.skipped"}
    assert all(torch.equal(before[name], after[name]) for name in set(before) - hidden)
    assert loaded.num_timesteps == 192
    assert list(loaded.ep_info_buffer) == list(model.ep_info_buffer)
    model.set_env(played())
    model.reset_lstm_states_to_initial()
    for each in (model, loaded):
        each.env.seed(5)
        each.learn(128, reset_num_timesteps=False)
    before, after = leaves(model), leaves(loaded)
    assert all(torch.equal(before[name], after[name]) for name in set(before) - hidden)
    assert model._n_updates == loaded._n_updates


def test_nothing_in_a_file_is_pickled(make, tmp_path):
    make(**RICH).learn(64).save(tmp_path / "agent.zip")
    with zipfile.ZipFile(tmp_path / "agent.zip") as archive:
        names, text = set(archive.namelist()), archive.read("data").decode()
    assert ":serialized:" not in text
    assert {
        "data",
        "policy.pth",
        "policy.optimizer.pth",
        "pytorch_variables.pth",
        "_stable_baselines3_version",
    } <= names
    assert {"kl_penalty_state.pth", "vgs_state.pth", "return_stats_state.pth"} <= names
    assert "lstm" not in json.loads(text)


def test_without_an_environment_it_acts_and_can_be_given_one(make, played):
    model = make().learn(64)
    buffer = io.BytesIO()
    model.save(buffer)
    buffer.seek(0)
    loaded = DistributionalPPO.load(buffer, device="cpu", verbose=0, ent_coef=0.5)
    observation = np.ones((2, 3), np.float32)
    for deterministic in (True, False):
        expected, found = (m.predict(observation, deterministic=deterministic)[0] for m in (model, loaded))
        np.testing.assert_array_equal(found, expected)
    assert loaded.ent_coef == 0.5
    loaded.set_env(played())
    loaded.learn(64)


def test_another_number_of_environments_and_other_spaces(make, played, tmp_path):
    make().learn(64).save(tmp_path / "agent")
    loaded = DistributionalPPO.load(tmp_path / "agent", env=played(8), device="cpu")
    loaded.learn(128)
    assert loaded.n_envs == 8
    with pytest.raises(ValueError, match="Observation spaces do not match"):
        DistributionalPPO.load(tmp_path / "agent", env=played(4, gym.spaces.Discrete(3)), device="cpu")


class Own(MlpLstmPolicy):
    """A policy of the user's."""


def test_objects_of_the_users_are_given_again(make, tmp_path, caplog, small):
    model = make(
        policy=Own, clip_range=lambda left: 0.1 * left, policy_kwargs={**small, "activation_fn": torch.nn.ReLU}
    )
    model.learn(64).save(tmp_path / "agent")
    with pytest.raises(
        ConfigError, match=r"policy_class=Own, which a file cannot hold .* custom_objects=\{'policy_class'"
    ):
        DistributionalPPO.load(tmp_path / "agent", device="cpu")
    loaded = DistributionalPPO.load(tmp_path / "agent", device="cpu", custom_objects={"policy_class": Own})
    assert isinstance(loaded.policy, Own)
    assert loaded.policy_kwargs["activation_fn"] is torch.nn.ReLU
    assert "which a file cannot hold" in caplog.text
    assert loaded.clip_range(0.5) == pytest.approx(0.1)


def test_foreign_files(make, played, tmp_path, unseeded):
    theirs = RecurrentPPO("MlpLstmPolicy", played(), n_steps=8, device="cpu")
    theirs.save(tmp_path / "theirs")
    (tmp_path / "text.zip").write_text("no zip")
    make().save(tmp_path / "agent.zip")
    whole = (tmp_path / "agent.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(whole[: len(whole) // 2])
    for name, message in {
        "theirs": r"not written by DistributionalPPO.save: it holds pickled objects \(.*not executed",
        "text.zip": "damaged, truncated or not a checkpoint",
        "half.zip": "damaged: it is a zip archive whose files cannot be read",
        "nothing": "cannot read the model .*no such file",
    }.items():
        with pytest.raises(StoreError, match=message):
            DistributionalPPO.load(tmp_path / name, device="cpu")


def archive_of(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def saved_of_old():
    buffer = io.BytesIO()
    torch.save({"a": torch.ones(2)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"no zip", archive_of(), archive_of(other="x"), saved_of_old()],
    ids=["empty", "text", "0", "1", "old"],
)
def test_what_is_no_agent_is_called_that(content, make, tmp_path):
    """In a stream, of which nothing but its content is known, and in a file; no entry of an archive is named."""
    with pytest.raises(StoreError, match="the open file is no saved agent; give a file"):
        DistributionalPPO.load(io.BytesIO(content))
    (tmp_path / "it").write_bytes(content)
    for read in (DistributionalPPO.load, MlpLstmPolicy.load, make().set_parameters):
        with pytest.raises(StoreError, match=r"it is (no saved (agent|policy)|damaged, truncated or not a checkpoint)"):
            read(tmp_path / "it")
    with open(tmp_path / "it", "rb") as file, pytest.raises(StoreError, match=r"the open file .*it is no saved"):
        DistributionalPPO.load(file)


def test_a_closed_file_is_no_file(make):
    closed = io.BytesIO()
    closed.close()
    for read in (DistributionalPPO.load, MlpLstmPolicy.load, make().set_parameters):
        with pytest.raises(ArgumentError, match=r"path=.* must be a path, or a file that is open for reading bytes"):
            read(closed)


class Bomb:
    """Would run code when it is unpickled."""

    def __reduce__(self):
        return (exec, ("raise SystemExit",))


def test_code_is_not_executed(make, tmp_path):
    path = tmp_path / "agent.zip"
    model = make()
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    bomb = io.BytesIO()
    torch.save({"weight": Bomb()}, bomb)
    files["policy.pth"] = bomb.getvalue()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    before = model.member.params.clone()
    for read in (lambda: DistributionalPPO.load(path, device="cpu"), lambda: model.set_parameters(path)):
        with pytest.raises(StoreError, match="nothing of it was executed"):
            read()
    assert torch.equal(model.member.params, before)


@pytest.mark.parametrize(
    "space",
    [
        gym.spaces.Discrete(3, start=2),
        gym.spaces.MultiDiscrete([3, 4], start=[1, 0]),
        gym.spaces.MultiBinary(3),
        gym.spaces.MultiBinary([2, 3]),
        gym.spaces.Box(0, 255, (4, 4, 3), np.uint8),
        gym.spaces.Box(np.array([-np.inf, 0.1], np.float32), np.array([1.0, np.inf], np.float32)),
        gym.spaces.Dict({"b": gym.spaces.Discrete(2), "a": gym.spaces.Box(-1, 1, (2,), np.float64)}),
    ],
    ids=str,
)
def test_spaces(space):
    text = json.dumps(encode(space))
    assert decode(json.loads(text), "space", Missing()) == space


IMAGE = gym.spaces.Box(0, 255, (3, 12, 12), np.uint8)
FEED_FORWARD = {"recurrent": "none", "policy_kwargs": {"net_arch": [2]}}
UNUSED = {"cnn_features": 10**6, "n_bins": 10**6, "n_quantiles": 10**6}


class Summed(torch.nn.Module):
    """An encoder of the user's whose number is no width."""

    def __init__(self, observation_space, big):
        super().__init__()
        self.big = big

    def forward(self, x):
        return x.sum(1, keepdim=True) / self.big


@pytest.mark.parametrize(
    ("space", "arguments"),
    [
        (None, {**UNUSED, **FEED_FORWARD, "critic": "scalar", "encoder": "auto"}),
        (None, {**UNUSED, **FEED_FORWARD, "critic": "categorical", "n_bins": 2, "encoder": "mlp"}),
        (IMAGE, {**UNUSED, **FEED_FORWARD, "n_quantiles": 2, "encoder": "mlp"}),
        (IMAGE, {**UNUSED, **FEED_FORWARD, "n_quantiles": 2}),
    ],
    ids=["scalar", "categorical", "pixels", "no encoder"],
)
def test_a_width_that_nothing_uses_may_be_any(space, arguments, make, played, tmp_path):
    env = played() if space is None else played(2, space)
    model = make(env, **arguments)
    model.save(tmp_path / "agent")
    loaded = DistributionalPPO.load(tmp_path / "agent", device="cpu")
    assert torch.equal(loaded.member.params, model.member.params)


@pytest.mark.parametrize("setting", ["policy_kwargs", "settings"])
def test_numbers_of_an_extractor_of_the_users_are_no_widths(setting, make, tmp_path, monkeypatch):
    if setting == "policy_kwargs":
        own = {"features_extractor_class": Summed, "features_extractor_kwargs": {"big": 10**6}}
        given = {"policy_kwargs": {**FEED_FORWARD["policy_kwargs"], **own}}
        model = make(recurrent="none", critic="scalar", **given)
    else:
        module = ModuleType("of_the_users")
        monkeypatch.setattr(module, "Summed", Summed, raising=False)
        monkeypatch.setitem(sys.modules, "of_the_users", module)
        given = {"encoder": "of_the_users:Summed"}
        own = {"encoder_kwargs": {"big": 10**6}, "encoder_layers": [10**6]}
        model = make(critic="scalar", **FEED_FORWARD, **own, **given)
    model.save(tmp_path / "agent")
    with pytest.raises(ConfigError, match=r"give it again.*custom_objects"):
        DistributionalPPO.load(tmp_path / "agent", device="cpu")
    loaded = DistributionalPPO.load(tmp_path / "agent", device="cpu", custom_objects=given)
    assert torch.equal(loaded.member.params, model.member.params)


@pytest.mark.parametrize(
    ("space", "policy", "arguments", "name"),
    [
        (None, "MlpLstmPolicy", {}, "n_quantiles"),
        (None, "MlpLstmPolicy", {"critic": "categorical"}, "n_bins"),
        (None, "MlpLstmPolicy", {}, "encoder_layers"),
        (IMAGE, "MlpLstmPolicy", {"encoder": "auto"}, "cnn_features"),
        (IMAGE, "CnnLstmPolicy", {}, "cnn_features"),
        (gym.spaces.Dict({"a": IMAGE}), "MultiInputLstmPolicy", {}, "cnn_features"),
    ],
)
def test_a_width_that_is_used_must_fit(space, policy, arguments, name, make, played, tmp_path):
    model = make(played() if space is None else played(2, space), policy, **arguments)
    model.settings[name] = [10**7] if name == "encoder_layers" else 10**7
    model.save(tmp_path / "agent")
    with pytest.raises(StoreError, match=f"{name}=10,000,000, but its weights allow"):
        DistributionalPPO.load(tmp_path / "agent", device="cpu")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"policy_kwargs": {"lstm_hidden_size": 50_000}}, r"lstm_hidden_size=50,000, but its weights allow"),
        ({"policy_kwargs": {"n_lstm_layers": 10**6}}, "n_lstm_layers=1,000,000"),
        ({"policy_kwargs": {"net_arch": [10**9]}}, "net_arch=1,000,000,000"),
        ({"policy_kwargs": {"net_arch": {"pi": [3], "vf": [10**9]}}}, "net_arch=1,000,000,000"),
        ({"policy_kwargs": {"net_arch": [{"vf": [10**9]}]}}, "net_arch=1,000,000,000"),
        ({"policy_kwargs": {"hidden_size": 50_000}}, "hidden_size=50,000"),
        ({"policy_kwargs": {"critic_head_layers": [10**9]}}, "critic_head_layers=1,000,000,000"),
        ({"n_envs": 10**9}, "n_envs=1,000,000,000"),
        ({"observation_space": {"popgraft:space": {"MultiBinary": 10**12}}}, "a space of shape"),
        ({"observation_space": {"popgraft:space": {"Box": [0, 1, [10**6, 10**6], "float32"]}}}, "a space of shape"),
        ({"learning_rate": "fast"}, "is damaged"),
        ({"settings": []}, "is damaged"),
        ({"settings": {"critic": "qantile"}}, "is damaged.*must be one of quantile"),
        ({"settings": {"recurrent": "a b:C"}}, "is damaged.*must have the form module:name"),
        ({"policy_class": {"popgraft:class": "object"}}, "is damaged"),
    ],
    ids=str,
)
def test_values_that_the_weights_cannot_have_are_refused(make, tmp_path, change, words):
    path = tmp_path / "agent.zip"
    make().save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    files["data"] = json.dumps(json.loads(files["data"]) | change).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    with pytest.raises(StoreError, match=words):
        DistributionalPPO.load(path, device="cpu")


def test_statistics_of_earlier_versions_were_single(make, played, tmp_path):
    model, path = make(normalize_obs=True), tmp_path / "agent.zip"
    model.learn(64)
    model.save(path)
    with zipfile.ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    weights = torch.load(io.BytesIO(files["policy.pth"]), weights_only=True)
    known = {name: leaf for name, leaf in weights.items() if "normalizer" in name}
    assert {leaf.dtype for leaf in known.values()} == {torch.float64}
    torch.save({**weights, **{name: leaf.float() for name, leaf in known.items()}}, single := io.BytesIO())
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in {**files, "policy.pth": single.getvalue()}.items():
            archive.writestr(name, content)
    loaded = DistributionalPPO.load(path, env=played(), device="cpu")
    for name, leaf in loaded.policy.state_dict().items():
        assert leaf.dtype == weights[name].dtype
        assert torch.equal(leaf.float(), weights[name].float())
    loaded.learn(64)
