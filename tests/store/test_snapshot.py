import dataclasses
import hashlib
import json
import os
import pickle
import re
import shutil
import threading
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from popgraft import tree
from popgraft.errors import Damaged, StoreError
from popgraft.state import (
    EntropySchedule,
    KLControl,
    Member,
    Moments,
    Normalizer,
    OptimizerState,
    ReturnScale,
    VGSState,
)
from popgraft.store import RunFolder, snapshot


@dataclasses.dataclass
class Mixed:
    floats: Tensor
    flags: Tensor
    image: Tensor
    counts: dict[str, Tensor]
    nothing: Tensor


def make_member(pop=3, n=5, seed=0):
    draw = torch.Generator().manual_seed(seed)

    def moments(*shape):
        return Moments(*(torch.rand(pop, *shape, generator=draw) for _ in range(2)), torch.rand(pop, generator=draw))

    params = torch.randn(pop, n, generator=draw)
    nothing = torch.zeros(pop)
    return Member(
        params=params,
        optimizer=OptimizerState(
            averages={"exp_avg": torch.randn(pop, n, generator=draw), "exp_avg_sq": torch.rand(pop, n, generator=draw)},
            step=torch.ones(pop),
            skipped=nothing,
        ),
        vgs=VGSState(
            nothing + 3, *(torch.rand(pop, 2, generator=draw) for _ in range(2)), *torch.rand(4, pop, generator=draw)
        ),
        normalizer=Normalizer(obs={"sensor.left": moments(2), "sensor": moments(4)}, returns=moments()),
        returns=ReturnScale(*torch.rand(5, pop, generator=draw)),
        kl=KLControl(*torch.rand(4, pop, generator=draw)),
        entropy=EntropySchedule(torch.rand(pop, 6, generator=draw), *torch.rand(2, pop, generator=draw)),
        hyperparams={"learning_rate": torch.tensor([1e-3, torch.nan, torch.inf])},
        age=torch.arange(pop),
    )


def make_mixed():
    return Mixed(
        floats=torch.tensor([[0.1, -0.0], [torch.nan, torch.inf]], dtype=torch.float64),
        flags=torch.tensor([True, False]),
        image=torch.arange(8, dtype=torch.uint8).view(2, 4),
        counts={"b": torch.tensor([2**62, -1]), "a": torch.ones(2, 3, dtype=torch.bfloat16)},
        nothing=torch.ones(2, 0),
    )


def bits(state):
    return [
        (path, leaf.dtype, leaf.shape, leaf.contiguous().view(torch.uint8).tolist()) for path, leaf in tree.items(state)
    ]


@pytest.fixture
def folder(tmp_path):
    return RunFolder.create(tmp_path / "run", "")


def place(folder, name="last"):
    return folder.snapshots / name


def tensors(folder, name="last"):
    (file,) = place(folder, name).glob("*.safetensors")
    return file


def weights(folder, name="last", size=2):
    """What a snapshot of one tensor holds, and its metadata."""
    state, metadata = snapshot.load(folder, name, {"w": torch.zeros(size)})
    return state["w"], metadata


@pytest.mark.parametrize("make", [make_member, make_mixed])
def test_a_tree_comes_back_bit_for_bit(folder, make):
    state, metadata = make(), {"generation": 7, "best": {"member": 2, "score": -1.5}, "note": "größer", "none": None}
    snapshot.save(folder, "last", state, metadata)
    loaded, found = snapshot.load(folder, "last", tree.map(torch.zeros_like, state))
    assert type(loaded) is type(state)
    assert bits(loaded) == bits(state)
    assert found == metadata
    assert bits(safetensors.torch.load_file(tensors(folder))) == sorted(bits(state))
    manifest = json.loads((place(folder) / "manifest.json").read_text())
    assert [leaf["name"] for leaf in manifest["leaves"]] == [path for path, _ in tree.items(state)]


def test_views_and_expanded_tensors_are_saved_whole(folder):
    base = torch.arange(12.0).view(3, 4)
    state = {"a": base[:, :2], "b": base[:, 2:], "t": base.mT, "same": base, "e": torch.ones(1).expand(3)}
    snapshot.save(folder, "last", state, {})
    assert bits(snapshot.load(folder, "last", state)[0]) == bits(state)


def test_numbers_that_were_single_once_are_read_as_double(folder):
    """Statistics of earlier versions; nothing else changes its type."""
    state = {"mean": torch.tensor([0.1, 2.0]), "count": torch.tensor([3, 4])}
    snapshot.save(folder, "last", state, {})
    double = {**state, "mean": torch.zeros(2, dtype=torch.float64)}
    assert bits(snapshot.load(folder, "last", double)[0]) == bits({**state, "mean": state["mean"].double()})
    for other in (torch.float16, torch.int64):
        with pytest.raises(StoreError, match="mean is float32"):
            snapshot.load(folder, "last", {**state, "mean": torch.zeros(2, dtype=other)})


def test_a_second_count_of_steps_of_earlier_versions_is_left_out_where_it_says_nothing(folder):
    now = {"optimizer": {"step": torch.tensor([3.0, 5.0])}}
    for count, same in (([3.0, 5.0], True), ([3.0, 1.0], False)):
        snapshot.save(folder, "last", {"optimizer": {**now["optimizer"], "square_step": torch.tensor(count)}}, {})
        if same:
            assert bits(snapshot.load(folder, "last", now)[0]) == bits(now)
        else:  # a graft has kept the momentum alone
            with pytest.raises(StoreError, match=r"optimizer\.square_step is float32"):
                snapshot.load(folder, "last", now)


def test_leaves_that_require_gradients_are_saved(folder):
    snapshot.save(folder, "last", {"w": torch.ones(2, requires_grad=True)}, {})
    assert weights(folder)[0].tolist() == [1, 1]


def test_the_manifest_describes_the_file(folder):
    snapshot.save(folder, "last", {"w": torch.zeros(2, 3)}, {"generation": 1})
    manifest = json.loads((place(folder) / "manifest.json").read_text())
    assert manifest["sha256"] == hashlib.sha256(tensors(folder).read_bytes()).hexdigest()
    assert manifest["leaves"] == [{"name": "w", "shape": [2, 3], "dtype": "float32"}]
    assert torch.equal(safetensors.torch.load_file(tensors(folder))["w"], torch.zeros(2, 3))


def test_metadata_may_have_numbers_as_keys(folder):
    snapshot.save(folder, "last", {"w": torch.zeros(1)}, {"seats": {2: "b", 10: "a"}, "pair": (1, 2)})
    assert snapshot.verified(folder, "last") == {"seats": {"2": "b", "10": "a"}, "pair": [1, 2]}


def test_saving_again_replaces_the_snapshot_and_leaves_nothing_behind(folder):
    for seed in (1, 2, 2):
        snapshot.save(folder, "last", make_member(seed=seed), {"seed": seed})
    assert bits(snapshot.load(folder, "last", make_member())[0]) == bits(make_member(seed=2))
    assert len(list(place(folder).iterdir())) == 2
    snapshot.save(folder, "best", make_member(seed=3), {})
    assert snapshot.names(folder) == ["best", "last"]


@pytest.mark.parametrize("act", ["os.fsync", "os.replace", "pathlib.Path.unlink", "pathlib.Path.open"])
@pytest.mark.parametrize("call", range(6))
def test_a_writer_that_dies_leaves_the_old_snapshot_or_the_new_one(folder, monkeypatch, act, call):
    snapshot.save(folder, "last", make_member(seed=1), {"seed": 1})
    owner, name = (Path, act.rpartition(".")[2]) if act.startswith("pathlib") else (os, act.rpartition(".")[2])
    real, calls = getattr(owner, name), []

    def dying(*args, **kwargs):
        calls.append(1)
        if len(calls) > call:
            raise OSError(28, "No space left on device")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, dying)
        try:
            snapshot.save(folder, "last", make_member(seed=2), {"seed": 2})
            problem = None
        except StoreError as error:
            problem = str(error)
    assert problem is None or re.search("cannot write snapshot 'last' .*: no space left", problem)
    loaded, metadata = snapshot.load(folder, "last", make_member())
    assert bits(loaded) == bits(make_member(seed=metadata["seed"]))
    assert problem or metadata == {"seed": 2}
    snapshot.save(folder, "last", make_member(seed=3), {"seed": 3})
    assert bits(snapshot.load(folder, "last", make_member())[0]) == bits(make_member(seed=3))
    assert len(list(place(folder).iterdir())) == 2


def test_a_first_save_that_dies_is_no_snapshot(folder, monkeypatch):
    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", fail)
        with pytest.raises(StoreError, match="no space left"):
            snapshot.save(folder, "last", make_member(), {})
    assert snapshot.names(folder) == []
    with pytest.raises(StoreError, match="there is no snapshot 'last'"):
        snapshot.verified(folder, "last")


def test_a_reader_finds_a_whole_snapshot_while_it_is_replaced(folder):
    states = [{"w": torch.full((64,), float(seed))} for seed in range(40)]
    snapshot.save(folder, "last", states[0], {"seed": 0})

    def write():
        for seed, state in enumerate(states):
            snapshot.save(folder, "last", state, {"seed": seed})

    writer = threading.Thread(target=write)
    writer.start()
    reads = 0
    while writer.is_alive() or not reads:
        found, metadata = weights(folder, size=64)
        assert torch.equal(found, states[metadata["seed"]]["w"])
        reads += 1
    writer.join()


def test_a_reader_that_is_overtaken_reads_the_new_snapshot(folder, monkeypatch):
    snapshot.save(folder, "last", {"w": torch.zeros(2)}, {"seed": 1})
    real, overtaken = Path.read_bytes, []

    def overtake(path):
        content = real(path)
        if not overtaken:
            overtaken.append(path.name)
            snapshot.save(folder, "last", {"w": torch.ones(2)}, {"seed": 2})
        return content

    monkeypatch.setattr(Path, "read_bytes", overtake)
    found, metadata = weights(folder)
    assert overtaken == ["manifest.json"]
    assert (found.tolist(), metadata) == ([1, 1], {"seed": 2})


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "/tmp/x", ".hidden", "a\n", "a b", "a\\b", "x" * 101, "ä"]
)
def test_names_that_could_leave_the_folder_are_refused(folder, name):
    with pytest.raises(StoreError, match="cannot name a snapshot"):
        snapshot.save(folder, name, {"w": torch.ones(1)}, {})
    with pytest.raises(StoreError, match="cannot name a snapshot"):
        snapshot.verified(folder, name)


def test_two_leaves_of_one_path_are_refused(folder):
    with pytest.raises(StoreError, match="same dotted path"):
        snapshot.save(folder, "last", {"a.b": torch.ones(1), "a": {"b": torch.zeros(1)}}, {})


def test_a_missing_snapshot_names_the_others(folder):
    with pytest.raises(StoreError, match=r"there is no snapshot 'last' .*the run has no other snapshot"):
        snapshot.verified(folder, "last")
    snapshot.save(folder, "best", {"w": torch.ones(1)}, {})
    with pytest.raises(StoreError, match=r"there is no snapshot 'last' .*; other snapshots: best"):
        snapshot.verified(folder, "last")


@pytest.mark.parametrize("keep", [0, 7, 8, 60, -1])
def test_truncated_tensors_are_refused(folder, keep):
    snapshot.save(folder, "last", make_member(), {})
    tensors(folder).write_bytes(tensors(folder).read_bytes()[:keep])
    with pytest.raises(StoreError, match="is damaged: the content of tensors-"):
        snapshot.load(folder, "last", make_member())


def test_missing_tensors_are_named(folder):
    snapshot.save(folder, "last", make_member(), {})
    tensors(folder).unlink()
    with pytest.raises(StoreError, match=r"is damaged: tensors-.*\.safetensors is missing"):
        snapshot.verified(folder, "last")


def test_any_flipped_bit_of_the_tensors_is_noticed(folder):
    snapshot.save(folder, "last", {"w": torch.ones(2)}, {})
    file = tensors(folder)
    whole = file.read_bytes()
    for position in range(len(whole)):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(StoreError):
            snapshot.verified(folder, "last")


def test_any_changed_byte_of_the_manifest_is_noticed_or_harmless(folder):
    snapshot.save(folder, "last", {"w": torch.ones(2)}, {"generation": 12})
    file = place(folder) / "manifest.json"
    whole = file.read_bytes()
    for position in range(len(whole)):
        for change in (1, 128):
            file.write_bytes(whole[:position] + bytes([whole[position] ^ change]) + whole[position + 1 :])
            try:
                found, metadata = weights(folder)
            except StoreError:
                continue
            assert (found.tolist(), metadata) == ([1, 1], {"generation": 12})
    for keep in range(0, len(whole), 7):
        file.write_bytes(whole[:keep])
        with pytest.raises(StoreError, match="is damaged"):
            snapshot.verified(folder, "last")


class Bomb:
    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


@pytest.mark.parametrize(
    "content", [b"", b"[]", b"{}", b"[" * 100_000, b"\xff\xfe", b'{"format": "other"}', pickle.dumps(Bomb())]
)
def test_a_foreign_manifest_is_refused(folder, content):
    snapshot.save(folder, "last", make_member(), {})
    (place(folder) / "manifest.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"is damaged|was not written by this version of popgraft"):
        snapshot.load(folder, "last", make_member())


def forge(folder, blob, leaves):
    """A snapshot with right checksums and wrong content."""
    body = {
        "format": "popgraft-snapshot-1",
        "sha256": hashlib.sha256(blob).hexdigest(),
        "leaves": leaves,
        "metadata": {},
    }
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    place(folder).mkdir()
    (place(folder) / f"tensors-{body['sha256'][:16]}.safetensors").write_bytes(blob)
    (place(folder) / "manifest.json").write_text(json.dumps({**body, "checksum": checksum}))


W = {"name": "w", "shape": [2], "dtype": "float32"}


@pytest.mark.parametrize(
    ("content", "leaves"),
    [
        (pickle.dumps(Bomb()), [W]),
        (safetensors.torch.save({"w": torch.ones(3)}), [W]),
        (safetensors.torch.save({"w": torch.ones(2, dtype=torch.int32)}), [W]),
        (safetensors.torch.save({"v": torch.ones(2)}), [W]),
        (safetensors.torch.save({"v": torch.ones(2), "w": torch.ones(2)}), [W]),
    ],
)
def test_a_forged_snapshot_is_refused_and_nothing_is_executed(folder, content, leaves):
    forge(folder, content, leaves)
    with pytest.raises(StoreError, match="is foreign"):
        weights(folder)


@pytest.mark.parametrize(
    ("like", "reason"),
    [
        (
            {"w": torch.ones(2, 4), "n": torch.ones(2)},
            r"w is float32 \[2, 3\] in the snapshot but float32 \[2, 4\] here",
        ),
        ({"w": torch.ones(2, 3).half(), "n": torch.ones(2)}, r"w is float32 \[2, 3\] in the snapshot but float16"),
        ({"w": torch.ones(2, 3)}, r"n is float32 \[2\] in the snapshot but absent here"),
        (
            {"w": torch.ones(2, 3), "n": torch.ones(2), "x": torch.ones(2)},
            r"x is absent in the snapshot but float32 \[2\]",
        ),
    ],
)
def test_a_snapshot_of_another_shape_is_refused_before_its_tensors_are_built(folder, monkeypatch, like, reason):
    snapshot.save(folder, "last", {"w": torch.zeros(2, 3), "n": torch.ones(2)}, {})
    monkeypatch.setattr(safetensors.torch, "load", lambda _: pytest.fail("tensors were built"))
    before = bits(like)
    with pytest.raises(StoreError, match=f"does not fit this configuration: {reason}"):
        snapshot.load(folder, "last", like)
    assert bits(like) == before


def test_a_snapshot_is_verified_without_building_it(folder):
    snapshot.save(folder, "last", {"w": torch.ones(2)}, {"generation": 12})
    assert snapshot.verified(folder, "last") == {"generation": 12}
    os.truncate(tensors(folder), 3)
    with pytest.raises(StoreError, match="does not match its checksum"):
        snapshot.verified(folder, "last")


def test_what_is_removed_is_gone_and_a_crash_meanwhile_never_leaves_a_part(folder, monkeypatch):
    snapshot.save(folder, "last", {"w": torch.ones(2)}, {})

    def fail(*_):
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", fail)
        with pytest.raises(StoreError, match=r"cannot remove snapshot .*last: input/output error"):
            snapshot.remove(folder, "last")
    assert snapshot.names(folder) == []
    for _ in range(2):
        snapshot.remove(folder, "last")
        assert not place(folder).exists()
    with pytest.raises(StoreError, match="cannot name a snapshot"):
        snapshot.remove(folder, "../run")


@pytest.mark.parametrize(
    "change",
    [
        {"sha256": "/../../../secret" + "0" * 48},
        {"sha256": 7},
        {"sha256": "0" * 63},
        {"leaves": None},
        {"leaves": [7]},
        {"leaves": [{"name": "w", "shape": [2.0], "dtype": "float32"}]},
        {"leaves": [{"name": ["w"], "shape": [2], "dtype": "float32"}]},
        {"leaves": [W | {"more": 1}]},
        {"metadata": []},
    ],
    ids=str,
)
def test_a_manifest_with_the_right_checksum_and_wrong_parts_is_refused(folder, change):
    snapshot.save(folder, "last", {"w": torch.ones(2)}, {})
    file = place(folder) / "manifest.json"
    body = json.loads(file.read_text()) | change
    del body["checksum"]
    checksum = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({**body, "checksum": checksum}))
    for read in (snapshot.verified, weights):
        with pytest.raises(StoreError, match="is foreign: it has the right checksum, but not the parts"):
            read(folder, "last")


def test_a_snapshot_of_another_run_is_refused(folder, tmp_path):
    other = RunFolder.create(tmp_path / "other", "a: 1")
    for each, value in ((folder, 1.0), (other, 2.0)):
        snapshot.save(each, "last", {"w": torch.tensor([value])}, {})
    shutil.rmtree(folder.snapshots / "last")
    shutil.copytree(other.snapshots / "last", folder.snapshots / "last")
    with pytest.raises(Damaged, match=f"is foreign: it belongs to the run {other.identity}"):
        snapshot.verified(folder, "last")
    assert weights(other, size=1)[0].tolist() == [2.0]


def test_a_snapshot_under_another_name_is_refused(folder):
    snapshot.save(folder, "generation_000001", {"w": torch.ones(1)}, {})
    (folder.snapshots / "generation_000001").rename(folder.snapshots / "generation_000002")
    with pytest.raises(Damaged, match="is foreign: it was saved as 'generation_000001'"):
        snapshot.verified(folder, "generation_000002")


def test_a_run_of_an_earlier_version_has_no_identity(folder):
    """Its snapshots are read; those of a run that has one are foreign there, and its own are elsewhere."""
    snapshot.save(folder, "new", {"w": torch.ones(1)}, {})
    identity = folder.path / "identity"
    own = identity.read_bytes()
    identity.unlink()
    with pytest.raises(Damaged, match=f"{own.decode()}, and this one does not say which it is"):
        snapshot.verified(folder, "new")
    snapshot.save(folder, "old", {"w": torch.ones(1)}, {})
    assert weights(folder, "old", size=1)[0].tolist() == [1.0]
    identity.write_bytes(own)
    assert weights(folder, "new", size=1)[0].tolist() == [1.0]
    with pytest.raises(Damaged, match="belongs to a run of an earlier version"):
        snapshot.verified(folder, "old")
    identity.write_text("nonsense")
    with pytest.raises(Damaged, match="does not say which run this is"):
        snapshot.verified(folder, "new")
