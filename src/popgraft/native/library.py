"""Loops in C, compiled for this processor when they are first needed.

The library lies in the user's cache (XDG_CACHE_HOME, or ~/.cache) under a name that follows from source, compiler and
processor. Where there is no compiler, or with POPGRAFT_NATIVE=0, PyTorch does the same, several times slower.
"""

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
FUNCTIONS = {
    "lstm_pack": (3, 6),
    "lstm_forward": (10, 6),
    "lstm_backward": (9, 6),
    "choose": (4, 2),
    "accumulate": (5, 4),
    "adam": (6, 2),
    "upgd_track": (8, 3),
    "upgd_descend": (8, 3),
    "tanh_forward": (2, 1),
    "tanh_backward": (3, 1),
}
"""How many tensors every function takes, and how many whole numbers behind them."""
PATIENCE = 60
"""Seconds that a compiler may take."""


class Native(NamedTuple):
    """What became of the compilation.

    Attributes:
        library: the functions; None: there are none.
        width: floats of a vector register.
        rounds: whether the processor multiplies bfloat16 numbers.
        reason: why there is no library.
    """

    library: ctypes.CDLL | None
    width: int = 0
    rounds: bool = False
    reason: str = ""


@functools.cache
def native() -> Native:
    """The compiled library, which the first call makes or finds."""
    if os.environ.get("POPGRAFT_NATIVE") == "0":
        return Native(None, reason="POPGRAFT_NATIVE=0 turns it off")
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        return Native(None, reason="there is no C compiler; install one (gcc or clang), or name it in CC")
    try:
        library = ctypes.CDLL(str(_built(compiler)))
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), f"exit status {error.returncode}")
        return Native(None, reason=f"{compiler} failed: {first}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Native(None, reason=f"{compiler} did not get it done: {error}")
    for name, (tensors, numbers) in FUNCTIONS.items():
        getattr(library, name).argtypes = [ctypes.c_void_p] * tensors + [ctypes.c_int64] * numbers
    return Native(library, library.width(), bool(library.rounds()))


def serves(x: Tensor) -> bool:
    """Whether the functions can take a tensor: float32 on a CPU.

    They cannot while PyTorch traces a graph, which has no memory to point to.
    """
    in_memory = x.device.type == "cpu" and not torch.compiler.is_compiling()
    return in_memory and x.dtype == torch.float32 and native().library is not None


def call(name: str, tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
    """Calls a function with tensors, contiguous but for members that lie apart by one of the whole numbers.

    Raises:
        MemoryError: it found no memory for its own use.
    """
    if getattr(native().library, name)(*(tensor.data_ptr() for tensor in tensors), *numbers):
        raise MemoryError("there is no memory left for an LSTM's weights")


def _built(compiler: str) -> Path:
    """Path of the library, compiled unless the cache has it.

    Raises:
        OSError: there is nowhere to put it.
        subprocess.CalledProcessError, subprocess.TimeoutExpired: the compiler fails.
    """

    def run(*arguments: str) -> str:
        command = [compiler, *FLAGS, *arguments]
        found = subprocess.run(
            command, check=True, capture_output=True, text=True, timeout=PATIENCE, stdin=subprocess.DEVNULL
        )
        return found.stdout

    machine = run("-dM", "-E", "-x", "c", os.devnull)  # compiler and processor, as macros
    key = hashlib.sha256(
        b"".join(source.read_bytes() for source in SOURCES) + machine.encode() + compiler.encode()
    ).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popgraft"
    path = folder / f"native-{key}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            run("-o", f"{scratch}/native.so", *(str(source) for source in SOURCES if source.suffix == ".c"))
            Path(scratch, "native.so").replace(path)  # at once: several processes may be doing the same
    return path
