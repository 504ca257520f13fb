"""Versions that the results of a run depend on."""

import importlib.metadata
import platform

from popgraft.native import native

PACKAGES = ("popgraft", "torch", "numpy", "gymnasium")


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of those that compute, and whether the LSTM is compiled."""
    lstm = f"compiled, {native().width} floats at once" if native().library else "pytorch"
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"python": platform.python_version(), **packages, "lstm": lstm}
