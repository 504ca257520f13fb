"""Lower tails of predicted returns: value at risk, its conditional mean, and an advantage that improves it.

Quantiles are N equal atoms per sample; the level α in (0, 1] is a member's.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.tree import wide

SLACK = 1e-4
"""Share of an atom that rounding may add to or take from αN."""


def cvar(ordered: Float[Tensor, "pop *batch n"], alpha: Float[Tensor, "pop"]) -> Float[Tensor, "pop *batch"]:
    """Mean of the lowest share α of the return, the atom at its edge counted in part.

        CVaR = Σᵢ wᵢ qᵢ/α,   wᵢ = clip(α − i/N, 0, 1/N),   i = 0 … N − 1

    Rockafellar & Uryasev 2002 (doi:10.1016/S0378-4266(02)00271-6), proposition 8. α = 1 gives the mean.

    Args:
        ordered: q, units of return, rising along the last axis.
        alpha: α.
    """
    n = ordered.shape[-1]
    below = torch.arange(n, dtype=ordered.dtype, device=ordered.device) / n
    weight = (wide(alpha, ordered) - below).clamp(0, 1 / n)
    return (weight * ordered).sum(-1) / wide(alpha, ordered[..., 0])


def value_at_risk(ordered: Float[Tensor, "pop *batch n"], alpha: Float[Tensor, "pop"]) -> Float[Tensor, "pop *batch"]:
    """The α-quantile of the return: the smallest atom at which the cumulated weight reaches α.

    Args:
        ordered: q, units of return, rising along the last axis.
        alpha: α.
    """
    n = ordered.shape[-1]
    rank = (alpha * n - SLACK).ceil().long().clamp(1, n) - 1
    return ordered.take_along_dim(wide(rank, ordered), -1).squeeze(-1)


@torch.no_grad()
def cvar_advantage(
    target: Float[Tensor, "pop *batch"], quantiles: Float[Tensor, "pop *batch n"], alpha: Float[Tensor, "pop"]
) -> Float[Tensor, "pop *batch"]:
    """What a realised return G says about the predicted CVaR; its mean is 0 if G follows the prediction.

        A = min(G − ν, 0)/α − (CVaR − ν),   ν = value at risk

    From CVaR = max_ν ν + E[min(G − ν, 0)]/α (Rockafellar & Uryasev 2000, doi:10.21314/JOR.2000.038, theorem 1). It has
    no gradient.

    Args:
        target: G, units of return.
        quantiles: q, predicted at the state from which G was realised, units of return, in any order.
        alpha: α.
    """
    ordered = quantiles.sort(-1).values
    nu = value_at_risk(ordered, alpha)
    return (target - nu).clamp(max=0) / wide(alpha, target) - (cvar(ordered, alpha) - nu)
