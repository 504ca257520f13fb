"""What is worth compiling: loops over time, and over parameters, in C."""

from popgraft.native.library import call, native, serves

__all__ = ["call", "native", "serves"]
