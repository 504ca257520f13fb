"""Loops in C, compiled for this processor when they are first needed.

The library lies in the user's cache (XDG_CACHE_HOME, or ~/.cache) under a name that follows from source, compiler,
flags and processor, and from its own content, by which a damaged one is known before it is loaded. Where there is no
compiler, or with POPGRAFT_NATIVE=0, PyTorch does the same. Another processor's instructions may be asked for by the
name that compilers have for it (POPGRAFT_NATIVE=x86-64-v3).
"""

import contextlib
import ctypes
import fcntl
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

SOURCES = sorted(Path(__file__).parent.glob("*.[ch]"))
FLAGS = ("-O3", "-fno-math-errno", "-shared", "-fPIC")
FUNCTIONS = {
    "pack": (2, 7),
    "recurrent_forward": (10, 7),
    "recurrent_backward": (9, 7),
    "choose": (4, 2),
    "accumulate": (5, 4),
    "scan": (5, 7),
    "mingru_forward": (9, 6),
    "mingru_backward": (10, 4),
    "adam": (6, 2),
    "upgd_track": (8, 3),
    "upgd_descend": (8, 3),
    "tanh_forward": (2, 1),
    "tanh_backward": (3, 1),
}
"""How many tensors every function takes, and how many whole numbers behind them."""
PATIENCE = 60
"""Seconds that a compiler may take."""
WAIT = 60
"""Seconds for which others wait for it."""


class Native(NamedTuple):
    """What became of the compilation.

    Attributes:
        library: the functions; None: there are none.
        width: floats of a vector register.
        rounds: whether the processor multiplies bfloat16 numbers.
        reason: why there is no library.
        name: follows from source, compiler, flags and processor.
    """

    library: ctypes.CDLL | None
    width: int = 0
    rounds: bool = False
    reason: str = ""
    name: str = ""

    def describe(self) -> str:
        """What computes here: the same words in two processes mean the same arithmetic."""
        if self.library is None:
            return "PyTorch"
        return f"{self.name}, {self.width} floats at once" + ", bfloat16" * self.rounds


@functools.cache
def native() -> Native:
    """The compiled library, which the first call makes or finds."""
    processor = os.environ.get("POPGRAFT_NATIVE") or "native"
    if processor == "0":
        return Native(None, reason="POPGRAFT_NATIVE=0 turns it off")
    compiler = _compiler()
    if not compiler:
        return Native(None, reason="there is no C compiler; install one (gcc or clang), or name it in CC")
    try:
        library, name = _library(compiler, processor)
    except subprocess.CalledProcessError as error:
        first = next((line for line in error.stderr.splitlines() if "error" in line), f"exit status {error.returncode}")
        return Native(None, reason=f"{compiler[0]} failed: {first}")
    except (OSError, subprocess.TimeoutExpired) as error:
        return Native(None, reason=f"{compiler[0]} did not get it done: {error}")
    for function, (tensors, numbers) in FUNCTIONS.items():
        getattr(library, function).argtypes = [ctypes.c_void_p] * tensors + [ctypes.c_int64] * numbers
    return Native(library, library.width(), bool(library.rounds()), name=name)


def kept(what: str, measure: Callable[[], str]) -> str | None:
    """What was measured of the library when it was first asked for; None where that cannot be kept beside it.

    Of several processes that measure at once the first one counts for all.
    """
    try:
        folder = _folder()
        place = folder / f"{native().name}.{what}"
        if not place.exists():
            with tempfile.TemporaryDirectory(dir=folder) as scratch, contextlib.suppress(FileExistsError):
                found = Path(scratch, what)
                found.write_text(measure())
                place.hardlink_to(found)
        return place.read_text()
    except OSError:
        return None


def serves(x: Tensor) -> bool:
    """Whether the functions can take a tensor: float32 on a CPU.

    They cannot while PyTorch traces a graph, which has no memory to point to.
    """
    in_memory = x.is_cpu and not torch.compiler.is_compiling()
    return in_memory and x.dtype == torch.float32 and native().library is not None


def call(name: str, tensors: Sequence[Tensor], numbers: Sequence[int]) -> None:
    """Calls a function with tensors, contiguous but for members that lie apart by one of the whole numbers.

    Raises:
        MemoryError: it found no memory for its own use.
    """
    if getattr(native().library, name)(*(tensor.data_ptr() for tensor in tensors), *numbers):
        raise MemoryError("there is no memory left for a memory's weights, or an action's chances")


def _compiler() -> list[str]:
    """The program that CC names, and what stands behind its name; nothing where there is no such program."""
    given = os.environ.get("CC", "cc")
    try:
        name, *flags = [given] if shutil.which(given) else shlex.split(given)
    except ValueError:  # an open quotation, or no word at all
        return []
    program = shutil.which(name)
    return [program, *flags] if program else []


def _library(compiler: list[str], processor: str) -> tuple[ctypes.CDLL, str]:
    """The library and its name; it is compiled unless the cache has it.

    Raises:
        OSError: there is nowhere to put it, or it cannot be loaded.
        subprocess.CalledProcessError, subprocess.TimeoutExpired: the compiler fails.
    """
    command = [*compiler, *FLAGS, f"-march={processor}"]

    def run(*arguments: str) -> str:
        found = subprocess.run(
            [*command, *arguments],
            check=True,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            stdin=subprocess.DEVNULL,
        )
        return found.stdout

    machine = run("-dM", "-E", "-x", "c", os.devnull)  # compiler and processor, as macros
    words = "\0".join([machine, *command]).encode()
    folder, name = _folder(), f"native-{_digest(b''.join(source.read_bytes() for source in SOURCES) + words)}"
    if library := _found(folder, name):
        return library, name
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _alone(folder), tempfile.TemporaryDirectory(dir=folder) as scratch:
        if library := _found(folder, name):  # from who was here before
            return library, name
        made = Path(scratch, "native.so")
        run("-o", str(made), *(str(source) for source in SOURCES if source.suffix == ".c"))
        with made.open("r+b") as file:
            os.fsync(file.fileno())
            digest = _digest(file.read())
        library = ctypes.CDLL(str(made))  # from here, where no other process removes it
        made.replace(folder / f"{name}-{digest}.so")  # at once: others may look for it
    return library, name


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Waits until nobody else compiles, but not for ever, nor where files cannot be locked: that only saves work."""
    descriptor, end = os.open(folder, os.O_RDONLY), time.monotonic() + WAIT
    try:
        while time.monotonic() < end:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.05)
            except OSError:
                break
        yield
    finally:
        os.close(descriptor)


def _folder() -> Path:
    """The user's cache.

    Raises:
        OSError: there is no home that it could be in.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popgraft"
    except RuntimeError:
        raise OSError("there is no home for the cache; set XDG_CACHE_HOME to a folder of yours") from None


def _found(folder: Path, prefix: str) -> ctypes.CDLL | None:
    """The library of that name in the cache; what is damaged or cannot be loaded is removed."""
    for path in sorted(folder.glob(f"{prefix}-*.so")):
        with contextlib.suppress(OSError):
            if path.stem == f"{prefix}-{_digest(path.read_bytes())}":
                return ctypes.CDLL(str(path))
        with contextlib.suppress(OSError):
            path.unlink()
    return None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
