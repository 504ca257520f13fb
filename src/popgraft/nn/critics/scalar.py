"""Critics that predict the mean return alone."""

from jaxtyping import Float
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.nn.critics.base import AffineCritic


class ScalarCritic(AffineCritic):
    """One atom: the mean."""

    def __init__(self, network: NetworkConfig) -> None:
        super().__init__(atoms=1)

    def means(self, predictions: Float[Tensor, "pop *batch 1"]) -> Float[Tensor, "pop *batch"]:
        """The atom."""
        return predictions.squeeze(-1)

    def loss(
        self, predictions: Float[Tensor, "pop *batch 1"], target: Float[Tensor, "pop *batch"]
    ) -> Float[Tensor, "pop *batch"]:
        """(V − G)²."""
        return (predictions.squeeze(-1) - target).square()
