"""Files that may come from anywhere: what they hold is bounded by their own size before anything of it is made.

A zip archive may unpack to any size, whatever it claims, and a pickle may ask for any number of zeros, for tensors that
repeat a few bytes without end, or for lists that hold each other millions of times. Nothing here allocates on a file's
word: archives are unpacked piece by piece, and what is unpacked of all of them, one in the other, counts together.
"""

import io
import os
import pickle
import pickletools
import warnings
import zipfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popgraft.disk import check_file
from popgraft.errors import StoreError

EXPANSION, SLACK = 8, 64 * 2**20
"""How many times its own size a file may unpack to, and bytes that it may in any case."""
PIECE, ENTRIES = 2**20, 100_000
"""Bytes that are unpacked at a time, and files that an archive may list, with those in archives inside."""
LARGEST = 2**36
"""Bytes of a file at most."""
LONGEST = 200
"""Characters that an error may quote of what a parser says, which may quote the file."""
VALUES, DEPTH = 1_000_000, 50
"""Values that a file may hold besides the numbers in its tensors, and how deeply they may be nested."""

ARCHIVE, DIRECTORY_ENTRY, DIRECTORY_END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"
"""How an archive begins, an entry of its directory, and the end of that."""
END, ENCRYPTED = 22 + 2**16, 1
"""Bytes in which the end of the directory lies, and the flag of a file that takes a password."""
LEGACY, LEGACY_PICKLES = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", 5
"""How files begin that PyTorch before 1.6 wrote, and how many pickles there are in them, before the numbers."""
GLOBALS = {
    "collections OrderedDict",
    "torch Size",
    "torch device",
    "torch.nn.parameter Parameter",
    "torch._utils _rebuild_tensor_v2",
    "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
    "torch.storage UntypedStorage",
    "_codecs encode",
}
"""Names in a pickle that tensors and plain values need, besides dtypes and kinds of storage."""
PLAIN = (str, int, float, bool, bytes, type(None), torch.Size, torch.dtype, torch.device)


class Budget:
    """Bytes that may still be made of a file.

    Args:
        size: bytes of the file.
    """

    def __init__(self, size: int) -> None:
        self.whole = self._left = self._unclaimed = max(EXPANSION * size, SLACK)

    def spend(self, path: Any, count: int) -> None:
        """Takes some. Raises StoreError where there are not so many left."""
        self._left -= count
        if self._left < 0:
            raise StoreError(
                f"{path} is refused: it unpacks to more than {self.whole:,} bytes; if you trust it, save it again "
                "without compression"
            )

    def claims(self, count: int) -> bool:
        """Takes in that a tensor has so many bytes; whether all together may."""
        self._unclaimed -= count
        return self._unclaimed >= 0


def read(path: Path) -> bytes:
    """The content of a file that begins and ends as an archive does, or begins as older checkpoints do.

    Raises:
        OSError: it cannot be read, or is not a regular file.
        StoreError: it is anything else, of which no more than both ends has been read.
    """
    check_file(path, LARGEST)
    with path.open("rb") as file:
        begin = file.read(len(LEGACY))
        file.seek(max(0, file.seek(0, os.SEEK_END) - END))
        end = file.read(END)
    if not (begin.startswith(ARCHIVE) and DIRECTORY_END in end) and begin != LEGACY:
        raise StoreError(f"{path} is damaged, truncated or not a checkpoint; nothing of it was executed")
    return path.read_bytes()


def unzip(path: Any, blob: bytes, budget: Budget | None = None) -> dict[str, bytes]:
    """The files in a zip archive, by name; none where it is no such archive.

    Args:
        path: where it comes from, for messages.
        blob: the archive.
        budget: what is left of that of the file that holds it; None: it is a file itself.

    Raises:
        StoreError: it is damaged, unpacks to far more than its size, is packed as no model is, or names a file twice or
            outside of itself.
    """
    budget = budget or Budget(len(blob))
    if blob.count(DIRECTORY_ENTRY) > ENTRIES:
        raise StoreError(f"{path} is refused: it lists more than {ENTRIES:,} files")
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            entries = archive.infolist()
            if blob.startswith(ARCHIVE) and all(entry.header_offset for entry in entries):
                raise zipfile.BadZipFile("cut off: its end is that of an archive inside it")
            _check_entries(path, len(blob), entries)
            return {entry.filename: _unpacked(path, archive, entry, budget) for entry in entries}
    except zipfile.BadZipFile:
        if blob.startswith(ARCHIVE):
            raise StoreError(f"{path} is damaged: it is a zip archive whose files cannot be read") from None
        return {}
    except StoreError:
        raise
    except Exception as error:  # whatever the bytes make the parser do
        raise StoreError(f"{path} is damaged ({type(error).__name__}: {error})"[: 2 * LONGEST]) from None


def _unpacked(path: Any, archive: zipfile.ZipFile, entry: zipfile.ZipInfo, budget: Budget) -> bytes:
    """A file in an archive, as long as there is something left for it."""
    pieces = []
    with archive.open(entry) as file:
        while piece := file.read(PIECE):
            budget.spend(path, len(piece))
            pieces.append(piece)
    return b"".join(pieces)


def load_plain(path: Any, blob: bytes, files: Mapping[str, bytes] | None = None, budget: Budget | None = None) -> Any:
    """What `torch.save` wrote, if it is tensors and plain values.

    Args:
        path: where it comes from, for messages.
        blob: the file.
        files: what `unzip` has found in it, where that is known.
        budget: what is left of that of the file that holds it; None: it is a file itself.

    Raises:
        StoreError: anything else; nothing of it is executed.
    """
    budget = budget or Budget(len(blob))
    files = unzip(path, blob, budget) if files is None else files
    if not files and not blob.startswith(LEGACY):
        raise StoreError(f"{path} is damaged, truncated or not a checkpoint; nothing of it was executed")
    for stream in [io.BytesIO(content) for name, content in files.items() if name.endswith(".pkl")]:
        _check_globals(path, stream)
    if not files:
        stream = io.BytesIO(blob)
        for _ in range(LEGACY_PICKLES):
            _check_globals(path, stream)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of other protocols, before it refuses them
            stream = _stored(files) if files else io.BytesIO(blob)
            found = torch.load(stream, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise _holds_code(path) from None
    except Exception as error:  # whatever the bytes make the parser do
        why = str(error).partition("\n")[0].partition(". ")[0][:LONGEST]
        raise StoreError(f"{path} is damaged, truncated or not a checkpoint ({type(error).__name__}: {why})") from None
    sizes = Counter(len(content) for content in files.values()) if files else None
    _check_values(path, found, sizes, len(blob), budget)
    return found


def _stored(files: Mapping[str, bytes]) -> io.BytesIO:
    """An archive that means to every reader what the one that has been read meant to this one."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    stream.seek(0)
    return stream


def _check_entries(path: Any, size: int, entries: list[zipfile.ZipInfo]) -> None:
    names = [entry.filename for entry in entries]
    total = sum(entry.file_size for entry in entries)
    if total > max(EXPANSION * size, SLACK):
        raise StoreError(
            f"{path} is refused: {size:,} bytes claim to unpack to {total:,}; if you trust it, save it again "
            "without compression"
        )
    kinds = {entry.compress_type for entry in entries} - {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}
    if kinds or any(entry.flag_bits & ENCRYPTED for entry in entries):
        what = f"compressed by method {min(kinds)}" if kinds else "encrypted"
        raise StoreError(f"{path} is refused: it holds files that are {what}, as no program for models writes them")
    strange = [name for name in names if name.startswith("/") or ".." in name.split("/") or "\\" in name]
    if strange or len(set(names)) < len(names):
        raise StoreError(f"{path} is refused: it names files {'outside of itself' if strange else 'twice'}")


def _check_globals(path: Any, stream: io.BytesIO) -> None:
    """Refuses a pickle that names anything but what tensors and plain values need, before any of it is read."""
    try:
        named = {str(argument) for opcode, argument, _ in pickletools.genops(stream) if opcode.name == "GLOBAL"}
    except Exception as error:
        why = f"{type(error).__name__}: {error}"[:LONGEST]
        raise StoreError(f"{path} is damaged, truncated or not a checkpoint ({why})") from None
    for name in named - GLOBALS:
        module, _, attribute = name.partition(" ")
        if module != "torch" or not (
            attribute.endswith("Storage") or isinstance(getattr(torch, attribute, None), torch.dtype)
        ):
            raise _holds_code(path)


def _check_values(path: Any, found: Any, sizes: Counter[int] | None, size: int, budget: Budget) -> None:
    """Refuses tensors that are larger than the bytes they come from, and values without end.

    Args:
        path: where they come from, for messages.
        found: the values.
        sizes: how often a part of the file has so many bytes; None where it has no parts.
        size: bytes of the whole file.
        budget: what the tensors may take together.
    """
    pending, seen, read = [(found, 0)], set(), 0
    for count in range(VALUES + 1):
        if not pending:
            return
        value, depth = pending.pop()
        if isinstance(value, Tensor):
            plain = type(value) in (Tensor, torch.nn.Parameter) and value.layout is torch.strided
            if not plain or value.device.type != "cpu" or value.is_quantized or value.__dict__:
                raise StoreError(f"{path} is refused: it holds a tensor of an unknown kind ({type(value).__name__})")
            memory = value.untyped_storage()
            if memory.nbytes() and memory.data_ptr() not in seen:
                seen.add(memory.data_ptr())
                read += memory.nbytes()
                if sizes is not None:
                    sizes[memory.nbytes()] -= 1
            needed = value.numel() * value.element_size()
            unread = read > size if sizes is None else sizes[memory.nbytes()] < 0
            if unread or needed > memory.nbytes() or not budget.claims(needed):
                raise StoreError(f"{path} is refused: it holds tensors that are larger than the file")
        elif isinstance(value, (Mapping, list, tuple, set)) and depth < DEPTH:
            parts = [*value.keys(), *value.values()] if isinstance(value, Mapping) else list(value)
            if len(parts) + count > VALUES:
                break
            pending += [(part, depth + 1) for part in parts]
        elif not isinstance(value, PLAIN):
            raise StoreError(f"{path} is refused: it holds a {type(value).__name__}, or is nested too deeply")
    raise StoreError(f"{path} is refused: it holds more than {VALUES:,} values, or some that hold each other")


def _holds_code(path: Any) -> StoreError:
    return StoreError(
        f"{path} holds something other than tensors and plain values, perhaps code; nothing of it was executed. "
        "Save a dict of state dicts, or let PBTScheduler.update_performance write the file"
    )
