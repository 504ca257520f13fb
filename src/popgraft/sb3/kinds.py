"""Kinds of parts among the arguments of a model: a word, `module:Class` or a class, and their names in files."""

from collections.abc import Mapping
from typing import Any

from popgraft.config import ModelConfig
from popgraft.config.kinds import kinds_of
from popgraft.errors import ArgumentError

Kind = str | type[Any]
"""The word of a kind of a part, `module:Class`, or a class."""

KINDS = {path.rpartition(".")[2]: kinds for path, kinds in kinds_of(ModelConfig).items()}
"""Arguments that name a kind of a part."""


def named(given: Mapping[str, Any]) -> dict[str, Any]:
    """Settings with the names of kinds that may be given as classes, in files and everywhere else.

    Raises:
        ArgumentError: there is no such kind.
    """
    names = {}
    for name, kinds in KINDS.items():
        if name in given:
            try:
                names[name] = kinds.name(given[name])
            except ValueError as error:
                raise ArgumentError(f"{name}={given[name]!r} {error}") from None
    return {**given, **names}


def named_code(given: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every kind in a file that is named as `module:Class`, whose import runs code, by its argument.

    Raises:
        ValueError: what is named can be none.
    """
    said = ((name, kinds, given[name]) for name, kinds in KINDS.items() if isinstance(given.get(name), str))
    return [(name, code) for name, kinds, text in said if (code := kinds.name(text)) not in kinds.table]
