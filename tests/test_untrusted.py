import io
import os
import pickle
import struct
import tracemalloc
import zipfile

import pytest
import torch

from popgraft.errors import StoreError
from popgraft.untrusted import Budget, load_plain, read, unzip


def saved(value, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def zipped(*files, compression=zipfile.ZIP_STORED):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in files:
            archive.writestr(name, content)
    return buffer.getvalue()


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_tensors_and_plain_values_come_back(options):
    shared = torch.arange(6.0)
    value = {
        "w": torch.nn.Parameter(torch.ones(2, 3)),
        "views": [shared[:2], shared.view(2, 3).T, shared.bfloat16(), torch.tensor(True), torch.zeros(0, 3)],
        "plain": (1, 2.5, None, "größer", b"x", True, torch.Size([1]), torch.float16),
        3: {"deep": {"deeper": [-(2**70)]}},
    }
    found = load_plain("f", saved(value, **options))
    assert found["plain"] == value["plain"]
    assert found[3] == value[3]
    assert torch.equal(found["w"], value["w"])
    for ours, theirs in zip(found["views"], value["views"], strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (torch.zeros(1).expand(10**9), "tensors that are larger than the file"),
        (
            [torch.zeros(2**20).as_strided((2**20,), (1,)) for _ in range(1)] * 100,
            "tensors that are larger than the file",
        ),
        (torch.empty(10**9, device="meta"), "perhaps code"),
        (torch.zeros(3).to_sparse(), "perhaps code"),
        (1 + 2j, "perhaps code"),
    ],
    ids=["expanded", "repeated", "meta", "sparse", "complex"],
)
def test_what_is_larger_than_its_bytes_or_of_an_odd_kind_is_refused(value, words):
    with pytest.raises(StoreError, match=words):
        load_plain("f", saved(value))


def doubling(depth):
    nested = [1]
    for _ in range(depth):
        nested = [nested, nested]
    return nested


@pytest.mark.parametrize(("depth", "words"), [(40, "values, or some that hold each other"), (60, "nested too deeply")])
def test_values_without_end_are_refused_at_once(depth, words):
    with pytest.raises(StoreError, match=words):
        load_plain("f", saved(doubling(depth)))


class Call:
    def __init__(self, *call):
        self.call = call

    def __reduce__(self):
        return self.call[0], self.call[1:]


@pytest.mark.parametrize("call", [(bytearray, 10**12), (torch.Tensor, 10**12), (pytest.fail, "executed")])
def test_calls_are_refused_before_they_take_memory(call):
    for options in ({}, {"_use_new_zipfile_serialization": False}):
        with pytest.raises(StoreError, match="nothing of it was executed"):
            load_plain("f", saved({"w": Call(*call)}, **options))
    with pytest.raises(StoreError, match="nothing of it was executed"):
        load_plain("f", pickle.dumps(Call(*call)))


def test_a_zip_bomb_is_refused_before_it_is_unpacked():
    bomb = zipped(("policy.pth", bytes(10**8)), compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(StoreError, match=r"refused: .* bytes claim to unpack to 100,000,000; .*without compression"):
        unzip("f", bomb)
    sound = zipped(("policy.pth", bytes(1000)), compression=zipfile.ZIP_DEFLATED)
    assert unzip("f", sound) == {"policy.pth": bytes(1000)}


def claiming(blob, size):
    """An archive whose directory says that its first file has `size` bytes."""
    blob = bytearray(blob)
    struct.pack_into("<I", blob, blob.index(b"PK\x01\x02") + 24, size)
    return bytes(blob)


@pytest.fixture
def memory():
    """Bytes that were in use at most since a test began."""
    tracemalloc.start()
    yield lambda: tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("method", "size"),
    [
        (zipfile.ZIP_DEFLATED, 100),
        *(
            pytest.param(method, size, marks=pytest.mark.heavy)
            for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
            for size in (100, 2**26)
            if (method, size) != (zipfile.ZIP_DEFLATED, 100)
        ),
    ],
)
def test_an_archive_that_lies_about_its_size_takes_no_memory(method, size, memory):
    bomb = claiming(zipped(("archive/data.pkl", bytes(3 * 2**26)), compression=method), size)
    tracemalloc.reset_peak()
    for work in (unzip, load_plain):
        with pytest.raises(StoreError, match=r"damaged|refused"):
            work("f", bomb)
    assert memory() < 160e6


def test_what_archives_inside_an_archive_hold_counts_together(memory):
    """Forty parts of 60 kB, each of which may be unpacked to 60 MB by itself."""
    part = zipped(("archive/data.pkl", bytes(60 * 10**6)), compression=zipfile.ZIP_DEFLATED)
    blob = zipped(*((f"{i}.pth", part) for i in range(40)))
    tracemalloc.reset_peak()
    budget = Budget(len(blob))
    one, another, *_ = unzip("f", blob, budget).values()
    assert len(unzip("f", one, budget)["archive/data.pkl"]) == 60 * 10**6
    with pytest.raises(StoreError, match="unpacks to more than"):
        unzip("f", another, budget)
    assert memory() < 200e6


def test_an_encrypted_archive_is_refused():
    blob = bytearray(zipped(("data", b"secret")))
    for place in (blob.index(b"PK\x03\x04") + 6, blob.index(b"PK\x01\x02") + 8):
        blob[place] |= 1
    with pytest.raises(StoreError, match="holds files that are encrypted"):
        unzip("f", bytes(blob))


def test_every_reader_sees_the_same_archive():
    """A second directory behind the first one, which other readers may take for the right one, is not looked at again."""
    blob = saved({"w": torch.ones(2)})
    files = unzip("f", blob)
    other = saved({"w": torch.zeros(2)})
    assert torch.equal(load_plain("f", other, files)["w"], torch.ones(2))


def test_a_file_without_end_is_not_read(tmp_path):
    pipe, device, hole = (tmp_path / name for name in ("pipe", "device", "hole"))
    os.mkfifo(pipe)
    device.symlink_to("/dev/zero")
    with hole.open("wb") as file:
        file.truncate(2**35)
    for path, words in ((pipe, "not a regular file"), (device, "not a regular file"), (hole, "not a checkpoint")):
        with pytest.raises((OSError, StoreError), match=words):
            read(path)


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/x", "a\\x"])
def test_names_that_lead_out_of_an_archive_are_refused(name):
    with pytest.raises(StoreError, match="names files outside of itself"):
        unzip("f", zipped((name, b"1")))


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_comes_twice_is_refused():
    with pytest.raises(StoreError, match="names files twice"):
        unzip("f", zipped(("a", b"1"), ("a", b"2")))


def test_sizes_that_are_not_true_are_refused():
    blob = bytearray(zipped(("a", bytes(100))))
    place = blob.index(b"PK\x01\x02")
    struct.pack_into("<II", blob, place + 20, 50, 50)
    with pytest.raises(StoreError, match="damaged"):
        unzip("f", bytes(blob))
    assert unzip("f", b"no archive") == {}
