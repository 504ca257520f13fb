"""Numbers that show whether a network can still learn."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

THRESHOLD = 0.025
"""τ: a unit is dormant whose activity is no more than this share of its layer's mean."""
TAIL = 0.01
"""δ: share of the singular values' sum that the effective rank leaves out."""


def dormant(hidden: Float[Tensor, "pop *batch units"]) -> Bool[Tensor, "pop units"]:
    """Units of a layer that hardly ever answer to what is seen.

        E|hᵢ| ≤ τ · mean_k E|h_k|

    Sokar et al. 2023 (arXiv:2302.12902), definition 3.1.
    """
    activity = hidden.flatten(1, -2).abs().mean(1)
    return activity <= THRESHOLD * activity.mean(1, keepdim=True)


def effective_rank(features: Float[Tensor, "pop *batch units"]) -> Float[Tensor, "pop"]:
    """How many directions there are in features, up to a small share of all.

        srank(Φ) = min {k: Σ_{i ≤ k} σᵢ ≥ (1 − δ) Σᵢ σᵢ}

    σᵢ are the singular values of Φ [samples, units], the largest first. Kumar et al. 2021 (arXiv:2010.14498), §3.
    0 where all features are 0, NaN where some are not finite.
    """
    rows = features.flatten(1, -2).double()
    finite = rows.isfinite().flatten(1).all(1)
    rows = torch.where(finite.view(-1, 1, 1), rows, 0.0)  # eigenvalues of others would be refused too
    if rows.shape[1] < rows.shape[2]:
        rows = rows.mT
    squares = torch.linalg.eigvalsh(rows.mT @ rows).clamp(min=0).flip(1)  # of the smaller side
    values = squares.sqrt()
    explained = values.cumsum(1).roll(1, 1)  # by all larger ones
    explained[:, 0] = 0
    rank: Tensor = (explained < (1 - TAIL) * values.sum(1, keepdim=True)).sum(1).to(features.dtype)
    return rank.masked_fill(~finite, math.nan)
