"""What is worth compiling: loops over time, and over parameters, in C."""

from popgraft.native.library import call, kept, native, serves

__all__ = ["call", "kept", "native", "serves"]
