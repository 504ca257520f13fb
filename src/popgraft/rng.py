"""Random generators that derive from (run seed, purpose, place), never from global state.

Two streams with different paths are independent, and a stream depends on its path alone: member 3 of a population of 4
draws the same numbers as member 3 of a population of 16.
"""

import zlib

import numpy as np
import torch
from torch import Tensor


def _sequence(seed: int, path: tuple[str | int, ...]) -> np.random.SeedSequence:
    words = [zlib.crc32(part.encode()) if isinstance(part, str) else part for part in path]
    return np.random.SeedSequence(entropy=seed, spawn_key=tuple(words))


def derive(seed: int, *path: str | int) -> int:
    """A 31-bit seed for the stream named by `path`, for libraries that take an integer."""
    return int(_sequence(seed, path).generate_state(1)[0] >> 1)


def numpy_generator(seed: int, *path: str | int) -> np.random.Generator:
    """NumPy generator of the stream named by `path`."""
    return np.random.default_rng(_sequence(seed, path))


def torch_generator(seed: int, *path: str | int) -> torch.Generator:
    """CPU generator of the stream named by `path`; draws move to the device, so that every device sees the same."""
    high, low = (int(word) for word in _sequence(seed, path).generate_state(2))
    return torch.Generator().manual_seed((high << 31) ^ low)


def to_device(drawn: Tensor, device: torch.device) -> Tensor:
    """Moves what CPU generators have drawn to the device, without waiting for the work that is queued there."""
    if device.type == "cuda":
        drawn = drawn.pin_memory()  # from other memory a copy would wait
    return drawn.to(device, non_blocking=True)
