"""The value head: one critic or two, whatever they predict."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn.blocks import Params
from popgraft.nn.critics.base import Critic
from popgraft.nn.dense import Linear


class CriticEnsemble:
    """One linear layer whose outputs are the atoms of every critic, in normalised units of return.

    A single critic is an ensemble of one: every shape keeps the axis `critics`.

    Args:
        n_in: input features.
        kind: what the atoms are.
        twin: whether there are two critics, which differ by their initial weights alone.
        reduce: how two critics become one: the lower mean, or the mean of both.
    """

    def __init__(self, n_in: int, kind: Critic, twin: bool, reduce: Literal["min", "mean"]) -> None:
        self.kind, self.reduce = kind, reduce
        self.critics = 2 if twin else 1
        self.linear = Linear(n_in, self.critics * kind.atoms, gain=1.0)

    def init(self, generator: torch.Generator) -> Params:
        """Weight [critics · atoms, n_in] and bias [critics · atoms]."""
        return self.linear.init(generator)

    def __call__(
        self, params: Params, features: Float[Tensor, "pop *batch n_in"]
    ) -> Float[Tensor, "pop *batch critics atoms"]:
        """Raw predictions."""
        return self.linear(params, features).view(*features.shape[:-1], self.critics, self.kind.atoms)

    def value(self, predictions: Float[Tensor, "pop *batch critics atoms"]) -> Float[Tensor, "pop *batch"]:
        """Mean return by all critics together."""
        means = self.kind.means(predictions)
        return means.amin(-1) if self.reduce == "min" else means.mean(-1)

    def quantiles(self, predictions: Float[Tensor, "pop *batch critics atoms"]) -> Float[Tensor, "pop *batch n"]:
        """Quantiles by all critics together, with mean `value`: of the lower critic, or the mean at each level."""
        assert self.kind.quantiles is not None, f"{type(self.kind).__name__} predicts no quantiles"
        quantiles = self.kind.quantiles(predictions)
        if self.reduce == "mean":
            return quantiles.mean(-2)
        lowest = self.kind.means(predictions).argmin(-1)[..., None, None]
        return quantiles.take_along_dim(lowest, -2).squeeze(-2)
