"""Coins: one per sub-action."""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid

from popgraft.config import NetworkConfig
from popgraft.nn.blocks import Params
from popgraft.nn.heads.base import ActionHead
from popgraft.spaces import ActionSpec


class Bernoulli(ActionHead):
    """One independent coin per sub-action; the output is the logit of 1.

    Args:
        n_in: features of the latent.
        action: what is chosen.
        network: the network's settings.
    """

    noise = "uniform"

    def __init__(self, n_in: int, action: ActionSpec, network: NetworkConfig) -> None:
        super().__init__(n_in, action.dims, action.dims)

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Int[Tensor, "pop *batch dims"]:
        """1 where the noise falls below the probability."""
        return (noise < outputs.sigmoid()).long()

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Int[Tensor, "pop *batch dims"]:
        """1 where its probability exceeds ½."""
        return (outputs > 0).long()

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], action: Int[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Σ log σ(±logit)."""
        return logsigmoid((2 * action - 1) * outputs).sum(-1)

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *batch"]:
        """Σ −log σ(−x) − x σ(x)."""
        return -torch.addcmul(logsigmoid(-outputs), outputs, outputs.sigmoid()).sum(-1)

    def kl(
        self, params: Params, outputs_p: Float[Tensor, "pop *batch dims"], outputs_q: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Σ σ(x)(x − y) + log σ(−x) − log σ(−y) of logits x and y."""
        change = logsigmoid(-outputs_p) - logsigmoid(-outputs_q)
        return torch.addcmul(change, outputs_p.sigmoid(), outputs_p - outputs_q).sum(-1)
