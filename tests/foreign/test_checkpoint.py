import io
import os
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch

from popgraft.errors import ConfigError, StoreError
from popgraft.foreign import checkpoint
from popgraft.foreign.checkpoint import V1, V2, encode, plain, read, write

ABOUT = {"member_id": 3, "step": 40, "performance": 1.5, "hyperparams": {"learning_rate": 1e-3, "layers": (64, 64)}}


def parameters():
    weight = torch.nn.Parameter(torch.arange(6.0).reshape(2, 3))
    state = {0: {"step": torch.tensor(7.0), "exp_avg": torch.ones(2, 3)}}
    return {
        "policy": OrderedDict(weight=weight, half=torch.zeros(2, dtype=torch.bfloat16)),
        "kl_penalty_state": {"kl_beta": 0.5, "kl_err_prev": None},
        "vgs_state": {"step_count": 9, "grad_mean_ema": torch.tensor(0.25)},
        "return_stats_state": {"mean": -1.0},
        "vecnormalize_state": {"obs_mean": np.array([1.0, 2.0]), "count": np.float64(8.0)},
        "optimizer_state": {"state": state, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]},
    }


class Bomb:
    """Pickled code: a file that appears if it is ever executed."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zipped(**files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_v2_file_is_the_published_contract(tmp_path):
    # Specification A23.
    path = tmp_path / "deep" / "member.pt"
    write(path, encode(V2, parameters(), **ABOUT))
    file = torch.load(path, weights_only=True)
    assert set(file) == {
        "format_version", "schema", "data", "member_id", "step", "performance", "hyperparams", "has_optimizer_state",
    }  # fmt: skip
    assert (file["format_version"], file["schema"], file["has_optimizer_state"]) == ("v2_full_parameters", 2, True)
    assert {name: file[name] for name in ABOUT} == ABOUT
    found = read(path)
    assert found.format == V2
    assert found.blob == path.read_bytes()
    given = parameters()
    assert list(found.data) == list(given)
    assert torch.equal(found.data["policy"]["weight"], given["policy"]["weight"])
    assert found.data["policy"]["half"].dtype == torch.bfloat16
    assert found.data["kl_penalty_state"] == {"kl_beta": 0.5, "kl_err_prev": None}
    assert torch.equal(found.data["vecnormalize_state"]["obs_mean"], torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert found.data["vecnormalize_state"]["count"] == 8.0
    optimizer = found.data["optimizer_state"]
    assert torch.equal(optimizer["state"][0]["exp_avg"], torch.ones(2, 3))
    assert optimizer["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]


@pytest.mark.parametrize(
    ("extra", "has"),
    [
        ({}, False),
        ({"optimizer_state": {}}, True),
        ({"optimizer_state": None}, False),
        ({"policy.optimizer": {}}, True),
    ],
)
def test_the_file_says_whether_it_has_an_optimizer(extra, has):
    blob = encode(V2, {"policy": {"w": torch.ones(1)}, **extra}, **ABOUT)
    assert torch.load(io.BytesIO(blob), weights_only=True)["has_optimizer_state"] is has


def test_a_real_optimizer_comes_back(tmp_path):
    with torch.random.fork_rng():
        model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    write(tmp_path / "x", encode(V2, {"policy": model.state_dict(), "optimizer_state": optimizer.state_dict()}))
    other = torch.optim.Adam(model.parameters(), lr=0.5)
    other.load_state_dict(read(tmp_path / "x").data["optimizer_state"])
    assert other.param_groups[0]["lr"] == 0.01
    for ours, theirs in zip(optimizer.state.values(), other.state.values(), strict=True):
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_view_is_kept_without_its_base_and_shares_nothing():
    base = torch.zeros(100_000)
    kept = plain({"w": base[:3]})["w"]
    base[0] = 1
    assert kept.tolist() == [0, 0, 0]
    assert len(saved(kept)) < 10_000


@pytest.mark.parametrize("value", [object(), {1, 2}, lambda: 0, np.array(["a"]), torch.nn.ReLU])
def test_what_needs_code_to_be_read_is_refused_by_name(value):
    with pytest.raises(ConfigError, match=r"model_parameters\.policy\.1 is .*without code"):
        encode(V2, {"policy": [0, value]}, **ABOUT)


@pytest.mark.parametrize("data", [{}, None, torch.ones(1)])
def test_no_parameters_are_refused(data):
    with pytest.raises(ConfigError, match="at least one entry"):
        encode(V2, data, **ABOUT)


@pytest.mark.parametrize("wrapped", [True, False])
def test_v1_files_are_detected(tmp_path, wrapped):
    weights = {"w": torch.ones(2)}
    blob = encode(V1, weights, **ABOUT) if wrapped else saved(OrderedDict(weights))
    write(tmp_path / "old.pth", blob)
    found = read(tmp_path / "old.pth")
    assert found.format == "v1_policy_only"
    assert list(found.data) == ["w"]
    assert torch.equal(found.data["w"], weights["w"])


def test_a_legacy_torch_file_is_read(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert read(tmp_path / "old.pth").format == V1


@pytest.fixture(scope="module")
def sb3_zip(tmp_path_factory):
    """A model that Stable-Baselines3 trained and saved."""
    from stable_baselines3 import PPO

    path = tmp_path_factory.mktemp("sb3") / "model.zip"
    state = torch.random.get_rng_state(), np.random.get_state()
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8, n_epochs=1, device="cpu")
    model.learn(8)
    model.save(path)
    torch.random.set_rng_state(state[0])
    np.random.set_state(state[1])
    return path, model.get_parameters()


def test_a_stable_baselines3_model_is_read(sb3_zip):
    path, parameters = sb3_zip
    found = read(path)
    assert found.format == V2
    assert set(found.data) == set(parameters) == {"policy", "policy.optimizer"}
    assert all(torch.equal(weight, found.data["policy"][name]) for name, weight in parameters["policy"].items())
    assert checkpoint.optimizer_parts(found.data) == ["policy.optimizer"]


def test_the_pickles_in_a_stable_baselines3_model_are_never_looked_at(tmp_path, sb3_zip):
    with zipfile.ZipFile(sb3_zip[0]) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    write(tmp_path / "m.zip", zipped(**{**files, "data": pickle.dumps(Bomb(tmp_path / "boom"))}))
    assert set(read(tmp_path / "m.zip").data) == {"policy", "policy.optimizer"}
    write(tmp_path / "m.zip", zipped(**{**files, "pytorch_variables.pth": saved(Bomb(tmp_path / "boom"))}))
    with pytest.raises(StoreError, match="nothing of it was executed"):
        read(tmp_path / "m.zip")
    write(tmp_path / "m.zip", zipped(**{**files, "pytorch_variables.pth": saved({"log_ent_coef": torch.ones(1)})}))
    assert read(tmp_path / "m.zip").data["pytorch_variables"] == {"log_ent_coef": torch.ones(1)}
    assert not (tmp_path / "boom").exists()


GOOD = encode(V2, {"policy": {"w": torch.ones(500)}}, **ABOUT)
FOREIGN = [
    (b"", "damaged, truncated or not a checkpoint"),
    (b"hello, world", "damaged, truncated or not a checkpoint"),
    (GOOD[: len(GOOD) // 2], "damaged, truncated or not a checkpoint"),
    (GOOD[:-30], "damaged, truncated or not a checkpoint"),
    (saved(torch.ones(3)), "it holds a Tensor, not a dict"),
    (saved({}), "it holds an empty dict"),
    (saved({"epoch": 3, "model": {"w": torch.ones(1)}}), "no format_version .* its keys are 'epoch', 'model'"),
    (saved({"format_version": "v3", "data": {"w": torch.ones(1)}}), "format_version 'v3' .* does not know; it reads"),
    (saved({"format_version": V2, "schema": 3, "data": {"w": 1}}), "with schema 3"),
    (saved({"format_version": 2, "data": {"w": 1}}), "format_version 2"),
    (saved({"format_version": V2, "schema": 2}), "its data are nothing"),
    (saved({"format_version": V1, "data": [1]}), "its data are a list"),
    (zipped(**{"policy.pth": b"junk"}), "damaged, truncated or not a checkpoint"),
    (zipped(**{"policy.pth": saved([1])}), "policy.pth holds a list"),
    (zipped(readme=b"junk"), "damaged, truncated or not a checkpoint"),
]


@pytest.mark.parametrize(("blob", "reason"), FOREIGN)
def test_damaged_and_foreign_files_are_refused_in_words(tmp_path, blob, reason):
    path = tmp_path / "member_0.pt"
    path.write_bytes(blob)
    with pytest.raises(StoreError, match=rf"member_0\.pt .*{reason}"):
        read(path)


@pytest.mark.parametrize("make", [saved, pickle.dumps], ids=["torch", "pickle"])
@pytest.mark.parametrize("wrap", [lambda bomb: bomb, lambda bomb: {"format_version": V2, "schema": 2, "data": bomb}])
def test_code_is_refused_and_not_executed(tmp_path, make, wrap):
    path = tmp_path / "evil.pt"
    path.write_bytes(make(wrap(Bomb(tmp_path / "boom"))))
    with pytest.raises(StoreError, match="nothing of it was executed"):
        read(path)
    assert not (tmp_path / "boom").exists()


def test_a_flipped_byte_of_a_weight_in_a_stable_baselines3_model_is_noticed(tmp_path, sb3_zip):
    blob = bytearray(sb3_zip[0].read_bytes())
    blob[blob.index(b"policy.pth") + 3000] ^= 0xFF
    (tmp_path / "m.zip").write_bytes(blob)
    with pytest.raises(StoreError, match="damaged"):
        read(tmp_path / "m.zip")


def test_what_is_left_of_a_model_is_not_the_weights_that_it_held(tmp_path, sb3_zip):
    blob = sb3_zip[0].read_bytes()
    inner = blob.index(b"policy.pth")
    ends = [at + 22 for at in range(inner, len(blob)) if blob.startswith(b"PK\x05\x06", at)]  # of archives inside it
    assert len(ends) > 2
    for end in ends[:-1]:
        path = tmp_path / "part.zip"
        path.write_bytes(blob[:end])
        with pytest.raises(StoreError, match="damaged"):
            read(path)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(StoreError, match=r"cannot read checkpoint .*gone\.pt: no such file"):
        read(tmp_path / "gone.pt")


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_crash_before_the_end_leaves_the_old_file(tmp_path, monkeypatch, moment):
    path = tmp_path / "member_0.pt"
    write(path, b"old")

    def crash(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, crash)
    with pytest.raises(KeyboardInterrupt):
        write(path, b"new and longer")
    assert path.read_bytes() == b"old"
    monkeypatch.undo()
    assert [file.name for file in tmp_path.iterdir()] == ["member_0.pt"]
    write(path, b"new")
    assert path.read_bytes() == b"new"


def test_the_content_is_on_the_disk_before_it_takes_the_name(tmp_path, monkeypatch):
    done = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: (done.append("fsync"), fsync(file)))

    def replacing(source, target):
        assert Path(source).parent == Path(target).parent
        done.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "replace", replacing)
    write(tmp_path / "x", b"1")
    assert done == ["fsync", "replace", "fsync"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(StoreError, match=r"cannot write checkpoint .*set checkpoint_dir elsewhere"):
        write(tmp_path / "file" / "member_0.pt", b"")
