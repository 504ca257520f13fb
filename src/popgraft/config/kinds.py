"""Kinds of a part: the built-in ones by a word, everybody else's as `module:Class`, all of them on one protocol."""

import dataclasses
import functools
import pkgutil
import sys
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from popgraft.config.fields import reference
from popgraft.errors import ConfigError
from popgraft.messages import told
from popgraft.names import import_name


@dataclasses.dataclass(frozen=True, eq=False)
class Kinds:
    """What can stand in a field `Annotated[str, KINDS]`: a word, `module:Class`, or in Python a class.

    The classes are named and not imported, so that a configuration can be read without them, and without running code
    that it names.

    Attributes:
        setting: dotted name of the setting.
        protocols: `module:Class` of what every kind is a subclass of: one of them.
        table: `module:Class` by word; None: the part is absent, or follows from something else.
    """

    setting: str
    protocols: tuple[str, ...]
    table: Mapping[str, str | None]

    @property
    def choices(self) -> list[str]:
        """What can be said."""
        return [*self.table, "module:Class"]

    def name(self, given: Any) -> str:
        """The word of a kind, or its `module:Class`.

        Raises:
            ValueError: it is neither, or a class that no other process could find.
        """
        if isinstance(given, type):
            path = f"{given.__module__}:{given.__qualname__}"
            if getattr(sys.modules.get(given.__module__), given.__qualname__, None) is not given:
                raise ValueError(
                    f"{path} is not what its module has under that name, so that no other process could find it; "
                    "define the class at the top level of a module or script"
                )
        elif isinstance(given, str) and (given in self.table or ":" in given):
            path = given if given in self.table else reference(given)
        else:
            words = f"one of {', '.join(self.table)}, or " if self.table else ""
            raise ValueError(f"must be {words}module:Class")
        return next((word for word, known in self.table.items() if known == path), path)

    def load(self, name: str) -> Any:
        """The class that a word or `module:Class` stands for; None where the table says so.

        Raises:
            ConfigError: there is no such class, or it cannot serve as this part.
        """
        if name in self.table:
            path = self.table[name]
            return None if path is None else pkgutil.resolve_name(path)
        found = import_name(name, self.setting)
        if not (isinstance(found, type) and issubclass(found, tuple(map(pkgutil.resolve_name, self.protocols)))):
            wanted = " or of ".join(path.replace(":", ".") for path in self.protocols)
            raise ConfigError(f"{self.setting}={name!r} is {found!r}; name a subclass of {wanted}")
        if lacking := ", ".join(sorted(getattr(found, "__abstractmethods__", ()))):
            raise ConfigError(f"{self.setting}={name!r} lacks {lacking}; define what is missing in {found.__name__}")
        return found

    def make(self, name: str, *given: Any, **kwargs: Any) -> Any:
        """An object of a kind that `load` finds.

        Raises:
            ConfigError: it is not to be found, or cannot be made of these arguments.
        """
        cls = self.load(name)
        try:
            return cls(*given, **kwargs)
        except Exception as error:
            if name in self.table:
                raise
            raise ConfigError(
                f"{self.setting}={name!r}: {cls.__name__} cannot be made with {kwargs} ({told(error)}); "
                f"correct {self.setting}_kwargs or the constructor"
            ) from error

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A string that `name` has checked."""
        return core_schema.no_info_before_validator_function(self.name, handler(source))


def kinds_of(section: type[BaseModel]) -> dict[str, Kinds]:
    """Every setting of a section, and of the sections in it, that names a kind, by its dotted name."""
    found: dict[str, Kinds] = {}
    for name, field in section.model_fields.items():
        for kinds in field.metadata:
            if isinstance(kinds, Kinds):
                found[name] = kinds
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= {f"{name}.{path}": kinds for path, kinds in kinds_of(field.annotation).items()}
    return found


def chosen_kinds(section: BaseModel) -> Iterator[tuple[Kinds, str]]:
    """The same with what the settings say."""
    for path, kinds in kinds_of(type(section)).items():
        yield kinds, functools.reduce(getattr, path.split("."), section)  # type: ignore[misc]
