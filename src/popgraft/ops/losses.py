"""The terms of the PPO loss, one number per member."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.ops.reduce import mean

MAX_LOG_RATIO = 20.0
"""Bound on |log π_new − log π_old|, so that the ratio of a runaway policy stays finite."""


def log_ratio(
    log_prob: Float[Tensor, "pop *batch"], old_log_prob: Float[Tensor, "pop *batch"]
) -> Float[Tensor, "pop *batch"]:
    """log π_new − log π_old, clamped to ±`MAX_LOG_RATIO`."""
    return (log_prob - old_log_prob).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


def clipped_surrogate(
    log_ratio: Float[Tensor, "pop *batch"],
    advantage: Float[Tensor, "pop *batch"],
    clip_range: Float[Tensor, "pop"],
    valid: Float[Tensor, "pop *batch"],
) -> Float[Tensor, "pop"]:
    """−E[min(ρA, clip(ρ, 1 − c, 1 + c) A)] with ρ = exp(log_ratio) (Schulman et al. 2017, arXiv:1707.06347, eq. 7)."""
    ratio = log_ratio.exp()
    clip = clip_range.view(-1, *(1,) * (ratio.dim() - 1))
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    return -mean(torch.minimum(ratio * advantage, clipped * advantage), valid)


def quantile_huber(
    quantiles: Float[Tensor, "pop *batch n"],
    target: Float[Tensor, "pop *batch"],
    valid: Float[Tensor, "pop *batch"],
    kappa: float = 1.0,
) -> Float[Tensor, "pop"]:
    """E[1/N Σᵢ |τᵢ − 1{u<0}| · Huber_κ(u)], u = G − qᵢ, τᵢ = (i + ½)/N (Dabney et al. 2018, arXiv:1710.10044, eq. 10).

    Args:
        quantiles: predicted quantiles qᵢ of the return.
        target: realised return G.
        valid: 1 for samples that count.
        kappa: where the Huber loss turns from quadratic to linear, in units of return.
    """
    n = quantiles.shape[-1]
    tau = (torch.arange(n, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / n
    target = target.unsqueeze(-1).expand_as(quantiles)
    weight = (tau - (target < quantiles.detach()).to(tau.dtype)).abs()
    huber = torch.nn.functional.huber_loss(quantiles, target, reduction="none", delta=kappa)
    return mean((weight * huber).mean(-1), valid)


def approx_kl(log_ratio: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop"]:
    """KL(π_old ‖ π_new) by the low-variance estimator k3 = E[(ρ − 1) − log ρ] (Schulman 2020), in nats."""
    return mean(log_ratio.exp() - 1 - log_ratio, valid)


def clip_fraction(
    log_ratio: Float[Tensor, "pop *batch"], clip_range: Float[Tensor, "pop"], valid: Float[Tensor, "pop *batch"]
) -> Float[Tensor, "pop"]:
    """Share of samples whose probability ratio lies outside 1 ± clip_range."""
    clip = clip_range.view(-1, *(1,) * (log_ratio.dim() - 1))
    return mean(((log_ratio.exp() - 1).abs() > clip).to(log_ratio.dtype), valid)
