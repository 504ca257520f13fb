"""Units of return per member: running statistics of the targets, and the snapshot in which the critic predicts."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.ops.reduce import mean
from popgraft.state import ReturnScale
from popgraft.tree import wide

MIN_STD = 1e-3
"""Smallest unit, in raw units of return."""


def initial_return_scale(pop: int, device: torch.device) -> ReturnScale:
    """Mean 0 and standard deviation 1, replaced by the first update.

    The averages are in double precision: E[G²] − E[G]² loses as many digits as returns far from 0 have in common.
    """
    zeros, ones = (torch.full((pop,), value, device=device) for value in (0.0, 1.0))
    return ReturnScale(
        mean_ema=zeros.double(), square_ema=ones.double(), updates=zeros.clone(), mean=zeros.clone(), std=ones.clone()
    )


def finalize_(
    scale: ReturnScale,
    target: Float[Tensor, "pop *batch"],
    valid: Float[Tensor, "pop *batch"],
    decay: float = 0.9,
) -> tuple[Float[Tensor, "pop"], Float[Tensor, "pop"]]:
    """Enters an update's targets into the averages and returns what the next snapshot will be.

        E[G] ← dE[G] + (1 − d)Ḡ,   the same for G²,   σ′ = max(√(E[G²] − E[G]²), `MIN_STD`)

    The first update sets the averages to its own; a member without valid samples, or with one that is
    not finite, keeps everything.

    Args:
        scale: running statistics.
        target: G, raw units of return.
        valid: 1 for samples that count.
        decay: d; 1 freezes the statistics at the first update.

    Returns:
        μ′ and σ′, to give to `activate_`.
    """
    present = valid.flatten(1).any(1) & mean(target, valid).isfinite()
    keep = decay * (scale.updates > 0).double()
    target, valid = target.double(), valid.double()
    for ema, x in ((scale.mean_ema, target), (scale.square_ema, target.square())):
        ema.copy_(torch.where(present, keep * ema + (1 - keep) * mean(x, valid), ema))
    scale.updates.add_(present)
    return latest(scale)


def latest(scale: ReturnScale) -> tuple[Float[Tensor, "pop"], Float[Tensor, "pop"]]:
    """μ′ and σ′ as the averages stand: what the next snapshot will be."""
    var = scale.square_ema - scale.mean_ema.square()
    std = var.clamp(min=0).sqrt().clamp(min=MIN_STD)
    return scale.mean_ema.to(scale.mean.dtype), std.to(scale.std.dtype)


def activate_(scale: ReturnScale, new_mean: Float[Tensor, "pop"], new_std: Float[Tensor, "pop"]) -> None:
    """Makes μ′ and σ′ the snapshot, once the heads have been moved to them."""
    scale.mean.copy_(new_mean)
    scale.std.copy_(new_std)


def normalize(scale: ReturnScale, x: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop *batch"]:
    """(x − μ)/σ: raw units of return to the critic's."""
    return (x - wide(scale.mean, x)) / wide(scale.std, x)


def denormalize(scale: ReturnScale, x: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop *batch"]:
    """σx + μ: the critic's units of return to raw ones."""
    return torch.addcmul(wide(scale.mean, x), wide(scale.std, x), x)
