"""Files of every kind that popgraft reads, and how it reads them."""

import dataclasses
import hashlib
import io
import json
import logging
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import safetensors.torch
import torch
from stable_baselines3 import PPO

from popgraft.config import load_config
from popgraft.foreign import checkpoint, normalization
from popgraft.sb3 import DistributionalPPO
from popgraft.state import Decision, Scores
from popgraft.store import RunDatabase, RunFolder, snapshot
from popgraft.store.salvage import salvage

SMALL = {"lstm_hidden_size": 8, "net_arch": [8]}
TREE = {
    "member": {"params": torch.arange(12.0).view(2, 6), "age": torch.tensor([1, 2])},
    "image": torch.zeros(2, 3).byte(),
}
logging.disable()


@dataclasses.dataclass
class Kind:
    """One kind of file.

    Attributes:
        form: how it is built, for mutations that know it.
        originals: sound files.
        read: reads one, given a folder to put it into.
    """

    form: str
    originals: list[bytes]
    read: Callable[[Path, bytes], None]


def kinds(place: Path) -> dict[str, Kind]:
    """Every kind; `place` is where originals are made."""
    place.mkdir(parents=True)
    with torch.random.fork_rng():
        return {
            "checkpoint": Kind("zip", checkpoints(place), read_checkpoint),
            "model": Kind("zip", models(place), read_model),
            "manifest": Kind("json", [manifest_of(place)], read_manifest),
            "tensors": Kind("safetensors", [safetensors.torch.save(flat())], read_tensors),
            "yaml": Kind("text", configurations(), read_yaml),
            "database": Kind("bytes", [database(place)], read_database),
        }


def configurations() -> list[bytes]:
    """Those of a run; the others belong to the scheduler."""
    texts = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))]
    return [text for text in texts if b"total_timesteps" in text]


def checkpoints(place: Path) -> list[bytes]:
    about = {"member_id": 1, "step": 2, "performance": 3.0, "hyperparams": {"learning_rate": 1e-3}}
    policy = {"w": torch.randn(5, 4), "b": torch.zeros(5, dtype=torch.float64)}
    optimizer = {"state": {0: {"step": torch.tensor(1.0), "exp_avg": torch.ones(5, 4)}}, "param_groups": [{"lr": 0.1}]}
    v2 = checkpoint.encode(checkpoint.V2, {"policy": policy, "optimizer_state": optimizer, "kl": {"b": 0.5}}, **about)
    bare, old = io.BytesIO(), io.BytesIO()
    torch.save(policy, bare)
    torch.save(policy, old, _use_new_zipfile_serialization=False)
    PPO("MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [4]}, device="cpu").save(place / "ppo.zip")
    v1 = checkpoint.encode(checkpoint.V1, policy, **about)
    return [v2, v1, bare.getvalue(), old.getvalue(), (place / "ppo.zip").read_bytes()]


def models(place: Path) -> list[bytes]:
    blobs = []
    for name, kwargs in (("CartPole-v1", {}), ("Pendulum-v1", {"normalize_obs": True, "vgs": True})):
        env = gym.make(name)
        model = DistributionalPPO(
            "MlpLstmPolicy", env, n_steps=8, batch_size=8, policy_kwargs=SMALL, device="cpu", **kwargs
        )
        model.save(place / "model.zip")
        blobs.append((place / "model.zip").read_bytes())
    return blobs


def flat() -> dict[str, torch.Tensor]:
    return {"member.params": TREE["member"]["params"], "member.age": TREE["member"]["age"], "image": TREE["image"]}


def manifest_of(place: Path) -> bytes:
    folder = RunFolder.create(place / "run", "a: 1")
    snapshot.save(folder, "last", TREE, {"generation": 3, "found": {"score": 1.0}})
    return (folder.snapshots / "last" / "manifest.json").read_bytes()


def database(place: Path) -> bytes:
    folder = RunFolder.create(place / "other", "a: 1")
    rates = {"learning_rate": torch.tensor([0.5, 0.25])}
    scores = Scores(torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.1]), torch.tensor([10, 1]))
    with RunDatabase(folder.database) as opened:
        for number in range(40):
            decision = Decision(torch.tensor([0, 0]), rates, {1: "truncation"})
            opened.record_generation(number, scores, rates, 10, decision, {1: "copy"})
            opened.record_metrics(number, {"loss": scores.mean}, {"member_distance": 0.5})
            opened.record_event("rescue", "member 1", number)
    return folder.database.read_bytes()


def read_checkpoint(place: Path, content: bytes) -> None:
    path = place / "checkpoint"
    path.write_bytes(content)
    found = checkpoint.read(path)
    checkpoint.not_finite(found.data)
    checkpoint.plain(found.data)
    checkpoint.optimizer_parts(found.data)
    if b"vecnormalize" in content:
        normalization.read_statistics(path)


def read_model(place: Path, content: bytes) -> None:
    (place / "model.zip").write_bytes(content)
    model = DistributionalPPO.load(place / "model.zip", device="cpu")
    model.predict(model.observation_space.sample())


def put(place: Path, manifest: bytes, tensors: bytes, digest: str, identity: bytes = b"") -> RunFolder:
    """A run whose only snapshot is made of these files."""
    folder = RunFolder(place / "run")
    shutil.rmtree(folder.path, ignore_errors=True)
    (folder.snapshots / "last").mkdir(parents=True)
    if identity:
        (folder.path / "identity").write_bytes(identity)
    (folder.snapshots / "last" / "manifest.json").write_bytes(manifest)
    (folder.snapshots / "last" / f"tensors-{digest[:16]}.safetensors").write_bytes(tensors)
    return folder


def read_snapshot(folder: RunFolder) -> None:
    snapshot.verified(folder, "last")
    snapshot.load(folder, "last", TREE)


def read_manifest(place: Path, content: bytes) -> None:
    tensors = safetensors.torch.save(flat())
    (original,) = (place / "originals" / "run" / "snapshots" / "last").glob("*.safetensors")
    tensors, identity = original.read_bytes(), (place / "originals" / "run" / "identity").read_bytes()
    read_snapshot(put(place, sealed(content), tensors, hashlib.sha256(tensors).hexdigest(), identity))


def sealed(content: bytes) -> bytes:
    """A manifest with the right checksum, where it is one: so that it is read beyond it."""
    try:
        body = json.loads(content)
        del body["checksum"]
        checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        return json.dumps({**body, "checksum": checksum}).encode()
    except Exception:
        return content


def read_tensors(place: Path, content: bytes) -> None:
    digest = hashlib.sha256(content).hexdigest()
    leaves: list[dict[str, Any]] = [
        {"name": name, "shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}
        for name, leaf in flat().items()
    ]
    body = {"format": "popgraft-snapshot-1", "sha256": digest, "leaves": leaves, "metadata": {}, "checksum": ""}
    read_snapshot(put(place, sealed(json.dumps(body).encode()), content, digest))


def read_yaml(place: Path, content: bytes) -> None:
    (place / "config.yaml").write_bytes(content)
    load_config(place / "config.yaml")


def read_database(place: Path, content: bytes) -> None:
    folder = RunFolder(place / "base")
    shutil.rmtree(folder.path, ignore_errors=True)
    folder.path.mkdir()
    folder.database.write_bytes(content)
    salvage(folder)
    with RunDatabase(folder.database) as opened:
        opened.check()
        _ = opened.scores(), opened.metrics(), opened.lineage(), opened.events(), opened.sessions()
    with sqlite3.connect(folder.database) as connection:
        connection.execute("SELECT 1")
    connection.close()
