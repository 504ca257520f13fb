"""Says in the user's words what pydantic found wrong with a configuration."""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

WORDS = {
    "Input should be": "must be",
    "a valid boolean": "true or false",
    "a valid integer": "an integer",
    "a valid tuple": "a list",
    "a valid ": "a ",
}
"""Pydantic's phrases, and what a user reads instead."""


def explain(error: ValidationError, name: str, root: type[BaseModel]) -> str:
    """One line for every wrong setting, under a heading that names the configuration.

    Args:
        error: what pydantic found.
        name: what the configuration is called.
        root: its outermost section, in which the nearest name for an unknown key is looked for.
    """
    # A default that follows from other settings waits for these to be right.
    problems = [problem for problem in error.errors() if problem["type"] != "default_factory_not_called"]
    lines = list(dict.fromkeys(_line(problem, root) for problem in problems))
    heading = f"{name} has {len(lines)} wrong settings" if len(lines) > 1 else f"{name} has a wrong setting"
    return "\n  ".join([f"{heading}:", *lines])


def _line(problem: Any, root: type[BaseModel]) -> str:
    # Parts in brackets are pydantic's own: the branch of a union, or a key instead of its value.
    path = ".".join(str(part) for part in problem["loc"] if "[" not in str(part))
    value = problem["input"]
    match problem["type"]:
        case "extra_forbidden" | "unexpected_keyword_argument" | "invalid_key":
            return _unknown_key(problem["loc"], root)
        case "missing":
            return f"{path} is missing; add it"
        case "model_type" | "dataclass_type" | "dict_type":
            message = "must hold settings as `key: value`"
        case "path_type":
            message = "must be a path"
        case _:
            message = problem["msg"].removeprefix("Value error, ")
            for phrase, words in WORDS.items():
                message = message.replace(phrase, words)
    shown = f" = {value!r}" if value is None or isinstance(value, (str, int, float)) else ""
    return f"{path}{shown}: {message}" if path else message


def _unknown_key(location: tuple[str | int, ...], root: type[BaseModel]) -> str:
    *section, key = location
    kind: Any = root
    for part in section:
        kind = _fields(kind)[part] if isinstance(part, str) else get_args(kind)[0]
    where = f"in {'.'.join(str(part) for part in section)}" if section else "at the top level"
    elsewhere = [path for path in _paths(root) if path.rpartition(".")[2] == key]
    near = difflib.get_close_matches(str(key), _fields(kind), n=1, cutoff=0.5)
    if elsewhere or near:
        return f"unknown key {key!r} {where}; did you mean {' or '.join(elsewhere or near)}?"
    return f"unknown key {key!r} {where}; the keys there are {', '.join(sorted(_fields(kind)))}"


def _fields(kind: Any) -> dict[str, Any]:
    """Names in a section, with their types."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: field.annotation for name, field in kind.model_fields.items()}
    return {field.name: field.type for field in dataclasses.fields(kind)}


def _paths(kind: Any, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings outside lists."""
    for name, child in _fields(kind).items():
        yield f"{prefix}{name}"
        if isinstance(child, type) and issubclass(child, BaseModel):
            yield from _paths(child, f"{prefix}{name}.")
