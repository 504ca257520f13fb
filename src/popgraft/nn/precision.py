"""Matrix products with factors of fewer bits.

Some processors that multiply bfloat16 numbers (AVX512-BF16, AMX, tensor cores) take less time for them. Factors
are rounded to eight significant bits, sums are float32. What rounds is the gradient of every layer, and compiled
memories forward too, who acts as much as who learns, so that probability ratios are those of one function. Layers that
are not recurrent stay exact forward, and with them what comes from the heads.
"""

import contextlib
import math
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 32
"""Features of a layer from which it pays to round its factors."""

_factors: ContextVar[torch.dtype | None] = ContextVar("factors", default=None)


@contextlib.contextmanager
def rounded_to(dtype: torch.dtype | None) -> Iterator[None]:
    """What is computed within takes factors of this type into its products, backward whenever it comes; None: exact."""
    token = _factors.set(dtype)
    try:
        yield
    finally:
        _factors.reset(token)


def factors(weight: Float[Tensor, "pop n_out n_in"]) -> torch.dtype:
    """Type of the factors in the products of a layer with these weights, if it is computed now."""
    dtype = _factors.get()
    return weight.dtype if dtype is None or min(weight.shape[1:]) < SMALLEST else dtype


def product(
    a: Float[Tensor, "pop m k"], b: Float[Tensor, "pop k n"], like: Float[Tensor, "..."]
) -> Float[Tensor, "pop m n"]:
    """a b with factors of a's type, and a result of the type of `like`.

    A row of a, or a member's b, that is not finite makes its own results NaN and nobody else's. Kernels for factors of
    fewer bits take several terms at once: at the end of a row they read on, into the next row or member, and multiply
    what they find by zero, which leaves a trace of NaN and infinities only.
    """
    b = b.to(a.dtype)
    if a.dtype == like.dtype:  # one term at a time: nothing is read that does not belong to the result
        return torch.bmm(a, b)
    if a.device.type == "cpu":  # where a look at a number waits for nothing
        out = torch.bmm(a, b).to(like.dtype)
        if math.isfinite(out.sum().item()):  # and so is every number that it is made of
            return out
    rows, members = (x.abs().amax(axes, keepdim=True) < torch.inf for x, axes in ((a, (2,)), (b, (1, 2))))
    out = torch.bmm(a.where(rows, 0), b.where(members, 0)).to(like.dtype)
    return out.masked_fill_(~(rows & members), torch.nan)


def of_weight(
    dy: Float[Tensor, "pop rows n_out"], x: Float[Tensor, "pop rows n_in"], like: Float[Tensor, "..."]
) -> Float[Tensor, "pop n_out n_in"]:
    """Gradient dyᵀ x of a layer's weight, with factors of dy's type.

    It has the wider of both on the right: products with few columns are slower than those with few rows.
    """
    if dy.shape[-1] > x.shape[-1]:
        return product(x.to(dy.dtype).mT, dy, like).mT
    return product(dy.mT, x, like)


def affine(
    x: Float[Tensor, "pop rows n_in"], weight: Float[Tensor, "pop n_out n_in"], bias: Float[Tensor, "pop n_out"]
) -> Float[Tensor, "pop rows n_out"]:
    """W x + b."""
    if torch.is_grad_enabled():
        return _Affine.apply(x, weight, bias)  # type: ignore[no-any-return, no-untyped-call]
    return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class _Affine(torch.autograd.Function):
    """`affine` with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.dtype = factors(weight)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.mT)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        rounded = dy.to(ctx.dtype)
        return (
            product(rounded, weight, like=dy) if needs_x else None,
            of_weight(rounded, x, like=dy) if needs_weight else None,
            dy.sum(1) if needs_bias else None,
        )
