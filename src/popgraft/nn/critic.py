"""Value heads: quantiles of the return, a law over a fixed support, or the mean alone; one critic or two."""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn.blocks import Params
from popgraft.nn.dense import Linear

CriticKind = Literal["quantile", "categorical", "scalar"]
TwinReduction = Literal["min", "mean"]


class Critic:
    """One linear layer whose outputs are the atoms of every critic, in normalised units of return.

    A single critic is an ensemble of one: every shape keeps the axis `critics`.

    Args:
        n_in: input features.
        kind: what the atoms are: quantiles at levels (i + ½)/N, logits over `support`, or one mean.
        atoms: N, the atoms of a critic; a scalar critic has one whatever is asked.
        twin: whether there are two critics, which differ by their initial weights alone.
        reduce: how two critics become one: the lower mean, or the mean of both.
        support: lowest and highest return that a categorical critic can predict, normalised units.
    """

    def __init__(
        self,
        n_in: int,
        kind: CriticKind,
        atoms: int,
        twin: bool,
        reduce: TwinReduction,
        support: tuple[float, float],
    ) -> None:
        self.kind, self.reduce, self.support = kind, reduce, support
        self.critics = 2 if twin else 1
        self.atoms = 1 if kind == "scalar" else atoms
        self.linear = Linear(n_in, self.critics * self.atoms, gain=1.0)

    def init(self, generator: torch.Generator) -> Params:
        """Weight [critics · atoms, n_in] and bias [critics · atoms]."""
        return self.linear.init(generator)

    def __call__(
        self, params: Params, features: Float[Tensor, "pop *batch n_in"]
    ) -> Float[Tensor, "pop *batch critics atoms"]:
        """Raw predictions: quantiles, logits or means."""
        return self.linear(params, features).view(*features.shape[:-1], self.critics, self.atoms)

    def means(self, predictions: Float[Tensor, "pop *batch critics atoms"]) -> Float[Tensor, "pop *batch critics"]:
        """Mean return by every critic: of its quantiles, or Σⱼ zⱼ softmax(logits)ⱼ over the support z."""
        if self.kind != "categorical":
            return predictions.mean(-1)
        z = torch.linspace(*self.support, self.atoms, dtype=predictions.dtype, device=predictions.device)
        return predictions.softmax(-1) @ z

    def value(self, predictions: Float[Tensor, "pop *batch critics atoms"]) -> Float[Tensor, "pop *batch"]:
        """Mean return by all critics together."""
        means = self.means(predictions)
        return means.amin(-1) if self.reduce == "min" else means.mean(-1)

    def quantiles(self, predictions: Float[Tensor, "pop *batch critics atoms"]) -> Float[Tensor, "pop *batch atoms"]:
        """Quantiles by all critics together, with mean `value`: of the lower critic, or the mean at each level."""
        assert self.kind == "quantile", f"a {self.kind} critic predicts no quantiles"
        if self.reduce == "mean":
            return predictions.mean(-2)
        lowest = self.means(predictions).argmin(-1)[..., None, None]
        return predictions.take_along_dim(lowest, -2).squeeze(-2)

    @torch.no_grad()
    def rescale_(
        self,
        params: Params,
        mean: Float[Tensor, "pop"],
        std: Float[Tensor, "pop"],
        new_mean: Float[Tensor, "pop"],
        new_std: Float[Tensor, "pop"],
    ) -> None:
        """Moves the head to new units of return without moving its predictions in raw units, in place.

            w ← w σ/σ′,   b ← (σb + μ − μ′)/σ′

        van Hasselt et al. 2016 (arXiv:1602.07714), proposition 1 (PopArt). Exact for quantiles and means, which are
        affine in the parameters. A categorical head has no such change of units: its scale is frozen after the first
        update instead.

        Args:
            params: of this head; views of a member's flat parameters are written through.
            mean: μ, in raw units of return, as are all four.
            std: σ.
            new_mean: μ′.
            new_std: σ′.
        """
        assert self.kind != "categorical", "the scale of a categorical critic is frozen"
        ratio = std / new_std
        params["weight"].mul_(ratio.view(-1, 1, 1))
        params["bias"].mul_(ratio.view(-1, 1)).add_(((mean - new_mean) / new_std).view(-1, 1))
