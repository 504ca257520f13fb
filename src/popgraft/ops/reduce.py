"""Reductions within a member: every axis but `pop`, over valid samples only."""

import torch
from jaxtyping import Float
from torch import Tensor


def mean(x: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop"]:
    """Mean over the samples whose `valid` is 1; 0 for a member without any."""
    axes = tuple(range(1, x.dim()))
    return (x * valid).sum(axes) / valid.sum(axes).clamp(min=1)


def standardize(
    x: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"], eps: float = 1e-8
) -> Float[Tensor, "pop *batch"]:
    """(x − mean)/(std + eps) within each member, with the unbiased standard deviation of its valid samples."""
    shape = (-1, *(1,) * (x.dim() - 1))
    axes = tuple(range(1, x.dim()))
    centred = x - mean(x, valid).view(shape)
    degrees = (valid.sum(axes) - 1).clamp(min=1)
    std = ((centred.square() * valid).sum(axes) / degrees).sqrt()
    return centred / (std.view(shape) + eps)


def explained_variance(
    prediction: Float[Tensor, "pop *batch"], target: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"]
) -> Float[Tensor, "pop"]:
    """1 − Var[target − prediction]/Var[target] over valid samples; 0 where the target is constant."""

    def variance(x: Tensor) -> Tensor:
        centred = x - mean(x, valid).view(-1, *(1,) * (x.dim() - 1))
        return mean(centred.square(), valid)

    spread = variance(target)
    return torch.where(spread > 1e-12, 1 - variance(target - prediction) / spread.clamp(min=1e-12), 0)
