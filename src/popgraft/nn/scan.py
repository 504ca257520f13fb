"""A linear recurrence over time with resets in it, for every memory whose gates do not look at its state.

    hₜ = aₜ∘(1 − rₜ) hₜ₋₁ + bₜ

Steps compose, (a₁, b₁, r₁)∘(a₂, b₂, r₂) = (a₂, b₂, 1) where r₂, else (a₁a₂, a₂b₁ + b₂, r₁), and composition is
associative (Blelloch 1990; with resets: Lu et al. 2023, arXiv:2303.03982): log₂ T rounds over whole tensors do what a
loop does in T steps (Hillis & Steele 1986). The compiled form is that loop. The gradient is the same recurrence, back
in time.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from popgraft import native
from popgraft.native import Definition


def scan(
    b: Float[Tensor, "pop time batch n"],
    a: Float[Tensor, "pop time_or_1 batch_or_1 n"],
    start: Bool[Tensor, "pop time batch"],
    state: Float[Tensor, "pop batch n"],
    pairs: bool = False,
) -> tuple[Float[Tensor, "pop time batch n"], Float[Tensor, "pop batch n"]]:
    """h of every step, and the last; once differentiable.

    Args:
        b: what every step adds.
        a: factor of what was before, of every step or the same for all of them.
        start: where the state is replaced by zeros before a step.
        state: h before the first step.
        pairs: whether numbers are complex: the first half of n is the real part, the second the imaginary one.
    """
    if torch.is_grad_enabled():
        return _Scan.apply(b, a, start, state, pairs)  # type: ignore[no-any-return, no-untyped-call]
    return accumulated(b, a, start, state, pairs, backward=False)


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, b: Tensor, a: Tensor, start: Tensor, state: Tensor, pairs: bool) -> tuple[Tensor, Tensor]:
        h, last = accumulated(b, a, start, state, pairs, backward=False)
        ctx.save_for_backward(a, start, state, h)
        ctx.pairs = pairs
        return h, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dh: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        a, start, state, h = ctx.saved_tensors
        db, dstate = accumulated(dh, a, start, dlast, ctx.pairs, backward=True)
        da = None
        if ctx.needs_input_grad[1]:
            before = torch.cat([state.unsqueeze(1), h], dim=1)[:, : h.shape[1]].masked_fill(start.unsqueeze(-1), 0)
            da = _times(_conjugate(before, ctx.pairs), db, ctx.pairs)
            da = da if a.shape == da.shape else da.sum((1, 2), keepdim=True)
        return db, da, None, dstate, None


@Definition
def accumulated(
    b: Float[Tensor, "pop time batch n"],
    a: Float[Tensor, "pop time_or_1 batch_or_1 n"],
    start: Bool[Tensor, "pop time batch"],
    carry: Float[Tensor, "pop batch n"],
    pairs: bool,
    *,
    backward: bool,
) -> tuple[Float[Tensor, "pop time batch n"], Float[Tensor, "pop batch n"]]:
    """`scan` without a gradient; with `backward` the gradient of its b and state, gₜ = bₜ + (1 − rₜ₊₁) āₜ₊₁ gₜ₊₁.

    Args:
        carry: h before the first step, or the gradient of the one after the last.
    """
    start, a = start.unsqueeze(-1), _conjugate(a, pairs and backward).expand_as(b)
    if not b.shape[1]:
        return b.clone(), carry.clone()
    if not backward:
        h = _composed(b, a, start, _times(a[:, 0], carry, pairs).masked_fill(start[:, 0], 0), pairs)
        return h, h[:, -1].clone()
    factor, reset = a.flip(1).roll(1, 1), start.flip(1).roll(1, 1)  # back in time, those of the step before
    g = _composed(b.flip(1), factor, reset, carry, pairs).flip(1)
    return g, _times(a[:, 0], g[:, 0], pairs).masked_fill(start[:, 0], 0)


def _composed(b: Tensor, a: Tensor, reset: Tensor, first: Tensor, pairs: bool) -> Tensor:
    """h of every step in rounds that double how far a step looks back; `first` is what the first one finds there."""
    b, back = torch.cat([b[:, :1] + first.unsqueeze(1), b[:, 1:]], dim=1), 1
    while back < b.shape[1]:
        # What a reset hides is replaced, not multiplied by zero, which would keep NaN.
        found = _times(a[:, back:], b[:, :-back], pairs).masked_fill(reset[:, back:], 0)
        b = torch.cat([b[:, :back], b[:, back:] + found], dim=1)
        a = torch.cat([a[:, :back], _times(a[:, back:], a[:, :-back], pairs)], dim=1)
        reset = torch.cat([reset[:, :back], reset[:, back:] | reset[:, :-back]], dim=1)
        back *= 2
    return b


def _times(a: Tensor, b: Tensor, pairs: bool) -> Tensor:
    if not pairs:
        return a * b
    (a_re, a_im), (b_re, b_im) = a.chunk(2, dim=-1), b.chunk(2, dim=-1)
    return torch.cat([a_re * b_re - a_im * b_im, a_re * b_im + a_im * b_re], dim=-1)


def _conjugate(a: Tensor, pairs: bool) -> Tensor:
    if not pairs:
        return a
    re, im = a.chunk(2, dim=-1)
    return torch.cat([re, -im], dim=-1)


@accumulated.compiled()
def _step_by_step(
    b: Tensor, a: Tensor, start: Tensor, carry: Tensor, pairs: bool, *, backward: bool
) -> tuple[Tensor, Tensor]:
    fixed, h = a.shape[1:3] == (1, 1), b.new_empty(b.shape)
    a = a if fixed else a.expand_as(b)
    carry = carry.to(b.dtype).clone(memory_format=torch.contiguous_format)
    given = b.contiguous(), a.to(b.dtype).contiguous(), start.contiguous(), carry, h
    native.call("scan", given, (*b.shape, fixed, pairs, backward))
    return h, carry
