"""Running mean and variance per member, and the normalisation of observations and rewards by them."""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.state import Moments
from popgraft.tree import wide

CLIP = 10.0
"""Bound on a normalised observation or reward, in standard deviations."""
EPS = 1e-8
"""Added to a variance before its root is taken."""
INITIAL_COUNT = 1e-4
"""Weight of the initial guess (mean 0, variance 1), in samples."""


def initial_moments(pop: int, shape: tuple[int, ...], device: torch.device) -> Moments:
    """Mean 0 and variance 1, outweighed by the first sample."""
    return Moments(
        mean=torch.zeros(pop, *shape, device=device),
        var=torch.ones(pop, *shape, device=device),
        count=torch.full((pop,), INITIAL_COUNT, device=device),
    )


def update_(moments: Moments, x: Float[Tensor, "pop batch *shape"], valid: Float[Tensor, "pop batch"]) -> None:
    """Merges a batch into the running statistics.

        δ = x̄ − μ,  n = n₁ + n₂,  μ ← μ + δ n₂/n,  σ² ← (σ₁² n₁ + σ₂² n₂ + δ² n₁n₂/n)/n

    Chan, Golub & LeVeque 1979. Samples with `valid` 0 do not count.
    """
    weight = valid.view(*valid.shape, *(1,) * (x.dim() - 2))
    batch_count = valid.sum(1)
    samples = wide(batch_count.clamp(min=1), moments.mean)
    batch_mean = (x * weight).sum(1) / samples
    centred = (x - batch_mean.unsqueeze(1)) * weight
    batch_var = centred.square().sum(1) / samples
    total = moments.count + batch_count
    share = wide(batch_count / total, moments.mean)
    delta = batch_mean - moments.mean
    moments.mean.addcmul_(delta, share)
    moments.var.copy_(moments.var * (1 - share) + batch_var * share + delta.square() * share * (1 - share))
    moments.count.copy_(total)


class Standard(NamedTuple):
    """μ and 1/√(σ² + eps), by which samples are normalised."""

    mean: Float[Tensor, "pop 1 *shape"]
    inverse: Float[Tensor, "pop 1 *shape"]


def standard(moments: Moments) -> Standard:
    """The statistics as they are now; the mean shares their memory."""
    return Standard(moments.mean.unsqueeze(1), (moments.var + EPS).rsqrt().unsqueeze(1))


def normalize(standard: Standard, x: Float[Tensor, "pop batch *shape"]) -> Float[Tensor, "pop batch *shape"]:
    """(x − μ)/√(σ² + eps), clipped to ±`CLIP`."""
    return ((x - standard.mean) * standard.inverse).clamp_(-CLIP, CLIP)


def scale(moments: Moments, x: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop *batch"]:
    """x/√(σ² + eps), clipped to ±`CLIP`: rewards keep their sign and their zero."""
    inverse = (moments.var + EPS).rsqrt()
    return (x * wide(inverse, x)).clamp_(-CLIP, CLIP)
