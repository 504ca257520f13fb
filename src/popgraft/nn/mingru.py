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
from popgraft.nn.blocks import Params, orthogonal
from popgraft.nn.dense import Linear
from popgraft.nn.precision import affine
from popgraft.nn.recurrent import Memory
from popgraft.nn.scan import scan


@Definition
def recur(
    gates: Float[Tensor, "pop time batch gates"],
    x: Float[Tensor, "pop time batch hidden"],
    start: Bool[Tensor, "pop time batch"],
    state: Float[Tensor, "pop batch hidden"],
) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch hidden"]]:
    """A layer after its products.

    Args:
        gates: z and p before their sigmoids, and n.
        x: what the highway carries.
        start: where the state is zeroed before a step.
        state: h before the first step.

    Returns:
        y of every step, and h after the last.
    """
    z, p, n = gates.chunk(3, dim=-1)
    z = z.sigmoid()
    h, last = scan(z * n, 1 - z, start, state)
    return x + p.sigmoid() * (h - x), last


@recur.compiled()
def _recur_in_one_pass(gates: Tensor, x: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    given = gates.contiguous(), x.contiguous(), start.contiguous(), state.to(x.dtype).contiguous()
    if torch.is_grad_enabled():
        return _Recurrence.apply(*given)  # type: ignore[no-any-return, no-untyped-call]
    return _forward(*given)[1:]


def _forward(gates: Tensor, x: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    h, y = torch.empty_like(x), torch.empty_like(x)
    native.call("mingru_forward", (gates, x, start, state, h, y), x.shape)
    return h, y, (h[:, -1] if x.shape[1] else state).clone()


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gates: Tensor, x: Tensor, start: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        h, y, last = _forward(gates, x, start, state)
        ctx.save_for_backward(gates, x, start, state, h)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        gates, x, start, state, h = ctx.saved_tensors
        dgates, dx, dh = torch.empty_like(gates), torch.empty_like(x), dlast.clone()
        native.call("mingru_backward", (gates, x, start, state, h, dy.contiguous(), dh, dgates, dx), x.shape)
        return dgates, dx, None, dh


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

    def unroll(
        self,
        params: Params,
        x: Float[Tensor, "pop time batch n_in"],
        state: Float[Tensor, "pop batch own"],
        start: Bool[Tensor, "pop time batch"],
    ) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch own"]]:
        """One layer over time."""
        gates = affine(x.flatten(1, 2), params["weight_ih"], params["bias"]).view(*x.shape[:3], 3 * self.n_out)
        if "carried" in params:
            x = Linear(x.shape[-1], self.n_out)(params["carried"], x)
        return recur(gates, x, start, state)
