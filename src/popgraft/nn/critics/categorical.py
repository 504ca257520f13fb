"""Critics that predict a law over a fixed support."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.nn.critics.base import Critic


class CategoricalCritic(Critic):
    """Logits of `n_bins` even atoms over `support`, the lowest and highest return that can be predicted."""

    sized_by = "n_bins"

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__(network.n_bins)
        self.support = network.support

    def means(self, predictions: Float[Tensor, "pop *batch atoms"]) -> Float[Tensor, "pop *batch"]:
        """Σⱼ zⱼ softmax(logits)ⱼ over the support z."""
        z = torch.linspace(*self.support, self.atoms, dtype=predictions.dtype, device=predictions.device)
        return predictions.softmax(-1) @ z

    def loss(
        self, predictions: Float[Tensor, "pop *batch atoms"], target: Float[Tensor, "pop *batch"]
    ) -> Float[Tensor, "pop *batch"]:
        """See `categorical_cross_entropy`."""
        return categorical_cross_entropy(predictions, target, self.support)


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
