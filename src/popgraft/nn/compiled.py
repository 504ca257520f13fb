"""A layer of an LSTM or a GRU that is compiled."""

import functools
import time
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from popgraft.native import call, kept, native, serves
from popgraft.nn.precision import factors, of_weight, product, rounded_to


def unrolls(hidden: int) -> bool:
    """Whether a layer of so many units can be unrolled here: units in whole vector registers."""
    return native().library is not None and hidden % native().width == 0


@functools.cache
def rounding_pays() -> bool:
    """Whether factors in bfloat16 make layers faster here, measured once per library.

    Not where the measurement cannot be kept: all processes decide alike, and a run goes on as it began.
    """
    return native().rounds and kept("bfloat16", lambda: "faster" if _gain() > 1.1 else "slower") == "faster"


def _gain() -> float:
    """How many times as fast a layer of 64 units and its gradient are in bfloat16: the least times of both, in turn."""
    pop, steps, batch, n = 4, 8, 16, 64
    x, wide = torch.linspace(-1, 1, pop * steps * batch * n), torch.linspace(-0.1, 0.1, pop * 4 * n * n)
    ih, hh = wide.view(pop, 4 * n, n).requires_grad_(), wide.flip(0).view(pop, 4 * n, n).requires_grad_()
    bias, state = torch.zeros(pop, 4 * n, requires_grad=True), torch.zeros(pop, batch, 2 * n)
    x, start = x.view(pop, steps, batch, n).requires_grad_(), torch.zeros(pop, steps, batch, dtype=torch.bool)
    least = {None: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(7):
        for dtype in least:
            before = time.thread_time()
            with torch.enable_grad(), rounded_to(dtype):
                y, _ = unroll(x, (ih, hh, bias), state, start)
                torch.autograd.grad(y.sum(), (x, ih, hh, bias))
            least[dtype] = min(least[dtype], time.thread_time() - before)
    return least[None] / least[torch.bfloat16]


def prepared(params: dict[str, Tensor], hidden: int) -> dict[str, Tensor]:
    """A layer's parameters, with its weights packed where it is going to be unrolled here."""
    weights = [params[name] for name in ("weight_ih", "weight_hh") if name in params]
    if not (serves(weights[0]) and unrolls(hidden)):
        return params
    return {**params, "panels": pack(hidden, *weights)}


def pack(hidden: int, *weights: Float[Tensor, "pop gates _"]) -> Float[Tensor, "pop gates n"]:
    """Weights of inputs, and those of h where there are, in the order and precision in which the loop reads them."""
    pop, rows = weights[0].shape[:2]
    rounding = factors(weights[-1]) == torch.bfloat16 and native().rounds
    widths = [weight.shape[-1] + weight.shape[-1] % 2 * rounding for weight in weights]  # bfloat16 comes in pairs
    panels = weights[0].new_empty(pop, rows, sum(widths), dtype=torch.bfloat16 if rounding else None)
    apart = panels.stride(0) // 2 if rounding else panels.stride(0)
    for weight, own in zip(weights, panels.flatten(1).split([rows * width for width in widths], dim=1), strict=True):
        flat = weight.flatten(1)
        call("pack", (flat, own), (pop, rows // hidden, hidden, weight.shape[-1], flat.stride(0), apart, rounding))
    return panels


def unroll(
    x: Tensor, weights: tuple[Tensor, Tensor, Tensor], state: Tensor, start: Tensor, panels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The compiled form of `lstm.unroll` and `gru.unroll`, with a bias [pop, 4H] in either case."""
    given = x, *weights, state, start, panels
    if torch.is_grad_enabled():
        return _Layer.apply(*given)  # type: ignore[no-any-return, no-untyped-call]
    *_, y, last = _forward(*given)
    return y, last


def _forward(
    x: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor,
    state: Tensor,
    start: Tensor,
    panels: Tensor | None,
) -> tuple[Tensor, ...]:
    """What the backward pass needs (weights, state, start, x beside h before every step, gates, c after it, which is h
    in a GRU), h after every step, and the last state.
    """
    panels = pack(weight_hh.shape[-1], weight_ih, weight_hh) if panels is None else panels
    steps, n_in, hidden = x.shape[:3], x.shape[-1], weight_hh.shape[-1]
    count = weight_hh.shape[1] // hidden
    inputs = x.new_empty(*steps, panels.shape[-1], dtype=panels.dtype)
    gates, y = x.new_empty(*steps, 4 * hidden), x.new_empty(*steps, hidden)
    cell = torch.empty_like(y) if count == 4 else y
    state, start = state.to(x.dtype).contiguous(), start.contiguous()
    last = torch.empty_like(state)
    tensors = x.contiguous(), panels, bias.contiguous(), state, start, inputs, gates, cell, y, last
    call("recurrent_forward", tensors, (*steps, hidden, n_in, count, panels.dtype == torch.bfloat16))
    return weight_ih, weight_hh, state, start, inputs, gates, cell, y, last


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *saved, y, last = _forward(*given)
        ctx.save_for_backward(*saved)
        ctx.factors = factors(given[2])
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        weight_ih, weight_hh, state, start, inputs, gates, cell = ctx.saved_tensors
        of_x, of_weights = ctx.needs_input_grad[:2]
        n_in, hidden, own = weight_ih.shape[-1], cell.shape[-1], weight_hh.flatten(1)
        dgates = torch.empty_like(gates, dtype=inputs.dtype)
        dstate = dlast.clone(memory_format=torch.contiguous_format)
        dbias = gates.new_zeros(len(gates), 4 * hidden)
        tensors = gates, own, state, start, cell, dy.contiguous(), dgates, dstate, dbias
        is_lstm = weight_hh.shape[1] == 4 * hidden
        numbers = *cell.shape, own.stride(0), 4 if is_lstm else 3, dgates.dtype == torch.bfloat16
        call("recurrent_backward", tensors, numbers)
        rows, seen = dgates.flatten(1, 2).to(ctx.factors), inputs.flatten(1, 2)
        # Of a GRU, whose gates are n, r, z and n's share of h there: what inputs need, and what h needs.
        rows_x = rows if is_lstm else rows[..., : 3 * hidden]
        ih = weight_ih if is_lstm else weight_ih.roll(hidden, 1)
        dx = product(rows_x, ih, like=gates).view(*cell.shape[:3], n_in) if of_x else None
        if not of_weights:  # an attack, which differentiates observations only
            return dx, None, None, None, dstate, None, None
        if is_lstm:  # One product for both weights, because those with few columns are slow.
            of_both = product(rows.mT, seen, like=gates)
            of_ih, of_hh = of_both[..., :n_in], of_both[..., -hidden:]
        else:
            of_ih = of_weight(rows_x, seen[..., :n_in], like=gates).roll(-hidden, 1)
            of_hh = of_weight(rows[..., hidden:], seen[..., -hidden:], like=gates)
        return dx, of_ih, of_hh, dbias, dstate, None, None
