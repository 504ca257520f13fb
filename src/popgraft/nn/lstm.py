"""Long short-term memory with a population axis and a backward pass of its own.

    i, f, o = σ(W x + U h + b),   g = tanh(W x + U h + b)
    c ← f∘c + i∘g,   h = o∘tanh(c)

(Hochreiter & Schmidhuber 1997; forget gate: Gers et al. 2000; gate order i, f, g, o as in torch.nn.LSTM.) The input
projection of all steps is one batched matrix product; a step is one more, for the whole population, and a dozen
elementwise operations on slices [:, t] of [pop, time, batch, ·] tensors, which are never copied into another layout.
The backward pass computes every elementwise derivative for the whole unroll at once, so that its loop holds seven
operations. On CPUs the compiled loop (`compiled.py`) does the same member by member, where it can be compiled.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from popgraft.native import Definition
from popgraft.nn import compiled
from popgraft.nn.blocks import Params, orthogonal
from popgraft.nn.precision import affine, factors, of_weight
from popgraft.nn.recurrent import Memory

Outputs = tuple[Tensor, Tensor, Tensor]


class _Recurrence(torch.autograd.Function):
    """The unroll over time, given the input's share of the gates.

    Gate g is doubled on its way, so that one sigmoid serves all gates: tanh x = 2σ(2x) − 1. A state is replaced where
    an episode starts, not multiplied by zero, which would keep NaN.
    """

    @staticmethod
    def forward(ctx: Any, gates_x: Tensor, weight: Tensor, h0: Tensor, c0: Tensor, start: Tensor) -> Outputs:
        """gates_x [pop, T, B, 4H], weight [pop, 4H, H], h0 and c0 [pop, B, H], start [pop, T, B, 1]."""
        pop, time, batch, width = gates_x.shape
        hidden = width // 4
        gates = torch.empty_like(gates_x)
        y, h_in, c_in, cell_tanh = (gates_x.new_empty(pop, time, batch, hidden) for _ in range(4))
        pre, c = gates_x.new_empty(pop, batch, width), c0.clone()
        pre_g, weight_t = pre[..., 2 * hidden : 3 * hidden], weight.mT
        zero, h_tm1, c_tm1 = gates_x.new_zeros(()), h0, c0
        for t in range(time):
            start_t, gates_t, h, tanh_c = start[:, t], gates[:, t], h_in[:, t], cell_tanh[:, t]
            torch.where(start_t, zero, h_tm1, out=h)
            torch.baddbmm(gates_x[:, t], h, weight_t, out=pre)
            pre_g.mul_(2)
            torch.sigmoid(pre, out=gates_t)
            i, f, g, o = gates_t.split(hidden, dim=-1)
            torch.where(start_t, zero, c_tm1, out=c_in[:, t])
            torch.mul(c_in[:, t], f, out=c).addcmul_(i, g, value=2).sub_(i)
            torch.mul(c, 2, out=tanh_c)
            tanh_c.sigmoid_().mul_(2).sub_(1)
            torch.mul(o, tanh_c, out=y[:, t])
            h_tm1, c_tm1 = y[:, t], c
        ctx.save_for_backward(weight, start, gates, h_in, c_in, cell_tanh)
        ctx.factors = factors(weight)
        return y, h_tm1.clone(), c

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dh_last: Tensor, dc_last: Tensor) -> tuple[Tensor | None, ...]:
        weight, start, gates, h_in, c_in, cell_tanh = ctx.saved_tensors
        _, time, _, hidden = h_in.shape
        i, f, g, o = gates.split(hidden, dim=-1)
        # Derivative of every gate's preactivation: by dc for i, f, g and by dh for o. It becomes the gradient in place.
        dgates = torch.addcmul(gates, gates, gates, value=-1)
        dgates_cell = dgates[..., : 3 * hidden].unflatten(-1, (3, hidden))
        dgates_out = dgates[..., 3 * hidden :]
        dgates_cell[..., 0, :].mul_(2 * g - 1)
        dgates_cell[..., 1, :].mul_(c_in)
        dgates_cell[..., 2, :].mul_(i).mul_(4)
        dgates_out.mul_(cell_tanh)
        dc_by_dh = torch.addcmul(o, o * cell_tanh, cell_tanh, value=-1)
        dstate, dh = torch.stack([dh_last, dc_last]), torch.empty_like(dh_last)
        dh_next, dc = dstate
        for t in range(time - 1, -1, -1):
            torch.add(dh_next, dy[:, t], out=dh)
            dc.addcmul_(dh, dc_by_dh[:, t])
            dgates_cell[:, t].mul_(dc.unsqueeze(-2))
            dgates_out[:, t].mul_(dh)
            torch.bmm(dgates[:, t], weight, out=dh_next)
            dc.mul_(f[:, t])
            dstate.masked_fill_(start[:, t], 0)
        if not ctx.needs_input_grad[1]:  # an attack, which differentiates observations only
            return dgates, None, dh_next, dc, None
        dweight = of_weight(dgates.flatten(1, 2).to(ctx.factors), h_in.flatten(1, 2), like=weight)
        return dgates, dweight, dh_next, dc, None


@Definition
def unroll(
    x: Float[Tensor, "pop time batch n_in"],
    weights: tuple[Tensor, Tensor, Tensor],
    state: Float[Tensor, "pop batch state"],
    start: Bool[Tensor, "pop time batch"],
    panels: Tensor | None = None,
) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch state"]]:
    """One layer over time.

    Args:
        x: inputs.
        weights: of the input [pop, 4H, n_in], of the recurrence [pop, 4H, H], and the bias [pop, 4H].
        state: (h, c) before the first step.
        start: where the state is zeroed before a step.
        panels: the weights again, as the compiled loop reads them.

    Returns:
        h of every step, and the state after the last.
    """
    weight_ih, weight_hh, bias = weights
    gates_x = affine(x.flatten(1, 2), weight_ih, bias).view(*x.shape[:3], bias.shape[-1])
    y, *last = _Recurrence.apply(gates_x, weight_hh, *state.chunk(2, dim=-1), start.unsqueeze(-1))  # type: ignore[no-untyped-call]
    return y, torch.cat(last, dim=-1)


unroll.compiled(lambda x, weights, *others: compiled.unrolls(weights[1].shape[-1]))(compiled.unroll)


class LSTM(Memory):
    """Long short-term memory; a layer's state is (h, c)."""

    parts = 2
    matrices = 4
    compiled = True

    def init_layer(self, n_in: int, generator: torch.Generator) -> Params:
        """Orthogonal gate matrices; zero biases but for the forget gate's, which is 1 (Jozefowicz et al. 2015)."""
        hidden = self.n_out
        bias = torch.zeros(4 * hidden)
        bias[hidden : 2 * hidden] = 1
        return {
            "weight_ih": torch.cat([orthogonal(hidden, n_in, 1.0, generator) for _ in range(4)]),
            "weight_hh": torch.cat([orthogonal(hidden, hidden, 1.0, generator) for _ in range(4)]),
            "bias": bias,
        }

    def prepared(self, params: Params) -> Params:
        """With the weights as the compiled loop takes them."""
        return {name: compiled.prepared(own, self.n_out) for name, own in params.items()}

    def unroll(
        self,
        params: Params,
        x: Float[Tensor, "pop time batch n_in"],
        state: Float[Tensor, "pop batch own"],
        start: Bool[Tensor, "pop time batch"],
    ) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch own"]]:
        """One layer over time."""
        weights = params["weight_ih"], params["weight_hh"], params["bias"]
        return unroll(x, weights, state, start, params.get("panels"))
