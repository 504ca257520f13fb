"""Continuous actions: independent normal distributions."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.nn.blocks import Params
from popgraft.nn.heads.base import ActionHead
from popgraft.spaces import ActionSpec

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class DiagonalGaussian(ActionHead):
    """Independent normal distributions; the outputs are the means, the log standard deviations are parameters.

    Args:
        n_in: features of the latent.
        action: what is chosen.
        network: the network's settings.
    """

    noise = "normal"

    def __init__(self, n_in: int, action: ActionSpec, network: NetworkConfig) -> None:
        super().__init__(n_in, action.dims, action.dims)
        self.log_std_init = network.log_std_init

    def init_extra(self) -> Params:
        """The same standard deviation for all sub-actions."""
        return {"log_std": torch.full((self.noise_dims,), float(self.log_std_init))}

    @staticmethod
    def _log_std(params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *one dims"]:
        log_std: Tensor = params["log_std"]
        return log_std.view(len(log_std), *(1,) * (outputs.dim() - 2), -1)

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch dims"]:
        """mean + std · noise, not clipped to the box."""
        return torch.addcmul(outputs, self._log_std(params, outputs).exp(), noise)

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *batch dims"]:
        """The mean."""
        return outputs

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], action: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """−½ Σ ((a − mean)/std)² − Σ log std − ½ d log 2π."""
        log_std = self._log_std(params, outputs)
        z = (action - outputs) * (-log_std).exp()
        return -0.5 * z.square().sum(-1) - (log_std.sum(-1) + self.noise_dims * HALF_LOG_2PI)

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *batch"]:
        """Σ log std + ½ d (1 + log 2π), the same in every state."""
        entropy = self._log_std(params, outputs).sum(-1) + self.noise_dims * (0.5 + HALF_LOG_2PI)
        return entropy.expand(outputs.shape[:-1])

    def kl(
        self, params: Params, outputs_p: Float[Tensor, "pop *batch dims"], outputs_q: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """½ Σ ((mean_p − mean_q)/std)²: the standard deviations are the same."""
        return 0.5 * ((outputs_p - outputs_q) * (-self._log_std(params, outputs_p)).exp()).square().sum(-1)
