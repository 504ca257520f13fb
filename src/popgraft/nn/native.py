"""The LSTM's unroll in C, compiled for this processor when it is first needed.

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
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SOURCE = Path(__file__).with_name("lstm.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-shared", "-fPIC")
TENSORS = {"lstm_forward": 8, "lstm_backward": 9}
"""Functions of lstm.c: how many tensors they take, before the four sizes."""
PATIENCE = 60
"""Seconds that a compiler may take."""


class Native(NamedTuple):
    """What became of the compilation.

    Attributes:
        library: the functions of lstm.c; None: there are none.
        width: floats of a vector register.
        reason: why there is no library.
    """

    library: ctypes.CDLL | None
    width: int = 0
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
    for name, pointers in TENSORS.items():
        getattr(library, name).argtypes = [ctypes.c_void_p] * pointers + [ctypes.c_int64] * 4
    return Native(library, library.width())


def serves(gates: Tensor) -> bool:
    """Whether the library can unroll gates [pop, time, batch, 4H]: float32 on a CPU, H a multiple of its width.

    It cannot while PyTorch traces a graph, which has no memory to point to.
    """
    in_memory = gates.device.type == "cpu" and not torch.compiler.is_compiling()
    found = native() if in_memory and gates.dtype == torch.float32 else None
    return bool(found and found.library and (gates.shape[-1] // 4) % found.width == 0)


def unroll(gates: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, keep: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The unroll over time, given the input's share of the gates, which becomes the gates: nobody else may need it.

    Args:
        gates: x W + b [pop, T, B, 4H].
        weight: of the recurrence [pop, 4H, H].
        h0, c0: state before the first step [pop, B, H].
        keep: 0 where the state is zeroed before a step, else 1 [pop, T, B, 1].

    Returns:
        h of every step [pop, T, B, H], and h and c after the last.
    """
    if torch.is_grad_enabled():
        return _Recurrence.apply(gates, weight, h0, c0, keep)  # type: ignore[no-any-return, no-untyped-call]
    *_, cell, y = _forward(gates, weight, h0, c0, keep)
    return y, y[:, -1], cell[:, -1]


def _forward(*given: Tensor) -> tuple[Tensor, ...]:
    """What the backward pass needs: weight, c0, keep, gates, h before every step, c and h after it."""
    gates, weight, h0, c0, keep = (x.contiguous() for x in given)
    pop, time, batch, width = gates.shape
    h_in, cell, y = (gates.new_empty(pop, time, batch, width // 4) for _ in range(3))
    _call("lstm_forward", gates, weight, h0, c0, keep, h_in, cell, y)
    return weight, c0, keep, gates, h_in, cell, y


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        *saved, y = _forward(*given)
        ctx.save_for_backward(*saved)
        return y, y[:, -1].clone(), saved[-1][:, -1].clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor, dc_last: Tensor) -> tuple[Tensor | None, ...]:
        weight, c0, keep, gates, h_in, cell = ctx.saved_tensors
        dgates = torch.empty_like(gates)
        dh, dc = (x.clone(memory_format=torch.contiguous_format) for x in (dh_last, dc_last))
        _call("lstm_backward", gates, weight, c0, keep, cell, dy.contiguous(), dgates, dh, dc, like=cell)
        if not ctx.needs_input_grad[1]:  # an attack, which differentiates observations only
            return dgates, None, dh, dc, None
        return dgates, torch.bmm(dgates.flatten(1, 2).mT, h_in.flatten(1, 2)), dh, dc, None


def _call(name: str, *tensors: Tensor, like: Tensor | None = None) -> None:
    """Calls a function of the library with tensors, and the sizes pop, time, batch, H of the last or of `like`."""
    sizes = (tensors[-1] if like is None else like).shape
    if getattr(native().library, name)(*(tensor.data_ptr() for tensor in tensors), *sizes):
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
    key = hashlib.sha256(SOURCE.read_bytes() + machine.encode() + compiler.encode()).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "popgraft"
    path = folder / f"lstm-{key}.so"
    if not path.exists():
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            run("-o", f"{scratch}/lstm.so", str(SOURCE))
            Path(scratch, "lstm.so").replace(path)  # at once: several processes may be doing the same
    return path
