"""Makes a process one that finds what a script elsewhere has defined.

Processes that environments spawn run this file too, as it is: it imports neither popgraft nor PyTorch.
"""

import contextlib
import importlib.abc
import importlib.util
import os
import pickle
import sys
import tempfile
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import gymnasium as gym

SCRIPT = "__main__"
Sources = dict[str, tuple[str, bool]]
"""Of modules by their names: the source, and whether it is that of a package."""


def adopt(
    path: list[str], modules: list[str], content: bytes, others: list[bytes], sources: Sources
) -> Callable[..., Any] | None:
    """Makes this process one that finds everything, and returns the factory; see `Definitions` for the arguments.

    Raises:
        Exception: a module is not on this machine.
    """
    sys.path[:] = dict.fromkeys([*path, *sys.path])
    if sources:
        sys.meta_path.append(_Carried(sources))  # the last to be asked: files that are there come first
    factory, scripts, specs = pickle.loads(content)
    for name, attributes in scripts.items():
        sys.modules[name] = script = ModuleType(name)
        vars(script).update(attributes)
    for module in modules:
        with contextlib.suppress(Exception):  # making the environment says what is wrong
            importlib.import_module(module)
    for packed in others:
        with contextlib.suppress(Exception):  # as above
            gym.registry.update([pickle.loads(packed)])
    gym.registry.update(specs)
    warnings.filterwarnings("ignore", ".*Overriding environment", UserWarning)  # by a module that is imported later
    return factory  # type: ignore[no-any-return]


def hand_on(*adopted: Any) -> None:
    """Has processes that environments of this one spawn adopt the same: each begins by running the file of its parent's
    main module, where there is one.

    Args:
        adopted: arguments of `adopt`.
    """
    text = f"import runpy; globals().update(runpy.run_path({__file__!r})['taken_over']({pickle.dumps(adopted)!r}))\n"
    main: Any = sys.modules[SCRIPT]
    main.__spec__, main.__file__ = None, _file(text.encode())


def taken_over(adopted: bytes) -> dict[str, Any]:
    """What the main module of a spawned process is to hold."""
    with contextlib.suppress(Exception):  # what is missing shows where it is looked for
        adopt(*pickle.loads(adopted))
    return {name: value for name, value in vars(sys.modules[SCRIPT]).items() if not name.startswith("__")}


def _file(content: bytes) -> str:
    """Path of a file that is there for as long as this process, and vanishes with it where the system can do that."""
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("popgraft")
        path = f"/proc/{os.getpid()}/fd/{number}"
    else:
        number, path = tempfile.mkstemp(".py", "popgraft_")
    os.write(number, content)
    return path


class _Carried(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports modules from their sources."""

    def __init__(self, sources: Sources) -> None:
        self._sources = sources

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        return importlib.util.spec_from_loader(fullname, self) if fullname in self._sources else None

    def get_source(self, fullname: str) -> str:
        return self._sources[fullname][0]

    def is_package(self, fullname: str) -> bool:
        return self._sources[fullname][1]
