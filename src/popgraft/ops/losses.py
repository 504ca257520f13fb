"""The terms of the PPO loss, one number per member."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.ops.reduce import mean
from popgraft.tree import wide

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
    clip = wide(clip_range, ratio)
    clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
    return -mean(torch.minimum(ratio * advantage, clipped * advantage), valid)


def approx_kl(log_ratio: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop"]:
    """KL(π_old ‖ π_new) by the low-variance estimator k3 = E[(ρ − 1) − log ρ] (Schulman 2020), in nats."""
    return mean(log_ratio.exp() - 1 - log_ratio, valid)


def clip_fraction(
    log_ratio: Float[Tensor, "pop *batch"], clip_range: Float[Tensor, "pop"], valid: Float[Tensor, "pop *batch"]
) -> Float[Tensor, "pop"]:
    """Share of samples whose probability ratio lies outside 1 ± clip_range."""
    clip = wide(clip_range, log_ratio)
    return mean(((log_ratio.exp() - 1).abs() > clip).to(log_ratio.dtype), valid)
