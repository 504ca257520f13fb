"""Weights that are renewed at a graft, so that they learn again.

    θ ← λθ + σθ₀

θ₀ is drawn afresh, as at birth. Ash & Adams 2020 (arXiv:1910.08475), shrink and perturb, with the distribution of
initial weights for their noise; with σ = 1 − λ it interpolates towards initial weights.
"""

from collections.abc import Sequence

from jaxtyping import Float
from torch import Tensor

from popgraft.config.population import EvolutionConfig
from popgraft.state import Renewal


def renewal_of(config: EvolutionConfig) -> Renewal | None:
    """What becomes of the weights of every recipient; None: nothing."""
    return Renewal(config.graft_shrink, config.graft_perturb) if config.renews else None


def renewed(
    weights: Float[Tensor, "rows ..."], drawn: Float[Tensor, "rows ..."], renewals: Sequence[Renewal]
) -> Float[Tensor, "rows ..."]:
    """What every row goes on with.

    Args:
        weights: θ.
        drawn: θ₀.
        renewals: λ and σ of every row.
    """
    shrink, perturb = weights.new_tensor(renewals).view(-1, 2, *[1] * (weights.dim() - 1)).unbind(1)
    return shrink * weights + perturb * drawn.to(weights)  # not fused: the same bits in any number of rows
