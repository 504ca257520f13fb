"""What a critic is trained on: one loss per sample and critic, and their mean over both, one number per member."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.ops.reduce import mean
from popgraft.tree import wide

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Loss of predictions [pop, *batch, atoms] at targets [pop, *batch], per sample: [pop, *batch]."""


def critic_loss(
    sample_loss: SampleLoss,
    predictions: Float[Tensor, "pop *batch critics atoms"],
    target: Float[Tensor, "pop *batch"],
    valid: Float[Tensor, "pop *batch"],
    old: Float[Tensor, "pop *batch critics atoms"] | None = None,
    clip: Float[Tensor, "pop"] | None = None,
) -> Float[Tensor, "pop"]:
    """E[1/C Σ_c max(ℓ(q_c, G), ℓ(q′_c, G))] over C critics and one target G, with clipped predictions

        q′ = q_old + clamp(q − q_old, ±clip)

    so that a step gains nothing by moving a prediction further than `clip` (Schulman et al. 2017, as in the authors'
    code). Every critic is held to its own old predictions. Without `old` the loss is E[1/C Σ_c ℓ(q_c, G)], and so it is
    for a member whose `clip` is infinite.

    Args:
        sample_loss: ℓ.
        predictions: q, normalised units.
        target: G, normalised units.
        valid: 1 for samples that count.
        old: predictions at the time of acting; None turns clipping off.
        clip: largest change of a prediction, normalised units; given with `old`.
    """
    target = target.unsqueeze(-1).expand(predictions.shape[:-1])
    loss = sample_loss(predictions, target)
    if old is not None:
        assert clip is not None, "old predictions come with a clip"
        reach = wide(clip, old)
        loss = torch.maximum(loss, sample_loss(predictions.clamp(old - reach, old + reach), target))
    return mean(loss.mean(-1), valid)


class _QuantileHuber(torch.autograd.Function):
    """Mean over quantiles with the gradient in closed form, twice as fast as `huber_loss` times its weights.

    With c = clamp(u, ±κ): Huber_κ(u) = c(u − c/2), Huber_κ′(u) = c, |τ − 1{u<0}|c = τc + (1 − 2τ) min(c, 0).
    """

    @staticmethod
    def forward(ctx: Any, quantiles: Tensor, target: Tensor, kappa: float) -> Tensor:
        n = quantiles.shape[-1]
        tau = (torch.arange(n, device=quantiles.device, dtype=quantiles.dtype) + 0.5) / n
        u = target.unsqueeze(-1) - quantiles
        c = u.clamp(-kappa, kappa)
        slope = (tau * c).addcmul_(1 - 2 * tau, c.clamp(max=0))
        ctx.save_for_backward(slope)
        return u.sub_(c, alpha=0.5).mul_(slope).mean(-1)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (slope,) = ctx.saved_tensors
        return slope * (grad / -slope.shape[-1]).unsqueeze(-1), None, None


def quantile_huber(
    quantiles: Float[Tensor, "pop *batch n"], target: Float[Tensor, "pop *batch"], kappa: float = 1.0
) -> Float[Tensor, "pop *batch"]:
    """1/N Σᵢ |τᵢ − 1{u<0}| · Huber_κ(u), u = G − qᵢ, τᵢ = (i + ½)/N (Dabney et al. 2018, arXiv:1710.10044, eq. 10).

    Once differentiable, in the quantiles only.

    Args:
        quantiles: predicted quantiles qᵢ of the return.
        target: realised return G. Where it is a λ-return, its law is narrower than the return's, and so are the
            quantiles.
        kappa: where the Huber loss turns from quadratic to linear, in units of return.
    """
    return _QuantileHuber.apply(quantiles, target, kappa)  # type: ignore[no-any-return, no-untyped-call]


def two_hot(
    target: Float[Tensor, "pop *batch"], support: tuple[float, float], atoms: int
) -> Float[Tensor, "pop *batch atoms"]:
    """Probabilities on the two neighbours of G in an even grid over `support`, whose mean is G.

        pⱼ = max(0, 1 − |G − zⱼ|/Δ),   zⱼ = low + jΔ,   Δ = (high − low)/(N − 1)

    Bellemare et al. 2017 (arXiv:1707.06887), eq. 7, for a single target. Beyond the support, G is clipped to its end.

    Args:
        target: G, normalised units.
        support: (low, high).
        atoms: N ≥ 2.
    """
    low, high = support
    place = (target.clamp(low, high) - low) * ((atoms - 1) / (high - low))
    grid = torch.arange(atoms, dtype=target.dtype, device=target.device)
    return (1 - (place.unsqueeze(-1) - grid).abs()).clamp(min=0)


def categorical_cross_entropy(
    logits: Float[Tensor, "pop *batch n"], target: Float[Tensor, "pop *batch"], support: tuple[float, float]
) -> Float[Tensor, "pop *batch"]:
    """−Σⱼ pⱼ log softmax(logits)ⱼ against the two-hot projection p of G (Hafner et al. 2023, arXiv:2301.04104), nats.

    Args:
        logits: predicted log-probabilities of the support's atoms, up to a constant.
        target: realised return G, normalised units.
        support: lowest and highest atom.
    """
    return -(two_hot(target, support, logits.shape[-1]) * logits.log_softmax(-1)).sum(-1)


def squared_error(
    values: Float[Tensor, "pop *batch 1"], target: Float[Tensor, "pop *batch"]
) -> Float[Tensor, "pop *batch"]:
    """(V − G)²."""
    return (values.squeeze(-1) - target).square()
