"""Checkpoints of models that are trained elsewhere: one file each, that is read without executing any of it.

    v2_full_parameters    {format_version, schema: 2, data: {policy, kl_penalty_state, vgs_state, return_stats_state,
                          vecnormalize_state?, optimizer_state?, …}, member_id, step, performance, hyperparams,
                          has_optimizer_state}
    v1_policy_only        {format_version, data, …}, or a bare state dict: weights alone
    *.zip                 a model that Stable-Baselines3 saved: each of its `NAME.pth` is data[NAME]

All three are read with `weights_only`, which refuses code; a reader never finds a file half written.
"""

import dataclasses
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from popgraft import untrusted
from popgraft.disk import reason, write_atomic
from popgraft.errors import ConfigError, StoreError
from popgraft.untrusted import Budget, load_plain, unzip

Format = Literal["v2_full_parameters", "v1_policy_only"]

V2: Format = "v2_full_parameters"
V1: Format = "v1_policy_only"
SCHEMA = 2
OPTIMIZER = "optimizer_state"
"""Entry for the state of `policy.optimizer`, else `optimizer`; those of others are their paths."""
FREE = "free_parameters"
"""Entry for parameters outside of the policy's state dict, by path."""
NOT_FINITE = (
    "Member %s: weights are not finite (%s); it counts as failed. If that is a constant buffer, such as a mask, keep "
    "it out of the state dict with register_buffer(..., persistent=False)"
)
"""Warning for a member and the name that `not_finite` found."""


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """What a file holds.

    Attributes:
        format: its format; a Stable-Baselines3 model counts as the newer one.
        data: parts of a model by name, or its bare state dict in the older format.
        blob: the file as it is.
        member_id: whose it is; None where the file does not say.
        hyperparams: what it was trained with, as far as the file says.
    """

    format: Format
    data: dict[Any, Any]
    blob: bytes
    member_id: Any = None
    hyperparams: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def encode(format: Format, data: Any, **about: Any) -> bytes:
    """Content of a checkpoint file.

    Args:
        format: which of the two formats.
        data: parts of a model by name, or its bare state dict in the older format.
        about: `member_id`, `step`, `performance`, `hyperparams`.

    Raises:
        ConfigError: something that only running code could read again.
    """
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"model parameters must be a dict with at least one entry, not {_in_short(data)}")
    file: dict[str, Any] = {"format_version": format, "data": plain(data, "model_parameters"), **plain(about)}
    if format == V2:
        file |= {"schema": SCHEMA, "has_optimizer_state": bool(optimizer_parts(data))}
    buffer = io.BytesIO()
    torch.save(file, buffer)
    return buffer.getvalue()


def optimizer_parts(data: dict[Any, Any]) -> list[Any]:
    """Names of the parts that are an optimizer's state: `optimizer_state`, Stable-Baselines3's `policy.optimizer`."""
    return [
        name
        for name, part in data.items()
        if part is not None and (name == OPTIMIZER or str(name).endswith("optimizer"))
    ]


def weights_of(parameters: Any) -> Mapping[str, Any]:
    """The state dict of the policy among parameters: `policy`, else `policy_state`, else all of them.

    Raises:
        ConfigError: there is none.
    """
    if isinstance(parameters, Mapping):
        for name in ("policy", "policy_state"):
            if isinstance(parameters.get(name), Mapping) and parameters[name]:
                weights: Mapping[str, Any] = parameters[name]
                return weights
        if parameters and all(isinstance(part, Tensor) for part in parameters.values()):
            return parameters
    found = sorted(map(str, parameters)) if isinstance(parameters, Mapping) else type(parameters).__name__
    raise ConfigError(
        f"no weights among the parameters: neither `policy` nor a bare state dict of tensors, but {found}"
    )


def not_finite(data: Mapping[Any, Any]) -> str | None:
    """Name of a weight that is not finite, if there is one.

    Args:
        data: parts of a model by name, with the weights under `policy` or `policy_state`, or a bare state dict.
    """
    weights = data.get("policy", data.get("policy_state", data))
    free = data.get(FREE)
    held = [part for part in (weights, free) if isinstance(part, Mapping)]
    for name, weight in (item for part in held for item in part.items()):
        if isinstance(weight, Tensor) and not weight.isfinite().all():
            return str(name)
    return None


def plain(value: Any, path: str = "") -> Any:
    """A deep copy, on the CPU, of what can be read back without executing code: arrays become tensors, paths strings.

    Raises:
        ConfigError: `value` holds something else.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True).clone()
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
        return torch.from_numpy(np.array(value))
    if isinstance(value, np.generic):
        return plain(value.item(), path)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {plain(key, path): plain(part, f"{path}.{key}" if path else str(key)) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        parts = [plain(part, f"{path}.{position}") for position, part in enumerate(value)]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, (str, int, float, bool, bytes)) or value is None:
        return value
    raise ConfigError(
        f"{path} is {_in_short(value)}, which a file cannot hold without code; "
        "give tensors, arrays, numbers, strings, lists and dicts"
    )


def write(path: Path, blob: bytes) -> None:
    """Writes a file so that a reader, and a crash at any moment, sees the old content or the new one, never a part.

    Raises:
        StoreError: the file cannot be written; an earlier one is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, blob)
    except OSError as error:
        why = reason(error, path.parent)
        raise StoreError(f"cannot write checkpoint {path}: {why}; set checkpoint_dir elsewhere") from None


def read(path: Path) -> Checkpoint:
    """Reads a checkpoint of any known format.

    Raises:
        StoreError: the file is missing, damaged, foreign, of an unknown version, or holds code, which is not run.
    """
    try:
        blob = untrusted.read(path)
    except OSError as error:
        raise StoreError(f"cannot read checkpoint {path}: {reason(error)}") from None
    return parse(path, blob)


def parse(path: Any, blob: bytes) -> Checkpoint:
    """What the content of a checkpoint file says.

    Args:
        path: where it is from, for errors.
        blob: its content.

    Raises:
        StoreError: it is damaged, foreign, of an unknown version, or holds code, which is not run.
    """
    budget = Budget(len(blob))
    files = unzip(path, blob, budget)
    if "policy.pth" in files:
        return Checkpoint(V2, _stable_baselines3(path, files, budget), blob)
    found = load_plain(path, blob, files, budget)
    if not isinstance(found, dict) or not found:
        raise StoreError(f"{path} is not a checkpoint: it holds {_in_short(found)}, not a dict of parameters")
    if "format_version" not in found:
        if all(isinstance(name, str) and isinstance(part, Tensor) for name, part in found.items()):
            return Checkpoint(V1, found, blob)
        raise StoreError(
            f"{path} is not a checkpoint: it has no format_version and is no state dict of tensors; "
            f"its keys are {_keys(found)}"
        )
    version, schema, data = found["format_version"], found.get("schema", SCHEMA), found.get("data")
    if version not in (V1, V2) or (version == V2 and schema != SCHEMA):
        raise StoreError(
            f"{path} has format_version {version!r} with schema {schema!r}, which this version of popgraft does not "
            f"know; it reads {V2!r} with schema {SCHEMA}, {V1!r}, bare state dicts and Stable-Baselines3 zips"
        )
    if not isinstance(data, dict) or not data:
        raise StoreError(f"{path} is damaged: its data are {_in_short(data)}, not a dict of parameters")
    hyperparams = found.get("hyperparams")
    if not isinstance(hyperparams, dict):
        hyperparams = {}
    return Checkpoint(version, data, blob, found.get("member_id"), hyperparams)


def _stable_baselines3(path: Path, files: dict[str, bytes], budget: Budget) -> dict[str, Any]:
    """The state dicts of a Stable-Baselines3 model; what it pickled beside them is not looked at."""
    parts = {
        name.removesuffix(".pth"): load_plain(path, file, budget=budget)
        for name, file in files.items()
        if name.endswith(".pth")
    }
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise StoreError(f"{path} is damaged: its {name}.pth holds {_in_short(part)}, not a state dict")
    return {name: part for name, part in parts.items() if part}


def _in_short(value: Any) -> str:
    if isinstance(value, dict):
        return "a dict with the keys " + _keys(value) if value else "an empty dict"
    return "nothing" if value is None else f"a {type(value).__qualname__}"


def _keys(value: dict[Any, Any], shown: int = 5) -> str:
    names = [repr(name) for name in list(value)[:shown]]
    return ", ".join(names) + (", …" if len(value) > shown else "")
