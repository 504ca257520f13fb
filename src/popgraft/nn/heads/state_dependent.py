"""Continuous actions whose noise is a function of the state."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.nn.blocks import Params
from popgraft.nn.heads.base import ActionHead
from popgraft.nn.heads.gaussian import HALF_LOG_2PI
from popgraft.spaces import ActionSpec


class StateDependentGaussian(ActionHead):
    """Normal distributions whose noise is a function of the state: generalised state-dependent exploration.

    a = W x + (σ ∘ ε)ᵀ x with the latent x, ε ~ N(0, 1) [n_in, dims] held for some steps, so that the same state meets
    the same noise. As seen by one step, a ~ N(W x, (x²)ᵀ σ² + 1e-6). The latent learns nothing from its variance. The
    outputs are means, standard deviations, and the latent (Raffin et al. 2021, arXiv:2005.05719).

    Args:
        n_in: features of the latent.
        action: what is chosen.
        network: the network's settings.
    """

    noise = "normal"

    def __init__(self, n_in: int, action: ActionSpec, network: NetworkConfig) -> None:
        dims = action.dims
        super().__init__(n_in, dims, n_in * dims)
        self.n_in, self.dims, self.log_std_init, self.hold = n_in, dims, network.log_std_init, network.sde_sample_freq
        self.n_outputs = 2 * dims + n_in

    def init_extra(self) -> Params:
        """The same σ for every weight of the noise."""
        return {"log_std": torch.full((self.n_in, self.dims), float(self.log_std_init))}

    def __call__(self, params: Params, latent: Float[Tensor, "pop *batch n_in"]) -> Float[Tensor, "pop *batch outputs"]:
        """Means, standard deviations, and the latent without its gradient."""
        weighed = latent.detach()
        variance = weighed.flatten(1, -2).square() @ params["log_std"].mul(2).exp() + 1e-6
        mean = super().__call__(params, latent)
        return torch.cat([mean, variance.sqrt().view_as(mean), weighed], dim=-1)

    def _split(self, outputs: Float[Tensor, "pop *batch outputs"]) -> tuple[Tensor, Tensor, Tensor]:
        mean, std, latent = outputs.split([self.dims, self.dims, self.n_in], dim=-1)
        return mean, std, latent

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], noise: Float[Tensor, "pop *batch weights"]
    ) -> Float[Tensor, "pop *batch dims"]:
        """mean + (σ ∘ ε)ᵀ x, not clipped to the box."""
        mean, _, latent = self._split(outputs)
        sigma: Tensor = params["log_std"].exp().view(len(mean), *(1,) * (mean.dim() - 2), self.n_in, self.dims)
        weights = sigma * noise.unflatten(-1, (self.n_in, self.dims))
        shift: Tensor = (latent.unsqueeze(-2) @ weights).squeeze(-2)
        return mean + shift

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch dims"]:
        """The mean."""
        return self._split(outputs)[0]

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], action: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """−½ Σ ((a − mean)/std)² − Σ log std − ½ d log 2π."""
        mean, std, _ = self._split(outputs)
        return -(0.5 * ((action - mean) / std).square() + std.log()).sum(-1) - self.dims * HALF_LOG_2PI

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch"]:
        """Σ log std + ½ d (1 + log 2π)."""
        return self._split(outputs)[1].log().sum(-1) + self.dims * (0.5 + HALF_LOG_2PI)

    def kl(
        self,
        params: Params,
        outputs_p: Float[Tensor, "pop *batch outputs"],
        outputs_q: Float[Tensor, "pop *batch outputs"],
    ) -> Float[Tensor, "pop *batch"]:
        """Σ log(std_q/std_p) + (std_p² + (mean_p − mean_q)²)/(2 std_q²) − ½."""
        (mean_p, std_p, _), (mean_q, std_q, _) = self._split(outputs_p), self._split(outputs_q)
        ratio = std_p / std_q
        return (0.5 * (ratio.square() + ((mean_p - mean_q) / std_q).square() - 1) - ratio.log()).sum(-1)
