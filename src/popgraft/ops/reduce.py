"""Reductions within a member: every axis but `pop`, over valid samples only."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.tree import wide


def mean(x: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop"]:
    """Mean over the samples whose `valid` is 1; 0 for a member without any."""
    axes = tuple(range(1, x.dim()))
    return (x * valid).sum(axes) / valid.sum(axes).clamp(min=1)


def standardize(
    x: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"], eps: float = 1e-8
) -> Float[Tensor, "pop *batch"]:
    """(x − mean)/(std + eps) within each member, with the unbiased standard deviation of its valid samples."""
    axes = tuple(range(1, x.dim()))
    centred = x - wide(mean(x, valid), x)
    degrees = (valid.sum(axes) - 1).clamp(min=1)
    std = ((centred.square() * valid).sum(axes) / degrees).sqrt()
    return centred / (wide(std, x) + eps)


def explained_variance(
    prediction: Float[Tensor, "pop *batch"], target: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"]
) -> Float[Tensor, "pop"]:
    """1 − Var[target − prediction]/Var[target] over valid samples; 0 where the target is constant.

    A target whose spread is no larger than the rounding of its own numbers counts as constant.
    """

    def variance(x: Tensor) -> Tensor:
        for _ in range(2):  # the second pass takes away the rounding of the first mean, large under a large offset
            x = x - wide(mean(x, valid), x)
        return mean(x.square(), valid)

    spread = variance(target)
    rounding = 4 * torch.finfo(target.dtype).eps * mean(target.abs(), valid)
    constant = spread <= rounding.square()
    explained = 1 - variance(target - prediction) / spread.masked_fill(constant, 1)
    return explained.masked_fill(constant, 0)
