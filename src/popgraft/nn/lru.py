"""Linear recurrent unit in a residual block, stacked over a population.

    h ← λ∘h + γ∘(B u),   λ = exp(−exp ν + i exp θ),   v = gelu(Re(C h) + D∘u)
    y = u + (W₁ v + b₁)∘σ(W₂ v + b₂)

(Orvieto et al. 2023, arXiv:2303.06349, eq. 5 and section 3; the block is that of its experiments without their norm.)
|λ| < 1 whatever ν is, so that h stays stable; γ begins at √(1 − |λ|²), so that h is as large as its inputs. Numbers are
complex: real parts lie before imaginary ones. u is x, or W x + b where widths differ.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.nn.blocks import Params
from popgraft.nn.dense import Linear
from popgraft.nn.precision import affine
from popgraft.nn.recurrent import Memory
from popgraft.nn.scan import scan


class LRU(Memory):
    """Linear recurrent unit; a layer's state is h, its real and then its imaginary part."""

    parts = 2
    matrices = 6
    compiled = True

    def init_layer(self, n_in: int, generator: torch.Generator) -> Params:
        """λ uniform on the unit disk, Glorot's scales for B and C, normal D, the gated layer as other dense ones."""
        n = self.n_out
        square, turn = torch.rand(2, n, generator=generator).clamp(1e-6, 1 - 1e-6)

        def normal(rows: int, columns: int, variance: float) -> Tensor:
            return torch.randn(rows, columns, generator=generator) * math.sqrt(variance)

        params: Params = {
            "nu": (-0.5 * square.log()).log(),
            "theta": (2 * math.pi * turn).log(),
            "gamma": 0.5 * (1 - square).log(),
            "b": normal(2 * n, n, 1 / (2 * n)),
            "c": normal(n, 2 * n, 1 / n),
            "d": torch.randn(n, generator=generator),
            "gated": Linear(n, 2 * n, gain=1.0).init(generator),
        }
        return params if n_in == n else params | {"carried": Linear(n_in, n, gain=1.0).init(generator)}

    def unroll(
        self,
        params: Params,
        x: Float[Tensor, "pop time batch n_in"],
        state: Float[Tensor, "pop batch own"],
        start: Bool[Tensor, "pop time batch"],
    ) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch own"]]:
        """One layer over time."""
        n, pop = self.n_out, len(x)
        u = Linear(x.shape[-1], n)(params["carried"], x) if "carried" in params else x
        size, turn, gamma = (-params["nu"].exp()).exp(), params["theta"].exp(), params["gamma"].exp()
        factor = torch.cat([size * turn.cos(), size * turn.sin()], dim=-1).view(pop, 1, 1, 2 * n)
        weight = torch.cat([gamma, gamma], dim=-1).unsqueeze(-1) * params["b"]
        added = affine(u.flatten(1, 2), weight, u.new_zeros(pop, 2 * n)).view(*u.shape[:3], 2 * n)
        h, last = scan(added, factor, start, state, pairs=True)
        seen = affine(h.flatten(1, 2), params["c"], u.new_zeros(pop, n)).view(u.shape)
        v = torch.nn.functional.gelu(seen + params["d"].view(pop, 1, 1, n) * u)
        value, gate = Linear(n, 2 * n)(params["gated"], v).chunk(2, dim=-1)
        return u + value * gate.sigmoid(), last
