import io
import pickle
import struct
import zipfile

import pytest
import torch

from popgraft.errors import StoreError
from popgraft.pbt.unpack import load_plain, unzip


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
