"""A layer of an LSTM whose loop over time is compiled."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from popgraft.native import call, native, serves
from popgraft.nn.precision import factors, product


def unrolls(x: Tensor, hidden: int) -> bool:
    """Whether a layer of so many units can be unrolled here: units in whole vector registers."""
    return serves(x) and hidden % native().width == 0


def unroll(
    x: Float[Tensor, "pop time batch n_in"],
    weights: tuple[Tensor, Tensor, Tensor],
    state: Float[Tensor, "pop batch state"],
    start: Bool[Tensor, "pop time batch"],
) -> tuple[Tensor, Tensor]:
    """One layer over time.

    Args:
        x: inputs.
        weights: of the input [pop, 4H, n_in], of the recurrence [pop, 4H, H], and the bias [pop, 4H].
        state: (h, c) before the first step.
        start: where the state is zeroed before a step.

    Returns:
        h of every step [pop, time, batch, H], and the state after the last.
    """
    given = x, *weights, state, start
    if torch.is_grad_enabled():
        return _Layer.apply(*given)  # type: ignore[no-any-return, no-untyped-call]
    *_, y, last = _forward(*given)
    return y, last


def _forward(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias: Tensor, state: Tensor, start: Tensor
) -> tuple[Tensor, ...]:
    """What the backward pass needs (weights, x, state, start, gates, h before every step, c after it), h after every
    step, and the last state.
    """
    weight_hh, state, start = weight_hh.flatten(1), state.to(x.dtype).contiguous(), start.contiguous()
    gates = torch.baddbmm(bias.unsqueeze(1), x.flatten(1, 2), weight_ih.mT)
    sizes = *x.shape[:3], gates.shape[-1] // 4
    h_in, cell, y = (gates.new_empty(sizes) for _ in range(3))
    last = torch.empty_like(state)
    tensors = gates, weight_hh, state, start, h_in, cell, y, last
    call("lstm_forward", tensors, (*sizes, weight_hh.stride(0)))
    return weight_ih, weight_hh, x, state, start, gates, h_in, cell, y, last


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> tuple[Tensor, ...]:
        *saved, y, last = _forward(*given)
        ctx.save_for_backward(*saved)
        ctx.factors = factors(given[2])
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        weight_ih, weight_hh, x, state, start, gates, h_in, cell = ctx.saved_tensors
        of_x, of_weights = ctx.needs_input_grad[:2]
        rounds = ctx.factors == torch.bfloat16 and native().rounds
        dgates = torch.empty_like(gates, dtype=ctx.factors if rounds else None)
        dstate = dlast.clone(memory_format=torch.contiguous_format)
        dbias = gates.new_zeros(len(gates), gates.shape[-1])
        tensors = gates, weight_hh, state, start, cell, dy.contiguous(), dgates, dstate, dbias
        call("lstm_backward", tensors, (*cell.shape, weight_hh.stride(0), rounds))
        dgates = dgates.to(ctx.factors)
        dx = product(dgates, weight_ih, like=x).view_as(x) if of_x else None
        if not of_weights:  # an attack, which differentiates observations only
            return dx, None, None, None, dstate, None
        inputs = torch.cat([x, h_in], dim=-1).flatten(1, 2)  # one product, because those with few columns are slow
        of_both = product(dgates.mT, inputs, like=x)
        of_input, of_recurrence = of_both.split_with_sizes([x.shape[-1], h_in.shape[-1]], dim=-1)
        return dx, of_input, of_recurrence, dbias, dstate, None
