"""Gated recurrent unit with a population axis and a backward pass of its own.

    r, z = σ(W x + U h + b),   n = tanh(W x + b + r∘(U h + b′))
    h ← (1 − z)∘n + z∘h

(Cho et al. 2014, arXiv:1406.1078, in the form of torch.nn.GRU, with its gate order r, z, n; its second bias of r and z,
which only adds to the first, is left out.) The plan is that of the LSTM: the input projection of all steps is one
batched matrix product, a step is one more and nine elementwise operations, and the backward pass computes every
elementwise derivative for the whole unroll at once, so that its loop holds five operations. On CPUs the compiled loop
(`compiled.py`) does the same member by member, where it can be compiled.
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


class _Recurrence(torch.autograd.Function):
    """The unroll over time, given the input's share of the gates.

    The rows of n arrive doubled, so that a sigmoid serves all gates: tanh x = 2σ(2x) − 1. A state is replaced where an
    episode starts, not multiplied by zero, which would keep NaN.
    """

    @staticmethod
    def forward(ctx: Any, gates_x: Tensor, weight: Tensor, bias_n: Tensor, h0: Tensor, start: Tensor) -> Tensor:
        """gates_x [pop, T, B, 3H], weight [pop, 3H, H], bias_n [pop, H], h0 [pop, B, H], start [pop, T, B, 1]."""
        pop, time, batch, width = gates_x.shape
        hidden = width // 3
        gates = torch.empty_like(gates_x)
        y, h_in, n_h = (gates_x.new_empty(pop, time, batch, hidden) for _ in range(3))
        pre = gates_x.new_empty(pop, batch, width)
        bias = torch.nn.functional.pad(bias_n, (2 * hidden, 0)).unsqueeze(1)
        weight_t, zero, h_tm1 = weight.mT, gates_x.new_zeros(()), h0
        pre_rz, pre_n = pre.split([2 * hidden, hidden], dim=-1)
        for t in range(time):
            h, n_h_t = h_in[:, t], n_h[:, t]
            x_rz, x_n = gates_x[:, t].split([2 * hidden, hidden], dim=-1)
            rz, n = gates[:, t].split([2 * hidden, hidden], dim=-1)
            r, z = rz.split(hidden, dim=-1)
            torch.where(start[:, t], zero, h_tm1, out=h)
            torch.baddbmm(bias, h, weight_t, out=pre)
            torch.add(pre_rz, x_rz, out=rz).sigmoid_()
            n_h_t.copy_(pre_n)
            torch.addcmul(x_n, r, pre_n, out=n).sigmoid_().mul_(2).sub_(1)
            torch.lerp(n, h, z, out=y[:, t])
            h_tm1 = y[:, t]
        ctx.save_for_backward(weight, start, gates, h_in, n_h)
        ctx.factors = factors(weight)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        weight, start, gates, h_in, n_h = ctx.saved_tensors
        pop, time, batch, hidden = h_in.shape
        r, z, n = gates.split(hidden, dim=-1)
        # Derivative of the preactivations r, z and n by dh; for n first its hidden share, which U takes.
        dn = torch.addcmul(torch.ones_like(n), n, n, value=-1).mul_(1 - z).mul_(0.5)
        dgates = torch.addcmul(gates, gates, gates, value=-1)
        dgates[..., :hidden].mul_(dn).mul_(n_h)
        dgates[..., hidden : 2 * hidden].mul_(h_in - n)
        torch.mul(dn, r, out=dgates[..., 2 * hidden :])
        dgates_by_gate = dgates.unflatten(-1, (3, hidden))
        dh, dh_in = torch.empty_like(dy), dy.new_zeros(pop, batch, hidden)
        for t in range(time - 1, -1, -1):
            dh_t = torch.add(dy[:, t], dh_in, out=dh[:, t])
            dgates_by_gate[:, t].mul_(dh_t.unsqueeze(-2))
            torch.mul(dh_t, z[:, t], out=dh_in)
            dh_in.baddbmm_(dgates[:, t], weight).masked_fill_(start[:, t], 0)
        dweight = dbias_n = None
        if ctx.needs_input_grad[1]:  # not in an attack, which differentiates observations only
            dweight = of_weight(dgates.flatten(1, 2).to(ctx.factors), h_in.flatten(1, 2), like=weight)
            dbias_n = dgates[..., 2 * hidden :].sum((1, 2))
        torch.mul(dn, dh, out=dgates[..., 2 * hidden :])
        return dgates, dweight, dbias_n, dh_in, None


@Definition
def unroll(
    x: Float[Tensor, "pop time batch n_in"],
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    state: Float[Tensor, "pop batch hidden"],
    start: Bool[Tensor, "pop time batch"],
    panels: Tensor | None = None,
) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch hidden"]]:
    """One layer over time.

    Args:
        x: inputs.
        weights: of the input [pop, 3H, n_in] and of the recurrence [pop, 3H, H]; biases b [pop, 3H] and b′ [pop, H].
        state: h before the first step.
        start: where the state is zeroed before a step.
        panels: the weights again, as the compiled loop reads them.

    Returns:
        h of every step, and the last.
    """
    weight_ih, weight_hh, bias, bias_n = weights
    hidden = weight_hh.shape[-1]
    double_n = torch.cat([x.new_ones(2 * hidden, 1), x.new_full((hidden, 1), 2)])
    gates_x = affine(x.flatten(1, 2), weight_ih * double_n, bias * double_n.squeeze(-1))
    gates_x = gates_x.view(*x.shape[:3], 3 * hidden)
    y = _Recurrence.apply(gates_x, weight_hh * double_n, 2 * bias_n, state, start.unsqueeze(-1))  # type: ignore[no-untyped-call]
    return y, y[:, -1].clone() if y.shape[1] else state


@unroll.compiled(lambda x, weights, *others: compiled.unrolls(weights[1].shape[-1]))
def _unroll_in_c(
    x: Tensor,
    weights: tuple[Tensor, Tensor, Tensor, Tensor],
    state: Tensor,
    start: Tensor,
    panels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    weight_ih, weight_hh, *biases = weights
    return compiled.unroll(x, (weight_ih, weight_hh, torch.cat(biases, dim=-1)), state, start, panels)


class GRU(Memory):
    """Gated recurrent unit; a layer's state is h."""

    matrices = 3
    compiled = True

    def init_layer(self, n_in: int, generator: torch.Generator) -> Params:
        """Orthogonal gate matrices, zero biases."""
        hidden = self.n_out
        return {
            "weight_ih": torch.cat([orthogonal(hidden, n_in, 1.0, generator) for _ in range(3)]),
            "weight_hh": torch.cat([orthogonal(hidden, hidden, 1.0, generator) for _ in range(3)]),
            "bias": torch.zeros(3 * hidden),
            "bias_n": torch.zeros(hidden),
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
        weights = params["weight_ih"], params["weight_hh"], params["bias"], params["bias_n"]
        return unroll(x, weights, state, start, params.get("panels"))
