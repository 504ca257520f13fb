"""Fast and forgetful memory, stacked over a population.

    u = (W₁ x + b₁)∘σ(W₂ x + b₂),   S ← exp(−|α| + iω)∘S + u 1ᵀ
    y = LN(W₃ (Re S, Im S) + b₃)∘g + (W₄ x + b₄)∘(1 − g),   g = σ(W₅ x + b₅)

(Morad et al. 2023, arXiv:2310.04128, eqs. 3 to 9.) S has a row for each of m decays α and a column for each of c = 4
angles ω, so that it knows what came, and when; m c is the layer's width.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.errors import ConfigError
from popgraft.nn.blocks import Params
from popgraft.nn.dense import Linear
from popgraft.nn.recurrent import Memory
from popgraft.nn.scan import scan

ANGLES = 4
LONGEST = 1024
"""Steps of the slowest angle's period at birth."""


class FFM(Memory):
    """Fast and forgetful memory; a layer's state is S, its real and then its imaginary part.

    Raises:
        ConfigError: the width is no multiple of the four angles.
    """

    parts = 2
    matrices = 2
    compiled = True

    def __init__(self, n_in: int, hidden_size: int, layers: int = 1) -> None:
        if hidden_size % ANGLES:
            raise ConfigError(
                f"hidden_size={hidden_size} is no multiple of {ANGLES}, the angles of an ffm; "
                f"take {hidden_size // ANGLES * ANGLES + ANGLES}"
            )
        super().__init__(n_in, hidden_size, layers)
        self.decays = hidden_size // ANGLES

    def init_layer(self, n_in: int, generator: torch.Generator) -> Params:
        """Decays up to ½ and periods up to a thousand steps, in even steps, as the authors have them."""
        n, decays = self.n_out, self.decays
        return {
            "alpha": torch.linspace(1e-6, 0.5, decays),
            "omega": 2 * math.pi / torch.linspace(1, LONGEST, ANGLES),
            "gates": Linear(n_in, 2 * (decays + n), gain=1.0).init(generator),
            "mixed": Linear(2 * n, n, gain=1.0).init(generator),
        }

    def unroll(
        self,
        params: Params,
        x: Float[Tensor, "pop time batch n_in"],
        state: Float[Tensor, "pop batch own"],
        start: Bool[Tensor, "pop time batch"],
    ) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch own"]]:
        """One layer over time."""
        n, decays, pop = self.n_out, self.decays, len(x)
        gates = Linear(x.shape[-1], 2 * (decays + n))(params["gates"], x)
        u, kept, skip, g = gates.split([decays, decays, n, n], dim=-1)
        u = (u * kept.sigmoid()).repeat_interleave(ANGLES, dim=-1)
        size, turn = (-params["alpha"].abs()).exp().unsqueeze(-1), params["omega"].unsqueeze(1)
        factor = torch.cat([(size * turn.cos()).flatten(1), (size * turn.sin()).flatten(1)], dim=-1)
        s, last = scan(torch.cat([u, torch.zeros_like(u)], dim=-1), factor.view(pop, 1, 1, 2 * n), start, state, True)
        z, g = torch.nn.functional.layer_norm(Linear(2 * n, n)(params["mixed"], s), (n,)), g.sigmoid()
        return skip + g * (z - skip), last
