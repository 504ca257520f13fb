"""Members in memory that two processes share, so that reading or overwriting a row needs no message."""

import math
import mmap
import os

import torch
from torch import Tensor

from popgraft import tree
from popgraft.state import Member

ALIGNMENT = 64
"""Every leaf begins at a multiple of this many bytes, as the allocator's own tensors do."""


def _room(leaf: Tensor) -> int:
    return math.ceil(leaf.numel() * leaf.element_size() / ALIGNMENT) * ALIGNMENT


def shared(member: Member, file: int) -> Member:
    """The same members, whose leaves lie in the memory of an open file; whoever maps it next sees the same bytes.

    Args:
        member: gives structure, shapes and, when the file is empty, the contents.
        file: descriptor of a file; an empty one is filled.
    """
    size = sum(_room(leaf) for _, leaf in tree.items(member))
    empty = os.fstat(file).st_size == 0
    if empty:
        os.ftruncate(file, size)
    memory, used = mmap.mmap(file, size), 0

    def place(leaf: Tensor) -> Tensor:
        nonlocal used
        if leaf.numel() == 0:
            return leaf
        placed = torch.frombuffer(memory, dtype=leaf.dtype, count=leaf.numel(), offset=used).view(leaf.shape)
        used += _room(leaf)
        return placed.copy_(leaf) if empty else placed

    return tree.map(place, member)
