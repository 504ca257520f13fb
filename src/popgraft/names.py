"""What a configuration names as `module:name`, and where modules of the user's are looked for."""

import contextlib
import difflib
import importlib
import importlib.util
import os
import pkgutil
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from popgraft.errors import ConfigError
from popgraft.messages import told

SCRIPT = "__main__"
"""The module of the script, notebook or command that runs."""


@contextlib.contextmanager
def searched(folder: str | Path | None = None) -> Iterator[None]:
    """Looks for modules also in a folder and in the current one, after all places where Python looks by itself.

    Args:
        folder: of the configuration; None: only the current one.
    """
    there = [str(folder)] if folder is not None else []
    with contextlib.suppress(OSError):  # the current folder has been deleted
        there.append(os.getcwd())
    added = [path for path in dict.fromkeys(there) if path not in sys.path]
    sys.path += added
    try:
        yield
    finally:
        for path in added:
            with contextlib.suppress(ValueError):  # somebody has taken it away
                sys.path.remove(path)


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
        raise ConfigError(f"{setting}={path!r}: {_lacking(module_name, module, name)}") from None


def import_module(name: str, setting: str) -> ModuleType:
    """Imports a module that the user named; the script that runs is not run again, by whatever name it goes.

    Args:
        name: its dotted name.
        setting: the setting that names it, for the error.

    Raises:
        ConfigError: the module cannot be imported.
    """
    importlib.invalidate_caches()  # it may have been written a moment ago
    with searched():
        if is_script(name):
            return sys.modules[SCRIPT]
        replaced = _forget_namesake(name)
        try:
            with warnings.catch_warnings():
                if replaced:
                    warnings.filterwarnings("ignore", ".*Overriding environment", UserWarning)  # as it is meant to
                return importlib.import_module(name)
        except (Exception, SystemExit) as error:  # a user's module may fail in any way
            raise ConfigError(f"{setting}: {_unimportable(name, error)}") from error


def is_script(name: str) -> bool:
    """Whether a module is the script that runs, which Python would run once more if it were imported by its name."""
    file = getattr(sys.modules[SCRIPT], "__file__", None)
    if name == SCRIPT or file is None or name in sys.modules or Path(file).stem != name.rpartition(".")[2]:
        return name == SCRIPT
    with contextlib.suppress(Exception):  # a package on the way to it that fails: importing the module says so
        spec = importlib.util.find_spec(name)
        return spec is not None and spec.origin is not None and os.path.samefile(spec.origin, file)
    return False


def _forget_namesake(name: str) -> bool:
    """Drops a module that was imported from where nobody looks any more, such as the folder of another run, if there is
    another one of its name now.
    """
    top = name.partition(".")[0]
    known: str | None = getattr(getattr(sys.modules.get(top), "__spec__", None), "origin", None)
    finders = [finder for finder in sys.meta_path if hasattr(finder, "find_spec")]
    specs = (finder.find_spec(top, None) for finder in finders) if known else iter(())
    found = next((spec.origin for spec in specs if spec is not None), None)
    if known is None or found is None or Path(found).resolve() == Path(known).resolve():
        return False
    for module in [module for module in sys.modules if module == top or module.startswith(f"{top}.")]:
        del sys.modules[module]
    return True


def _unimportable(name: str, error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
        near = difflib.get_close_matches(name, [module.name for module in pkgutil.iter_modules()], n=3)
        return (
            f"there is no module {error.name!r} in code_dir, in the current folder, or where Python looks"
            f"{_meant(near)}; install it, or name its folder with code_dir (on the command line --set code_dir=FOLDER)"
        )
    return f"the module {name!r} cannot be imported: {told(error)}; that is what its own code says, so correct it there"


def _lacking(module_name: str, module: ModuleType, name: str) -> str:
    if module_name == SCRIPT:
        return (
            f"{SCRIPT} is the program that runs now, and it has no {name!r}{_meant(_near(name, module))}; go on from "
            f"the script or notebook that defines it, or move {name} into a module and name that"
        )
    file = getattr(module, "__file__", None)
    place = f" ({file})" if file else ""
    return f"the module {module_name!r}{place} has no {name!r}{_meant(_near(name, module))}"


def _near(name: str, module: ModuleType) -> list[str]:
    return difflib.get_close_matches(name, dir(module), n=3)


def _meant(near: list[str]) -> str:
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
