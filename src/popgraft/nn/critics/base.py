"""What a kind of critic must say of its predictions, and what those can do whose predictions are returns."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn.blocks import Params


class Critic(ABC):
    """What the outputs of a value head mean: its atoms, in normalised units of return.

    It is made as Class(network, **critic_kwargs), `network` a `NetworkConfig`. What a kind cannot do is None.

    Args:
        atoms: outputs of one critic.
    """

    sized_by: ClassVar[str | None] = None
    """The setting that says how many atoms there are, if one does."""

    quantiles: Callable[[Any], Tensor] | None = None
    """Equally likely returns [pop, *batch, n] by predictions [pop, *batch, atoms], with the mean `means`; None: there
    is no tail to weigh, so that `cvar_weight` is refused."""

    rescale_: Callable[[Params, Tensor, Tensor, Tensor, Tensor], None] | None = None
    """Moves a head to new units of return without moving its predictions in raw units, see `AffineCritic`; None: its
    units are frozen after the first update, and `clip_range_vf` is refused, since its atoms are no returns."""

    def __init__(self, atoms: int) -> None:
        self.atoms = atoms

    @abstractmethod
    def means(self, predictions: Float[Tensor, "pop *batch atoms"]) -> Float[Tensor, "pop *batch"]:
        """Mean return."""

    @abstractmethod
    def loss(
        self, predictions: Float[Tensor, "pop *batch atoms"], target: Float[Tensor, "pop *batch"]
    ) -> Float[Tensor, "pop *batch"]:
        """Loss of every sample at a realised return, differentiable in the predictions."""


class AffineCritic(Critic):
    """A kind whose atoms are returns, all of them: they can be bounded one by one, and moved to other units."""

    @torch.no_grad()
    def rescale_(
        self,
        params: Params,
        mean: Float[Tensor, "pop"],
        std: Float[Tensor, "pop"],
        new_mean: Float[Tensor, "pop"],
        new_std: Float[Tensor, "pop"],
    ) -> None:
        """Moves a linear head to new units of return without moving its predictions in raw units, in place.

            w ← w σ/σ′,   b ← (σb + μ − μ′)/σ′

        van Hasselt et al. 2016 (arXiv:1602.07714), proposition 1 (PopArt). Exact, for the atoms are affine in the
        parameters.

        Args:
            params: weight [pop, n, n_in] and bias [pop, n] of the head; views of a member's flat parameters are written
                through.
            mean: μ, in raw units of return, as are all four.
            std: σ.
            new_mean: μ′.
            new_std: σ′.
        """
        ratio = std / new_std
        params["weight"].mul_(ratio.view(-1, 1, 1))
        params["bias"].mul_(ratio.view(-1, 1)).add_(((mean - new_mean) / new_std).view(-1, 1))
