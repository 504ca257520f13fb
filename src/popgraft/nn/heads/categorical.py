"""Choices: one softmax per sub-action."""

from functools import reduce

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.nn.blocks import Params
from popgraft.nn.draws import by_choice, draw
from popgraft.nn.heads.base import ActionHead
from popgraft.spaces import ActionSpec


class Categorical(ActionHead):
    """One softmax per sub-action; their logits lie side by side.

    PyTorch's reductions over a short last axis are several times slower on a CPU than those over the first axis, so all
    of them work on the logits with the choices first.

    Args:
        n_in: features of the latent.
        action: what is chosen.
        network: the network's settings.
    """

    noise = "uniform"

    def __init__(self, n_in: int, action: ActionSpec, network: NetworkConfig) -> None:
        super().__init__(n_in, sum(action.sizes), len(action.sizes))
        self.sizes = action.sizes

    def _split(self, outputs: Float[Tensor, "pop *batch outputs"]) -> tuple[Float[Tensor, "_ pop *batch"], ...]:
        """Logits of every sub-action, choices first."""
        return by_choice(outputs, self.sizes)

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Int[Tensor, "pop *batch dims"]:
        """Inverse of the cumulative distribution: the first choice whose cumulative probability exceeds the noise."""
        return draw(outputs, noise, self.sizes)

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Int[Tensor, "pop *batch dims"]:
        """The largest logit of every sub-action."""
        return torch.stack([logits.argmax(0) for logits in self._split(outputs)], dim=-1)

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], action: Int[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Σ log softmax(logits)[action]."""
        choices = action.movedim(-1, 0).split(1)
        pairs = zip(self._split(outputs), choices, strict=True)
        return reduce(torch.add, [logits.log_softmax(0).gather(0, choice) for logits, choice in pairs]).squeeze(0)

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch"]:
        """−Σ p log p."""
        log_p = [logits.log_softmax(0) for logits in self._split(outputs)]
        return -reduce(torch.add, [(each.exp() * each).sum(0) for each in log_p])

    def kl(
        self,
        params: Params,
        outputs_p: Float[Tensor, "pop *batch outputs"],
        outputs_q: Float[Tensor, "pop *batch outputs"],
    ) -> Float[Tensor, "pop *batch"]:
        """Σ p (log p − log q)."""
        log_p, log_q = (
            [logits.log_softmax(0) for logits in self._split(outputs)] for outputs in (outputs_p, outputs_q)
        )
        return reduce(torch.add, [(p.exp() * (p - q)).sum(0) for p, q in zip(log_p, log_q, strict=True)])
