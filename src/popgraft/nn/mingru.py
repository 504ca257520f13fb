"""Minimal gated recurrent unit with a highway around it, stacked over a population.

    z, p = σ(W x + b),   n = W x + b
    h ← (1 − z)∘h + z∘n,   y = x + p∘(h − x)

(Feng et al. 2024, arXiv:2410.01201, section 3.1; highway: Srivastava et al. 2015, arXiv:1505.00387.) Gates see the
input alone, so that one product serves all steps and h is a linear recurrence. What a single layer cannot do, because
no gate knows what is remembered, several can: y is the next one's input.
"""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable

from popgraft import native
from popgraft.native import Definition
from popgraft.nn import compiled
from popgraft.nn.blocks import Params, orthogonal
from popgraft.nn.dense import Linear
from popgraft.nn.precision import affine, factors, of_weight, product
from popgraft.nn.recurrent import Memory
from popgraft.nn.scan import scan


@Definition
def unroll(
    x: Float[Tensor, "pop time batch n_in"],
    weights: tuple[Tensor, Tensor],
    way: Float[Tensor, "pop time batch hidden"] | None,
    state: Float[Tensor, "pop batch hidden"],
    start: Bool[Tensor, "pop time batch"],
    panels: Tensor | None = None,
) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch hidden"]]:
    """One layer over time.

    Args:
        x: inputs.
        weights: of z, p and n [pop, 3H, n_in], and the bias [pop, 3H].
        way: what the highway carries; None: x.
        state: h before the first step.
        start: where the state is zeroed before a step.
        panels: the weights again, as the compiled loop reads them.

    Returns:
        y of every step, and h after the last.
    """
    gates = affine(x.flatten(1, 2), *weights).view(*x.shape[:3], weights[1].shape[-1])
    z, p, n = gates.chunk(3, dim=-1)
    z = z.sigmoid()
    h, last = scan(z * n, 1 - z, start, state)
    way = x if way is None else way
    return way + p.sigmoid() * (h - way), last


@unroll.compiled(lambda x, weights, way, state, *others: compiled.unrolls(state.shape[-1]))
def _unroll_in_c(
    x: Tensor,
    weights: tuple[Tensor, Tensor],
    way: Tensor | None,
    state: Tensor,
    start: Tensor,
    panels: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    given = x, *weights, way, state, start, panels
    if torch.is_grad_enabled():
        return _Layer.apply(*given)  # type: ignore[no-any-return, no-untyped-call]
    *_, y, last = _forward(*given)
    return y, last


def _forward(
    x: Tensor, weight: Tensor, bias: Tensor, way: Tensor | None, state: Tensor, start: Tensor, panels: Tensor | None
) -> tuple[Tensor, ...]:
    """What the backward pass needs, y of every step, and the last h."""
    hidden, x = state.shape[-1], x.contiguous()
    panels = compiled.pack(hidden, weight) if panels is None else panels
    way, state, start = x if way is None else way.contiguous(), state.to(x.dtype).contiguous(), start.contiguous()
    gates, h, y = (x.new_empty(*x.shape[:3], width) for width in (3 * hidden, hidden, hidden))
    tensors = x, panels, bias.contiguous(), way, start, state, gates, h, y
    native.call("mingru_forward", tensors, (*h.shape, x.shape[-1], panels.dtype == torch.bfloat16))
    return x, weight, way, start, state, gates, h, y, (h[:, -1] if x.shape[1] else state).clone()


class _Layer(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[Tensor, ...]:
        *saved, y, last = _forward(*given)
        ctx.save_for_backward(*saved)
        ctx.factors, ctx.own_way = factors(given[1]), given[3] is not None
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, way, start, state, gates, h = ctx.saved_tensors
        needs_x, needs_weight = ctx.needs_input_grad[:2]
        dgates, dway, dh = torch.empty_like(gates), torch.empty_like(h), dlast.clone()
        dbias = gates.new_zeros(len(gates), gates.shape[-1])
        tensors = gates, h, way, start, state, dy.contiguous(), dh, dgates, dway, dbias
        native.call("mingru_backward", tensors, h.shape)
        rows = dgates.flatten(1, 2).to(ctx.factors)
        dx = product(rows, weight, like=x).view(x.shape) if needs_x else None
        if dx is not None and not ctx.own_way:
            dx += dway
        dweight = of_weight(rows, x.flatten(1, 2), like=weight) if needs_weight else None
        return dx, dweight, dbias, dway if ctx.own_way else None, dh, None, None


class MinGRU(Memory):
    """Minimal gated recurrent unit; a layer's state is h."""

    compiled = True

    def init_layer(self, n_in: int, generator: torch.Generator) -> Params:
        """Orthogonal matrices, a linear layer to carry inputs of another width, zero biases."""
        hidden = self.n_out
        params: Params = {
            "weight_ih": torch.cat([orthogonal(hidden, n_in, 1.0, generator) for _ in range(3)]),
            "bias": torch.zeros(3 * hidden),
        }
        return params if n_in == hidden else params | {"carried": Linear(n_in, hidden, gain=1.0).init(generator)}

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
        carried = params.get("carried")
        way = None if carried is None else Linear(x.shape[-1], self.n_out)(carried, x)
        return unroll(x, (params["weight_ih"], params["bias"]), way, state, start, params.get("panels"))
