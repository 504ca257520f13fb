"""Running mean and variance per member, and the normalisation of observations and rewards by them."""

import functools
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


def initial_moments(pop: int, shape: tuple[int, ...], device: torch.device) -> Moments:
    """No samples so far. Mean 0 and variance 1 stand in until the first batch, which takes their place whole."""
    exact = functools.partial(torch.full, dtype=torch.float64, device=device)
    return Moments(mean=exact((pop, *shape), 0.0), var=exact((pop, *shape), 1.0), count=exact((pop,), 0.0))


def update_(moments: Moments, x: Float[Tensor, "pop batch *shape"], valid: Float[Tensor, "pop batch"]) -> None:
    """Merges a batch into the running statistics, in double precision: an offset may be many times the spread.

        δ = x̄ − μ,  n = n₁ + n₂,  μ ← μ + δ n₂/n,  σ² ← (σ₁² n₁ + σ₂² n₂ + δ² n₁n₂/n)/n

    Chan, Golub & LeVeque 1979. Samples with `valid` 0 do not count, but must be finite like all others.
    """
    samples, weight = x.to(torch.float64, copy=True), valid.double()
    batch_count = weight.sum(1)
    each = weight / batch_count.clamp(min=1).unsqueeze(1)
    batch_mean = _weighted(each, samples)
    batch_var = _weighted(each, samples.sub_(batch_mean.unsqueeze(1)).square_())
    total = moments.count + batch_count
    share = wide(batch_count / total.clamp(min=1), moments.mean)
    delta = batch_mean - moments.mean
    moments.mean.addcmul_(delta, share)
    moments.var.copy_(moments.var * (1 - share) + batch_var * share + delta.square() * share * (1 - share))
    moments.count.copy_(total)


def _weighted(weight: Tensor, x: Tensor) -> Tensor:
    """Σ over the batch of weight · x: [pop, batch] and [pop, batch, *shape] give [pop, *shape]."""
    return torch.einsum("pb,pb...->p...", weight, x)


class Standard(NamedTuple):
    """μ in double precision, and 1/√(σ² + eps), by which samples are normalised."""

    mean: Float[Tensor, "pop 1 *shape"]
    inverse: Float[Tensor, "pop 1 *shape"]


def standard(moments: Moments) -> Standard:
    """The statistics as they are now; the mean shares their memory."""
    return Standard(moments.mean.unsqueeze(1), (moments.var + EPS).rsqrt().float().unsqueeze(1))


def normalize(standard: Standard, x: Float[Tensor, "pop batch *shape"]) -> Float[Tensor, "pop batch *shape"]:
    """(x − μ)/√(σ² + eps), clipped to ±`CLIP`."""
    return (x - standard.mean).to(x.dtype).mul_(standard.inverse).clamp_(-CLIP, CLIP)


def scale(moments: Moments, x: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop *batch"]:
    """x/√(σ² + eps), clipped to ±`CLIP`: rewards keep their sign and their zero."""
    inverse = (moments.var + EPS).rsqrt().to(x.dtype)
    return (x * wide(inverse, x)).clamp_(-CLIP, CLIP)
