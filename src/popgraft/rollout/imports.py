"""Imports what a configuration names as `module:name`."""

import importlib
from typing import Any

from popgraft.errors import ConfigError


def import_module(module: str, setting: str) -> Any:
    """Imports a module that the user named.

    Args:
        module: its dotted name.
        setting: the setting that names it, for the error.

    Raises:
        ConfigError: the module cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except Exception as error:  # a user's module may fail in any way
        raise ConfigError(
            f"{setting}: the module {module!r} cannot be imported: {type(error).__name__}: {error}; "
            "check the spelling, and that it is installed or on PYTHONPATH"
        ) from error


def import_name(path: str, setting: str) -> Any:
    """The object that `module:name` names.

    Args:
        path: dotted module, colon, name of something in it.
        setting: the setting that holds the path, for the error.

    Raises:
        ConfigError: the path has another form, the module cannot be imported, or it has no such name.
    """
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise ConfigError(f"{setting}={path!r} must have the form module:name")
    module = import_module(module_name, setting)
    try:
        return getattr(module, name)
    except AttributeError:
        raise ConfigError(f"{setting}={path!r}: the module {module_name!r} has no {name!r}") from None
