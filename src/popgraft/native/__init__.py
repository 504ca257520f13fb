"""What is worth compiling: loops over time, and over parameters, in C."""

from popgraft.native.definition import DEFINITIONS, Definition
from popgraft.native.library import call, kept, native, serves

__all__ = ["DEFINITIONS", "Definition", "call", "kept", "native", "serves"]
