"""A whole run of models that are trained elsewhere, in a folder from which it goes on exactly.

    run.json          the coordinator's state, and the checksum of every other file
    model_N.pt        all of a model: what a copy inherits, its counters, its generators, what stays with its place
    files/            the checkpoints and statistics that the scheduler copies from

A folder appears whole or not at all, and nothing of it is executed. Environments are not in it: they begin new
episodes.
"""

import hashlib
import io
import json
import os
import re
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from popgraft import tree, untrusted
from popgraft.disk import read_file, reason, sync_directory, write_atomic
from popgraft.errors import ConfigError, StoreError
from popgraft.foreign import normalization
from popgraft.foreign.change import Change, attributes
from popgraft.foreign.checkpoint import plain
from popgraft.foreign.course import attributes_of, course_of, going_on
from popgraft.foreign.member import PopulationMember
from popgraft.foreign.transplant import Rules, collect, plan
from popgraft.state import Seat

FORMAT = "popgraft_foreign_run"
HEAD, FILES = "run.json", "files"
NAME = re.compile(r"(files/)?[^/\\]*[^./\\][^/\\]*")
"""What a file in the folder may be called."""
COUNTERS = (
    "num_timesteps",
    "_total_timesteps",
    "_num_timesteps_at_start",
    "_current_progress_remaining",
    "_episode_num",
    "_n_updates",
)
EPISODES = ("ep_info_buffer", "ep_success_buffer")


def snapshot(model: Any) -> dict[str, Any]:
    """All that a model needs to go on, but for its environments and its recurrent state.

    Raises:
        ConfigError: a part that cannot be kept.
    """
    state = {
        "parameters": collect(model),
        "course": course_of(model),
        "counters": {name: getattr(model, name) for name in COUNTERS if hasattr(model, name)},
        "episodes": {name: (list(recent), recent.maxlen) for name, recent in _recent(model)},
        "generators": {name: generator.get_state() for name, generator in _generators(model)},
        "returns": [np.array(each.returns) for each in normalization.layers(model)],
        "seat": dict(tree.items(model.seat)) if isinstance(getattr(model, "seat", None), Seat) else {},
    }
    kept: dict[str, Any] = plain(state, "model")
    return kept


def restoring(model: Any, state: Mapping[str, Any], member: PopulationMember, adversary: Any) -> list[Change]:
    """Steps after which a model is as it was, about to begin new episodes.

    Args:
        model: another one of the same kind.
        state: what `snapshot` returned.
        member: its record.
        adversary: its state-adversarial training, if there is any.

    Raises:
        ConfigError: the model is of another kind.
    """
    seat, layers = getattr(model, "seat", None), normalization.layers(model)
    own = dict(tree.items(seat)) if isinstance(seat, Seat) else {}
    generators = dict(_generators(model))
    returns = [part.numpy().copy() for part in state["returns"]]
    fits = (
        {name: tuple(part.shape) for name, part in own.items()}
        == {name: tuple(part.shape) for name, part in state["seat"].items()}
        and [np.shape(each.returns) for each in layers] == [part.shape for part in returns]
        and set(generators) == set(state["generators"])
    )
    if not fits:
        raise ConfigError(
            f"member {member.member_id} was saved with other environments or generators than its "
            f"{type(model).__name__} has; build it as it was built then"
        )
    steps = plan(model, state["parameters"], member, None, Rules("copy", any_weights=True), adversary)
    further = going_on(model, state["course"])
    changes: list[tuple[object, str, object]] = [(model, name, value) for name, value in state["counters"].items()]
    changes += [(model, name, deque(*recent)) for name, recent in state["episodes"].items()]
    changes += [(each, "returns", part) for each, part in zip(layers, returns, strict=True)]
    if own:
        held = {name: part.to(own[name].device) for name, part in state["seat"].items()}
        changes.append((model, "seat", tree.restore(seat, held)))
    if hasattr(model, "_last_obs"):
        changes.append((model, "_last_obs", None))
    return [*steps, attributes(changes), *further, _generators_as(generators, state["generators"])]


def write(folder: Path, state: Mapping[str, Any], models: Mapping[int, Any]) -> None:
    """Writes a run in the place of an earlier one.

    Args:
        folder: where.
        state: the coordinator's, in plain values.
        models: `snapshot` of every member.

    Raises:
        StoreError: the folder cannot be written, or holds something else.
    """
    if folder.exists() and not (folder / HEAD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise StoreError(f"{folder} holds something else than a saved run; save to another folder")
    new, old = _siblings(folder)
    blobs = {f"model_{member}.pt": _packed(model) for member, model in models.items()}
    kept: dict[str, str] = {}
    try:
        for path in state["files"]:
            if path not in kept and Path(path).is_file():
                name = Path(path).name
                kept[path] = name if name not in kept.values() else f"{len(kept)}_{name}"
                blobs[f"{FILES}/{kept[path]}"] = Path(path).read_bytes()
        sums = {name: hashlib.sha256(blob).hexdigest() for name, blob in blobs.items()}
        head = {"format": FORMAT, "state": state, "files": kept, "sha256": sums}
        shutil.rmtree(new, ignore_errors=True)
        (new / FILES).mkdir(parents=True)
        for name, blob in {**blobs, HEAD: json.dumps(head).encode()}.items():
            write_atomic(new / name, blob)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            os.rename(folder, old)
        os.rename(new, folder)
        sync_directory(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"cannot save the run in {folder}: {reason(error, folder.parent)}; free it, or name another"
        ) from None


def read(folder: Path) -> tuple[dict[str, Any], dict[int, Any], dict[str, tuple[str, bytes]]]:
    """Reads what `write` wrote; nothing of it is executed.

    Returns:
        The coordinator's state, every member's `snapshot`, and the scheduler's files: name and content by the path that
        the state has for them.

    Raises:
        StoreError: it is missing, damaged or something else.
    """
    _, old = _siblings(folder)
    if not folder.exists() and old.exists():  # a crash came between the two renamings
        folder = old
    try:
        head = json.loads(read_file(folder / HEAD, untrusted.LARGEST))
        if head["format"] != FORMAT or not all(map(NAME.fullmatch, [*head["sha256"], *head["files"].values()])):
            raise ValueError("another format")
        blobs = {name: read_file(folder / name, untrusted.LARGEST) for name in head["sha256"]}
        damaged = [name for name, blob in blobs.items() if hashlib.sha256(blob).hexdigest() != head["sha256"][name]]
        if damaged:
            raise StoreError(f"{folder} is damaged: {', '.join(damaged)} is not what was saved; take another save")
        models = {
            int(name.removeprefix("model_").removesuffix(".pt")): untrusted.load_plain(folder / name, blob)
            for name, blob in blobs.items()
            if name.startswith("model_")
        }
        files = {path: (str(name), blobs[f"{FILES}/{name}"]) for path, name in head["files"].items()}
        return dict(head["state"]), models, files
    except OSError as error:
        raise StoreError(f"cannot read the saved run {folder}: {reason(error)}") from None
    except (KeyError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise StoreError(f"{folder} is not a saved run, or damaged ({type(error).__name__}: {error})") from None


def _packed(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _siblings(folder: Path) -> tuple[Path, Path]:
    return folder.with_name(f".{folder.name}.new"), folder.with_name(f".{folder.name}.old")


def _recent(model: Any) -> Iterator[tuple[str, deque[Any]]]:
    """Windows of recent episodes."""
    for name in EPISODES:
        recent = getattr(model, name, None)
        if isinstance(recent, deque):
            yield name, recent


def _generators(model: Any) -> Iterator[tuple[str, torch.Generator]]:
    """Generators that a model or its policy has as attributes."""
    return attributes_of(model, torch.Generator)


def _generators_as(own: Mapping[str, torch.Generator], states: Mapping[str, Tensor]) -> Change:
    def remember() -> Callable[[], None]:
        before = {name: generator.get_state() for name, generator in own.items()}
        return lambda: _set(own, before)

    return Change(remember, lambda: _set(own, states))


def _set(own: Mapping[str, torch.Generator], states: Mapping[str, Tensor]) -> None:
    for name, generator in own.items():
        generator.set_state(states[name].cpu())
