"""Critics that predict quantiles of the return."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.nn.critics.base import AffineCritic


class QuantileCritic(AffineCritic):
    """Quantiles at the levels (i + ½)/N, N = `n_quantiles`."""

    sized_by = "n_quantiles"

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__(network.n_quantiles)

    def means(self, predictions: Float[Tensor, "pop *batch atoms"]) -> Float[Tensor, "pop *batch"]:
        """Mean of the quantiles."""
        return predictions.mean(-1)

    def quantiles(self, predictions: Float[Tensor, "pop *batch atoms"]) -> Float[Tensor, "pop *batch atoms"]:
        """The predictions themselves."""
        return predictions

    def loss(
        self, predictions: Float[Tensor, "pop *batch atoms"], target: Float[Tensor, "pop *batch"]
    ) -> Float[Tensor, "pop *batch"]:
        """See `quantile_huber`."""
        return quantile_huber(predictions, target)


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
