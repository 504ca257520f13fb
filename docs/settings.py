"""Writes docs/settings.md from the fields of the configuration: `make docs`."""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from popgraft import DistributionalPPO, HyperparamConfig
from popgraft.config import Config
from popgraft.config.environments import WrapperConfig
from popgraft.config.fields import reference
from popgraft.config.kinds import Kinds
from popgraft.config.model import ALIASES, HYPERPARAMS, ModelConfig, path_of
from popgraft.config.network import NetworkConfig
from popgraft.config.population import ScheduledConfig, StageConfig
from popgraft.sb3.arguments import ENGINE, Settings

FILE = Path(__file__).with_suffix(".md")

ENTRIES = {
    WrapperConfig: "env.wrappers",
    HyperparamConfig: "pbt.hyperparams",
    ScheduledConfig: "pbt.schedule",
    StageConfig: "pbt.population_schedule",
}
"""What lists of settings hold, and the first that holds it."""

INTRODUCTION = """\
# Settings

Every setting, with what it may be, its default and what it does. A configuration in YAML has a section for every room
(`env:`, `model:`, …) and names what differs from the defaults; `--set` and overrides in Python take the names as they
stand here ([usage](usage.md#a-configuration)). A number that is *tunable* may be listed under
[`pbt.hyperparams`](#entries-of-pbthyperparams), and then evolves.

This page is made from the code by `make docs`.
"""

ARGUMENTS = """\
## Arguments of DistributionalPPO

What [`DistributionalPPO`](sb3.md) takes beside Stable-Baselines3's own arguments, the setting that says what it means,
and the default that it has there, with an `MlpLstmPolicy`.

| argument | setting | default |
|---|---|---|
"""

RENAMED = {
    "batch_size": "model.n_minibatches",
    "seed": "seed",
    "device": "engine.device",
    **{name: f"engine.{name}" for name in ENGINE},
}
"""Arguments of `DistributionalPPO` whose settings are found elsewhere than under `model`."""

DERIVED = {
    "sequence_length": "the greatest common divisor of `n_steps` and `batch_size`",
    "encoder": "the policy's extractor",
    "cnn_features": "those of the policy's extractor",
    "normalize_returns": "`true`, unless a `VecNormalize` or `normalize_reward` scales rewards",
}
"""Defaults of arguments that depend on others."""


def document() -> str:
    """The whole page."""
    parts = [INTRODUCTION, contents(), *sections(), *map(entries, ENTRIES), tunable(), arguments()]
    return "\n".join(parts)


def contents() -> str:
    """Links to the sections."""
    titles = ["The run", *(path for path, _ in rooms(Config, "")), *(f"Entries of {path}" for path in ENTRIES.values())]
    titles += ["Tunable numbers", "Arguments of DistributionalPPO"]
    return "".join(f"- {link(title)}\n" for title in titles)


def rooms(kind: type[BaseModel], prefix: str) -> Iterator[tuple[str, type[BaseModel]]]:
    """Every section of settings below another one, by its path."""
    for name, field in kind.model_fields.items():
        child = field.annotation
        if isinstance(child, type) and issubclass(child, BaseModel):
            yield f"{prefix}{name}", child
            yield from rooms(child, f"{prefix}{name}.")


def sections() -> Iterator[str]:
    """The tables of all settings."""
    for path, section in [("", Config), *rooms(Config, "")]:
        rows = [
            row(".".join(filter(None, (path, name))), what(path, name, field), default(field), field.description)
            for name, field in section.model_fields.items()
            if not (isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel))
        ]
        inner = [link(child) for child, _ in rooms(section, f"{path}.")] if path else []
        more = f"\nMore in {', '.join(inner)}.\n" if inner else ""
        yield f"## {path or 'The run'}\n\n{told(section)}{table(rows)}{more}"


def entries(kind: type) -> str:
    """The table of what an entry of a list says."""
    if issubclass(kind, BaseModel):
        rows = [row(name, what("", name, f), default(f), f.description) for name, f in kind.model_fields.items()]
    else:
        said = dict(re.findall(r"^ {8}(\w+): (.*)$", kind.__doc__ or "", re.MULTILINE))
        rows = [
            row(field.name, words(field.type), default(field), said[field.name]) for field in dataclasses.fields(kind)
        ]
    return f"## Entries of {ENTRIES[kind]}\n\n{told(kind)}{table(rows)}"


def tunable() -> str:
    """What `pbt.hyperparams` may name."""
    rows = [
        f"| `{name}` | `{'.'.join(['model', *path_of(name)])}` | {low:g} to {high:g} |\n"
        for name, (low, high) in HYPERPARAMS.items()
    ]
    head = "| `name` | setting | range |\n|---|---|---|\n"
    others = "".join(f" `{alias}` is `{name}`." for alias, name in ALIASES.items())
    return f"## Tunable numbers\n\nNames for {link('Entries of pbt.hyperparams')}.{others}\n\n{head}{''.join(rows)}"


def arguments() -> str:
    """What `DistributionalPPO` takes, as settings."""
    model = DistributionalPPO("MlpLstmPolicy", "CartPole-v1", seed=0, device="cpu")
    given = inspect.signature(DistributionalPPO.__init__).parameters
    found = {"model": model.learner.config, "model.network": model.policy.network_config}
    rows = []
    for name in [*given, *Settings.__annotations__]:
        path = place_of(name)
        if path is None:
            continue
        section, _, field = path.rpartition(".")
        value = given[name].default if name in given else getattr(found.get(section), field, None)
        if isinstance(value, BaseModel):
            value = getattr(value, "enabled", value.model_dump(exclude_defaults=True))
        place = slug(path if isinstance(getattr(found.get(section), field, None), BaseModel) else section or "The run")
        rows.append(f"| `{name}` | [`{path}`](#{place}) | {DERIVED.get(name) or shown(value)} |\n")
    return ARGUMENTS + "".join(rows)


def place_of(argument: str) -> str | None:
    """The setting that an argument of `DistributionalPPO` is; None: there is none."""
    if argument in NetworkConfig.model_fields:
        return f"model.network.{argument}"
    return RENAMED.get(argument) or (f"model.{argument}" if argument in ModelConfig.model_fields else None)


def what(path: str, name: str, field: Any) -> str:
    """What a setting may be."""
    key = ".".join([path, name])
    ranges = {".".join(["model", *path_of(number)]): bounds for number, bounds in HYPERPARAMS.items()}
    if key not in ranges:
        return words(field.annotation, field.metadata)
    low, high = ranges[key]
    null = ", or `null`" if NoneType in get_args(field.annotation) else ""
    return f"{low:g} to {high:g}{null}; tunable"


def words(kind: Any, limits: Any = ()) -> str:
    """A type in words.

    Args:
        kind: the annotation.
        limits: what else is known of it, as pydantic's metadata.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return words(inner[0], inner[1:])
    if origin in (Union, UnionType):
        several = [
            words(each, limits) for each in inner if each is not NoneType and not (each is int and float in inner)
        ]
        return ", ".join(dict.fromkeys(several)) + (", or `null`" if NoneType in inner else "")
    if origin is Literal:
        return ", ".join(map(shown, inner))
    if origin is tuple and Ellipsis not in inner:
        return f"[{', '.join(map(words, inner))}]"
    if origin in (list, tuple):
        of = inner[0]
        if of in ENTRIES:
            return f"list of [entries](#{slug(f'Entries of {ENTRIES[of]}')})"
        return f"list of {words(of).replace('number', 'numbers')}"
    if origin is dict:
        return "names and values"
    if any(getattr(each, "func", None) is reference for each in limits):
        return "`module:name`"
    for each in limits:
        if isinstance(each, Kinds):
            return ", ".join(f"`{choice}`" for choice in each.choices)
    return NAMES[kind] + interval(limits)


NAMES = {bool: "`true` or `false`", int: "whole number", float: "number", str: "text", Path: "path", Any: "values"}


def interval(limits: Any) -> str:
    """Bounds in words."""
    found: dict[str, Any] = {}
    for each in limits:
        for one in getattr(each, "metadata", [each]):  # a Field holds several
            found |= {name: getattr(one, name) for name in ("ge", "gt", "le", "lt") if hasattr(one, name)}
    signs = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}
    return " and".join(f" {signs[name]} {value:,}".removesuffix(".0") for name, value in found.items())


def default(field: Any) -> str:
    """A setting's default."""
    if field.default_factory not in (None, dataclasses.MISSING):
        return "as it says"
    if field.default in (PydanticUndefined, dataclasses.MISSING):
        return "required"
    return shown(field.default)


def shown(value: Any) -> str:
    """A value as YAML writes it."""
    if isinstance(value, Path):
        return f"`{value}`"
    value = list(value) if isinstance(value, tuple) else value
    return f"`{yaml.safe_dump(value, default_flow_style=True).removesuffix(chr(10)).removesuffix('...').strip()}`"


def row(key: str, kind: str, default: str, sentence: str | None) -> str:
    """A line of a table."""
    return f"| `{key}` | {kind} | {default} | {' '.join((sentence or '').split())} |\n"


def table(rows: list[str]) -> str:
    """The table; nothing for a section that only holds others."""
    return "\n| setting | what it may be | default | meaning |\n|---|---|---|---|\n" + "".join(rows) if rows else ""


def told(kind: type) -> str:
    """The first paragraph of a class's docstring."""
    return " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split()) + "\n"


def link(title: str) -> str:
    """A link to a section of the page."""
    return f"[{title}](#{slug(title)})"


def slug(title: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")


if __name__ == "__main__":
    FILE.write_text(document(), encoding="utf-8")
