"""Reads YAML and overrides into a `Config`, and turns every mistake into one readable `ConfigError`."""

import difflib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from popgraft.config.schema import Config
from popgraft.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-4 is a number, as in YAML 1.2, and a repeated key is an error."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} appears twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(text: str, source: str) -> Any:
    """Parses YAML safely. `source` names the text in errors.

    Raises:
        ConfigError: the text is not valid YAML.
    """
    try:
        return yaml.load(text, _Loader)  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not valid YAML: {error}") from None


def load_config(
    source: str | Path | Mapping[str, Any] | Config, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Config:
    """Builds a validated configuration.

    Args:
        source: path of a YAML file, a mapping of the same shape, or a `Config`.
        overrides: settings that win over `source`: a mapping from dotted keys to values ({"env.id": "LunarLander-v3"})
            or strings "env.id=LunarLander-v3" whose right side is read as YAML.

    Raises:
        ConfigError: names every wrong setting, with the nearest valid name for an unknown key.
    """
    if isinstance(source, Config):
        raw: Any = source.model_dump(exclude_unset=True)
        name = "the configuration"
    elif isinstance(source, Mapping):
        raw, name = _copy(source), "the configuration"
    else:
        name = str(source)
        try:
            text = Path(source).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"cannot read the configuration {name}: {error}") from None
        raw = read_yaml(text, name)
    if not isinstance(raw, dict):
        raise ConfigError(f"{name} must hold settings as `key: value`, not {type(raw).__name__}")
    pairs = overrides.items() if isinstance(overrides, Mapping) else [_parse_assignment(text) for text in overrides]
    for key, value in pairs:
        _assign(raw, key, value)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(_explain(error, name)) from None


def _copy(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _copy(child) for key, child in value.items()}
    return [_copy(child) for child in value] if isinstance(value, list) else value


def _parse_assignment(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
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
    if not part.isdigit() or int(part) >= len(node):
        raise ConfigError(f"cannot set {key}: {part!r} is not a position in a list of {len(node)}")
    return int(part)


def _explain(error: ValidationError, name: str) -> str:
    lines = []
    for problem in error.errors():
        path = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            lines.append(_unknown_key(problem["loc"]))
        elif problem["type"] == "missing":
            lines.append(f"{path} is missing; add it")
        else:
            message = problem["msg"].removeprefix("Value error, ")
            message = message[:1].lower() + message[1:] if message.startswith("Input") else message
            shown = "" if isinstance(problem["input"], dict) else f" = {problem['input']!r}"
            lines.append(f"{path}{shown}: {message}" if path else message)
    heading = f"{name} has {len(lines)} wrong settings" if len(lines) > 1 else f"{name} has a wrong setting"
    return "\n  ".join([f"{heading}:", *lines])


def _unknown_key(location: tuple[str | int, ...]) -> str:
    *section, key = location
    model: Any = Config
    for part in section:
        if isinstance(part, str) and isinstance(model, type) and issubclass(model, BaseModel):
            model = _section_type(model, part)
    names = list(getattr(model, "model_fields", None) or getattr(model, "__dataclass_fields__", {}))
    where = ".".join(str(part) for part in section) or "the top level"
    near = difflib.get_close_matches(str(key), names, n=1, cutoff=0.5)
    if near:
        return f"unknown key {key!r} in {where}; did you mean {near[0]!r}?"
    return f"unknown key {key!r} in {where}; the keys there are {', '.join(sorted(names))}"


def _section_type(model: type[BaseModel], field: str) -> Any:
    """The class of a section, also inside `list[Section]`."""
    annotation = model.model_fields[field].annotation
    return next((arg for arg in getattr(annotation, "__args__", ()) if isinstance(arg, type)), annotation)
