"""Versions that the results of a run depend on."""

import importlib.metadata
import platform

from popgraft.native import native

PACKAGES = ("popgraft", "torch", "numpy", "gymnasium")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that compute, and what is compiled."""
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "native": native().describe()}
