"""What an action head is: the distribution of the policy.

A head keeps its distribution as one tensor of outputs [pop, *batch, n_outputs] (logits, or means and what belongs to
them), which a buffer can store. Sampling takes its noise as an argument, so that it can be drawn in one block per seat.
Log-probabilities and entropies are in nats and summed over sub-actions.
"""

from abc import ABC, abstractmethod
from typing import Literal

import torch
from jaxtyping import Float, Real
from torch import Tensor

from popgraft.nn.blocks import Params
from popgraft.nn.dense import Linear


class ActionHead(ABC):
    """Distribution over the actions of one environment.

    It is made as Class(n_in, action, network, **action_head_kwargs) of features, an `ActionSpec` and a `NetworkConfig`.

    Args:
        n_in: features of the latent.
        n_outputs: logits or means.
        noise_dims: noise values per action.
    """

    noise: Literal["uniform", "normal"]
    """Distribution of the noise that `sample` takes: U[0, 1) or N(0, 1)."""
    hold: int | None = 1
    """Steps of a rollout for which a draw of the noise holds; None: all of them."""

    def __init__(self, n_in: int, n_outputs: int, noise_dims: int) -> None:
        self.linear = Linear(n_in, n_outputs, gain=0.01)
        self.n_outputs, self.noise_dims = n_outputs, noise_dims

    def init(self, generator: torch.Generator) -> Params:
        """A nearly uniform or centred policy: small weights, zero bias."""
        return {"linear": self.linear.init(generator)} | self.init_extra()

    def init_extra(self) -> Params:
        """Parameters of one member beside the linear layer's."""
        return {}

    def __call__(self, params: Params, latent: Float[Tensor, "pop *batch n_in"]) -> Float[Tensor, "pop *batch outputs"]:
        """Logits or means."""
        return self.linear(params["linear"], latent)

    @abstractmethod
    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Real[Tensor, "pop *batch dims"]:
        """Draws an action as a function of the noise; it is in range even where outputs are not finite."""

    @abstractmethod
    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Real[Tensor, "pop *batch dims"]:
        """The most likely action."""

    @abstractmethod
    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], action: Real[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Logarithm of the probability, or of the density, of an action."""

    @abstractmethod
    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch"]:
        """Entropy, differential for a density."""

    @abstractmethod
    def kl(
        self,
        params: Params,
        outputs_p: Float[Tensor, "pop *batch outputs"],
        outputs_q: Float[Tensor, "pop *batch outputs"],
    ) -> Float[Tensor, "pop *batch"]:
        """Divergence KL(p ‖ q) of the distributions of two outputs, with the same parameters beside them."""
