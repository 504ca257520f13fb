"""Snapshots: any tree of tensors as safetensors, with a JSON manifest that proves it whole.

    snapshots/NAME/
    ├── manifest.json                   format, checksums, shapes and dtypes of all leaves in save order, metadata
    └── tensors-DIGEST.safetensors      the leaves; the name is part of the file's SHA-256

Replacing the manifest is the one atomic act that turns the old snapshot of a name into the new one: tensors are
written before it, under a name of their own, and the old ones are removed after it. A reader therefore finds the old
snapshot or the new one, whole, whatever the writer does meanwhile and wherever it dies. One process writes, any number
read.
"""

import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import safetensors.torch
import torch
from torch import Tensor

from popgraft import tree
from popgraft.disk import TEXT, read_file, reason, room, sync_directory, write_atomic
from popgraft.errors import Damaged, StoreError
from popgraft.store.folder import RunFolder

T = TypeVar("T")
Metadata = dict[str, Any]
"""JSON values by name."""

FORMAT = "popgraft-snapshot-1"
MANIFEST = "manifest.json"
WIDEST = 16
"""Bytes of a number at most."""
DIGEST = re.compile(r"[0-9a-f]{64}")
LONGEST = 100
"""Characters of a snapshot's name."""
NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{LONGEST - 1}}}")
RETIRED = {
    re.compile(r"(.*\.)?square_step"): r"\1step",
    re.compile(r"hyperparams\.(.*)"): r"member.hyperparams.\1",
    re.compile(r"counts\.age"): "member.age",
}
"""Leaves of earlier versions that are no longer there, and the leaf whose copy each is, nearly always."""


def save(folder: RunFolder, name: str, state: Any, metadata: Metadata) -> None:
    """Writes a snapshot, over an earlier one of that name if there is one.

    Args:
        folder: the run.
        name: letters, digits, ".", "_" and "-".
        state: a tree of tensors.
        metadata: JSON values that belong to it, such as the generation.

    Raises:
        StoreError: the name cannot be used, or the files cannot be written.
    """
    _check_name(name)
    leaves = list(tree.items(state))
    flat = dict(_apart(leaves))
    if len(flat) != len(leaves):
        raise StoreError(f"snapshot {name!r}: two leaves have the same dotted path; rename a key that contains a dot")
    place = folder.snapshots / name
    unnamed = place / "tensors.tmp"
    try:
        place.mkdir(exist_ok=True)
        sync_directory(folder.snapshots)
        safetensors.torch.save_file(flat, unnamed)
        body: dict[str, Any] = {
            "format": FORMAT,
            "run": folder.identity,
            "name": name,
            "sha256": _digest(unnamed),
            "leaves": [_describe(path, leaf) for path, leaf in flat.items()],
            "metadata": json.loads(json.dumps(metadata)),
        }
        tensors = place / _tensors_name(body)
        os.replace(unnamed, tensors)
        sync_directory(place)
        write_atomic(place / MANIFEST, json.dumps({**body, "checksum": _checksum(body)}, indent=1).encode())
        for file in place.iterdir():
            if file.name not in (MANIFEST, tensors.name):
                file.unlink()
    except safetensors.SafetensorError as error:
        words = f"{str(error).lower()}; {room(place)}: make room, or use another disk"
        raise StoreError(f"cannot write snapshot {name!r} in {folder.snapshots}: {words}") from None
    except OSError as error:
        raise StoreError(f"cannot write snapshot {name!r} in {folder.snapshots}: {reason(error, place)}") from None


def load(folder: RunFolder, name: str, like: T) -> tuple[T, Metadata]:
    """Reads a snapshot into the structure of `like`.

    Args:
        folder: the run.
        name: the snapshot's name.
        like: a tree with the names, shapes and dtypes that the snapshot must have; tensors go to its devices.

    Returns:
        The tree, which shares no memory with `like`, and the metadata.

    Raises:
        StoreError: the snapshot is missing, damaged, foreign, or of another shape than `like`.
    """
    manifest, blob = _read(folder, name)
    found = {leaf["name"]: leaf for leaf in manifest["leaves"]}
    expected = {path: _describe(path, leaf) for path, leaf in tree.items(like)}
    retired = {path: kept for path in found.keys() - expected.keys() if (kept := _kept_in_place_of(path)) in found}
    for path in {**expected, **found}:
        fits = path in retired or found.get(path) in (expected.get(path), _in_single(expected.get(path)))
        if not fits:
            raise _other_shape(folder, name, path, found.get(path), expected.get(path))
    flat = _build(folder, name, manifest, blob)
    for path, kept in retired.items():
        if not torch.equal(flat[path], flat[kept]):
            raise _other_shape(folder, name, path, found[path], None)
    state = tree.restore(like, {path: flat[path].to(leaf.device, leaf.dtype) for path, leaf in tree.items(like)})
    return state, manifest["metadata"]


def verified(folder: RunFolder, name: str) -> Metadata:
    """The metadata of a snapshot that is whole.

    Raises:
        StoreError: the snapshot is missing, damaged or foreign.
    """
    manifest, _ = _read(folder, name)
    metadata: Metadata = manifest["metadata"]
    return metadata


def remove(folder: RunFolder, name: str) -> None:
    """Removes a snapshot, or what a crash has left of one; a crash meanwhile leaves it whole or not listed.

    Raises:
        StoreError: the name cannot be used, or the files cannot be removed.
    """
    _check_name(name)
    place = folder.snapshots / name
    try:
        (place / MANIFEST).unlink(missing_ok=True)
        if place.is_dir():
            shutil.rmtree(place)
    except OSError as error:
        raise StoreError(f"cannot remove snapshot {place}: {reason(error, place)}") from None


def names(folder: RunFolder) -> list[str]:
    """Names of the snapshots of a run, sorted."""
    return sorted(manifest.parent.name for manifest in folder.snapshots.glob(f"*/{MANIFEST}"))


def _read(folder: RunFolder, name: str) -> tuple[dict[str, Any], bytes]:
    """The verified manifest of a snapshot, and the verified bytes of its tensors."""
    manifest = _read_manifest(folder, name)
    place = folder.snapshots / name
    while True:
        try:
            blob = read_file(place / _tensors_name(manifest), _bytes(manifest))
            break
        except FileNotFoundError:
            # A writer may have replaced the snapshot since its manifest was read.
            earlier, manifest = manifest, _read_manifest(folder, name)
            if manifest == earlier:
                raise Damaged(
                    f"snapshot {place} is damaged: {_tensors_name(manifest)} is missing{_others(folder, name)}"
                ) from None
        except OSError as error:
            raise StoreError(f"cannot read snapshot {place}: {reason(error)}") from None
    if hashlib.sha256(blob).hexdigest() != manifest["sha256"]:
        raise Damaged(
            f"snapshot {place} is damaged: the content of {_tensors_name(manifest)} does not match its checksum"
            f"{_others(folder, name)}"
        )
    return manifest, blob


def _bytes(manifest: dict[str, Any]) -> int:
    """What a file of these leaves may have at most."""
    numbers: list[int] = [math.prod(leaf["shape"]) for leaf in manifest["leaves"]]
    return TEXT + WIDEST * sum(max(0, number) for number in numbers)


def _build(folder: RunFolder, name: str, manifest: dict[str, Any], blob: bytes) -> dict[str, Tensor]:
    """The leaves, in save order, checked against the manifest."""
    try:
        flat = safetensors.torch.load(blob)
    except safetensors.SafetensorError as error:
        raise Damaged(f"snapshot {name!r} in {folder.path} is foreign: {error}") from None
    built = {leaf["name"]: flat.pop(leaf["name"], torch.empty(0)) for leaf in manifest["leaves"]}
    if flat or [_describe(path, leaf) for path, leaf in built.items()] != manifest["leaves"]:
        raise Damaged(f"snapshot {name!r} in {folder.path} is foreign: its tensors are not those of its manifest")
    return built


def _read_manifest(folder: RunFolder, name: str) -> dict[str, Any]:
    _check_name(name)
    path = folder.snapshots / name / MANIFEST
    try:
        manifest, own = json.loads(read_file(path)), folder.identity
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"there is no snapshot {name!r} in {folder.snapshots}{_others(folder, name)}") from None
    except OSError as error:
        raise StoreError(f"cannot read {path}: {reason(error)}") from None
    except (ValueError, RecursionError):
        raise Damaged(f"{path} is damaged: it is not JSON{_others(folder, name)}") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise Damaged(f"{path} was not written by this version of popgraft: its format is not {FORMAT!r}")
    checksum = manifest.pop("checksum", None)
    if checksum != _checksum(manifest):
        raise Damaged(f"{path} is damaged: its content does not match its checksum{_others(folder, name)}")
    _check_belongs(folder, name, manifest, own)
    if not _is_manifest(manifest):
        raise Damaged(f"{path} is foreign: it has the right checksum, but not the parts of a manifest")
    return manifest


def _check_belongs(folder: RunFolder, name: str, manifest: dict[str, Any], own: str | None) -> None:
    """Whether a snapshot is this run's, and was saved under its name; runs of earlier versions say nothing of that."""
    path, theirs = folder.snapshots / name, manifest.get("run")
    if theirs != own:
        whose = f"the run {theirs}" if theirs else "a run of an earlier version"
        this = (
            f"this one is {own}"
            if own
            else f"this one does not say which it is; if it is that, write so into {folder.path}/identity"
        )
        raise Damaged(f"snapshot {path} is foreign: it belongs to {whose}, and {this}{_others(folder, name)}")
    if "name" in manifest and manifest["name"] != name:
        raise Damaged(f"snapshot {path} is foreign: it was saved as {manifest['name']!r}{_others(folder, name)}")


def _is_manifest(manifest: dict[str, Any]) -> bool:
    """Whether all parts are there, of the right kinds."""
    match manifest:
        case {"sha256": str(digest), "leaves": list(leaves), "metadata": dict()} if DIGEST.fullmatch(digest):
            return all(_is_leaf(leaf) for leaf in leaves)
    return False


def _is_leaf(leaf: Any) -> bool:
    match leaf:
        case {"name": str(), "shape": list(shape), "dtype": str()} if len(leaf) == 3:
            return all(type(length) is int for length in shape)
    return False


def _apart(leaves: list[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """The leaves on the CPU, copied only where they lie in strides or share memory, which safetensors refuses."""
    seen = set()
    for path, leaf in leaves:
        leaf = leaf.detach().cpu().contiguous()
        memory = leaf.untyped_storage()
        if memory.data_ptr() in seen or memory.nbytes() != leaf.nbytes:
            leaf = leaf.clone()
        seen.add(leaf.untyped_storage().data_ptr())
        yield path, leaf


def _digest(path: Path) -> str:
    """SHA-256 of a file, which is on the disk for good then."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_name(name: str) -> None:
    if not NAME.fullmatch(name):
        raise StoreError(
            f"{name!r} cannot name a snapshot; use at most {LONGEST} letters, digits, '.', '_' and '-', "
            "beginning with a letter or a digit"
        )


def _checksum(body: dict[str, Any]) -> str:
    """SHA-256 of a manifest without its checksum, however it is laid out."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _tensors_name(manifest: dict[str, Any]) -> str:
    return f"tensors-{manifest['sha256'][:16]}.safetensors"


def _describe(path: str, leaf: Tensor) -> dict[str, Any]:
    return {"name": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype).removeprefix("torch.")}


def _other_shape(
    folder: RunFolder, name: str, path: str, found: dict[str, Any] | None, expected: dict[str, Any] | None
) -> StoreError:
    return StoreError(
        f"snapshot {name!r} in {folder.path} does not fit this configuration: {path} is {_in_words(found)} in the "
        f"snapshot but {_in_words(expected)} here; use the configuration that the run was started with"
    )


def _kept_in_place_of(path: str) -> str:
    """The leaf whose copy one of `RETIRED` is; nothing for any other."""
    return next((found.expand(kept) for form, kept in RETIRED.items() if (found := form.fullmatch(path))), "")


def _in_single(leaf: dict[str, Any] | None) -> dict[str, Any] | None:
    """What double precision was in snapshots of earlier versions."""
    return {**leaf, "dtype": "float32"} if leaf and leaf["dtype"] == "float64" else leaf


def _in_words(leaf: dict[str, Any] | None) -> str:
    return f"{leaf['dtype']} {leaf['shape']}" if leaf else "absent"


def _others(folder: RunFolder, name: str) -> str:
    """The fix for a snapshot that cannot be read: the others."""
    others = [other for other in names(folder) if other != name]
    return f"; other snapshots: {', '.join(others)}" if others else "; the run has no other snapshot"
