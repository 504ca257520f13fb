"""Draws from categorical distributions as functions of uniform noise."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import native
from popgraft.native import Definition


def by_choice(
    outputs: Float[Tensor, "pop *batch outputs"], sizes: Sequence[int]
) -> tuple[Float[Tensor, "_ pop *batch"], ...]:
    """Logits of every sub-action, choices first."""
    parts: tuple[Tensor, ...] = outputs.movedim(-1, 0).contiguous().split_with_sizes(sizes)
    return parts


@Definition
def draw(
    outputs: Float[Tensor, "pop *batch outputs"], noise: Float[Tensor, "pop *batch dims"], sizes: tuple[int, ...]
) -> Int[Tensor, "pop *batch dims"]:
    """Of every sub-action the first choice whose cumulative probability exceeds the noise.

    Args:
        outputs: logits of all sub-actions, side by side.
        noise: uniform on [0, 1).
        sizes: choices of every sub-action.
    """
    actions = []
    for logits, u in zip(by_choice(outputs, sizes), noise.unbind(-1), strict=True):
        cumulative = logits.softmax(0).cumsum(0)
        below, whole = cumulative.narrow(0, 0, len(logits) - 1), cumulative.select(0, -1)
        # The last entry stands for 1, whatever rounding made of it; NaN compares as False and gives choice 0.
        actions.append((below <= u * whole).sum(0))
    return torch.stack(actions, dim=-1) if len(actions) > 1 else actions[0].unsqueeze(-1)


@draw.compiled()
def _draw_in_one_pass(outputs: Tensor, noise: Tensor, sizes: tuple[int, ...]) -> Tensor:
    chosen = torch.empty(noise.shape, dtype=torch.int64)
    tensors = outputs.contiguous(), noise.to(outputs.dtype).contiguous(), _as_tensor(sizes), chosen
    native.call("choose", tensors, (chosen.numel() // len(sizes), len(sizes)))
    return chosen


@functools.cache
def _as_tensor(sizes: tuple[int, ...]) -> Tensor:
    return torch.tensor(sizes)
