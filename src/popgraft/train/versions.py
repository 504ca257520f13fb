"""Versions that the results of a run depend on."""

import importlib.metadata
import platform

PACKAGES = ("popgraft", "torch", "numpy", "gymnasium")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that compute."""
    return {"python": platform.python_version(), **{name: importlib.metadata.version(name) for name in PACKAGES}}
