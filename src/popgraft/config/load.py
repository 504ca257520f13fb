"""Reads YAML and overrides into a `Config`, and turns every mistake into one readable `ConfigError`."""

import functools
import operator
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from popgraft.config.explain import explain
from popgraft.config.model import path_of
from popgraft.config.schema import Config
from popgraft.config.shipped import FOLDER, named
from popgraft.disk import read_file, reason
from popgraft.errors import ConfigError
from popgraft.messages import one_line

S = TypeVar("S", bound=BaseModel)

FLOAT = "tag:yaml.org,2002:float"
TIMESTAMP = "tag:yaml.org,2002:timestamp"
LARGEST = 2**22
"""Bytes of a file of settings at most."""
MERGED, VALUES, DEPTH = 1000, 100_000, 50
"""Keys that a mapping may get from others, values in a file with all that its aliases stand for, and their nesting."""
EXPONENT = (FLOAT, re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+0123456789."))
"""1e-4 is a number, as in YAML 1.2; YAML 1.1 asks for 1.0e-4."""


class _Loader(yaml.SafeLoader):
    """Safe YAML without dates, and in which a repeated key is an error."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key)
            if name in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} appears twice", key.start_mark)
            seen.add(name)
        return node

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MERGED:
            raise yaml.constructor.ConstructorError(None, None, f"<< brings more than {MERGED:,} keys", node.start_mark)


class _Dumper(yaml.SafeDumper):
    """Writes what `_Loader` reads: without aliases, and with quotes around strings that look like 1e-4."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(*EXPONENT)
_Dumper.add_implicit_resolver(*EXPONENT)


def read_yaml(text: str, source: str) -> Any:
    """Parses YAML safely. `source` names the text in errors.

    Raises:
        ConfigError: the text is not valid YAML.
    """
    try:
        value = yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        reason = ", ".join(part for part in (error.context, error.problem) if part)
        raise ConfigError(f"{source} is not valid YAML{where}: {reason}") from None
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as error:  # what tags do to odd values, too
        raise ConfigError(f"{source} is not valid YAML: {error}") from None
    _check_extent(value, source)
    return value


def load_config(
    source: str | Path | Mapping[str, Any] | Config, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Config:
    """Builds a validated configuration, which knows from where its modules come: `code_dir` is absolute.

    Args:
        source: path of a YAML file, name of a configuration that comes along ("quickstart"), id of an environment
            ("CartPole-v1", which is trained with defaults), a mapping of a file's shape, or a `Config`.
        overrides: settings that win over `source`: a mapping from dotted keys to values ({"env.id": "LunarLander-v3"})
            or strings "env.id=LunarLander-v3" whose right side is read as YAML.

    Raises:
        ConfigError: names every wrong setting, with the nearest valid name for an unknown key.
    """
    found = named(source) if isinstance(source, str) else source
    config = load_as(Config, found, overrides)
    base = found.parent if isinstance(found, Path) and found.parent != FOLDER else Path()
    return config.model_copy(update={"code_dir": Path(os.path.abspath(base / (config.code_dir or "")))})


def load_as(
    kind: type[S], source: str | Path | Mapping[str, Any] | S, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> S:
    """`load_config` for any outermost section.

    Args:
        kind: the section.
        source: path of a YAML file, a mapping of the same shape, or a `kind`.
        overrides: settings that win over `source`.

    Raises:
        ConfigError: names every wrong setting.
    """
    name = "the configuration"
    if isinstance(source, kind):
        raw: Any = source.model_dump(exclude_unset=True)
    elif isinstance(source, Mapping):
        raw = _copy(source)
    else:
        name = one_line(str(source))
        raw = _read_file(Path(str(source)), name)
        if kind is Config and isinstance(raw, dict) and _of_another_command(raw):
            raise ConfigError(
                f"{name} is for PBTTrainingCoordinator, which trains models of other libraries (docs/pbt.md), and not "
                f"for popgraft's own agents; run: python examples/pbt_with_sb3.py {name}"
            )
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must hold settings as `key: value`, not a {type(raw).__name__}")
    texts = [overrides] if isinstance(overrides, str) else overrides
    pairs = texts.items() if isinstance(texts, Mapping) else [_parse_assignment(text) for text in texts]
    for key, value in pairs:
        _assign(raw, key, _copy(value))
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(explain(error, name, kind)) from None


def _of_another_command(raw: dict[str, Any]) -> bool:
    """Whether settings are those of the coordinator, by what only it has."""
    pbt = raw.get("pbt")
    return "adversarial" in raw or (
        isinstance(pbt, dict) and not pbt.keys().isdisjoint(("metric_name", "checkpoint_dir"))
    )


def dump_config(config: Config) -> str:
    """Writes every setting as YAML; `load_config` reads an equal configuration back.

    A number that a population tunes and that nobody has set stays out: its initial value is the population's draw.
    """
    return yaml.dump(_settings(config), Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def flat_config(config: Config) -> dict[str, Any]:
    """What `dump_config` writes, by dotted keys."""

    def walk(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for key, value in node.items():
            if isinstance(value, dict):
                yield from walk(value, f"{prefix}{key}.")
            else:
                yield f"{prefix}{key}", value

    return dict(walk(_settings(config), ""))


def _settings(config: Config) -> dict[str, Any]:
    values = config.model_dump(mode="json")
    for space in config.pbt.hyperparams:
        if not config.model.sets(space.name):
            *sections, name = path_of(space.name)
            del functools.reduce(operator.getitem, sections, values["model"])[name]
    return values


def _check_extent(value: Any, source: str) -> None:
    """Refuses values that contain themselves, or each other, without end."""
    pending, count = [(value, 0)], 0
    while pending:
        node, depth = pending.pop()
        parts = list(node.values()) if isinstance(node, dict) else node if isinstance(node, list) else []
        count += len(parts)
        if depth > DEPTH or count > VALUES:
            raise ConfigError(
                f"{source} holds more than {VALUES:,} values, or is nested more than {DEPTH} deep, perhaps by an alias "
                "(*name) that contains itself; write out what is meant"
            )
        pending += [(part, depth + 1) for part in parts]


def _read_file(path: Path, name: str) -> Any:
    try:
        text = read_file(path, LARGEST).decode()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {name}: {reason(error)}") from None
    except ValueError as error:
        raise ConfigError(f"cannot read the configuration {name}, which must be UTF-8 text: {error}") from None
    raw = read_yaml(text, name)
    if raw is None:
        raise ConfigError(f"{name} is empty; it needs at least an environment, for example `env: {{id: CartPole-v1}}`")
    return raw


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in key.split(".")):
        raise ConfigError(f"--set {text!r} must have the form section.key=value, for example --set env.id=CartPole-v1")
    return key.strip(), read_yaml(value, f"--set {text}")


def _assign(raw: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key, going through lists by number, and creating sections that are not there yet."""
    *parents, last = key.split(".")
    node: Any = raw
    for depth, part in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        if isinstance(node, list):
            node = node[_position(node, part, key)]
        else:
            if node.get(part) is None:
                node[part] = {}
            node = node[part]
        if not isinstance(node, (dict, list)):
            raise ConfigError(f"cannot set {key}: {where} is a value ({node!r}), not a section")
    if isinstance(node, list):
        node[_position(node, last, key)] = value
    else:
        node[last] = value


def _position(node: list[Any], part: str, key: str) -> int:
    if not part.isdecimal() or int(part) >= len(node):
        positions = f"its positions are 0 to {len(node) - 1}" if node else "the list is empty"
        raise ConfigError(f"cannot set {key}: {part!r} is not a position in the list; {positions}")
    return int(part)
