"""What a kind of memory must say of one recurrent layer; stacking layers is the same for all of them."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.nn.blocks import Params


class Memory(ABC):
    """Stacked recurrent layers for every member of the population.

    It is made as Class(n_in, hidden_size, layers, **recurrent_kwargs). The state of one environment is a flat vector:
    the `parts` of the first layer, each as wide as the layer, then those of the next; zeros before the first step.

    Args:
        n_in: input features.
        hidden_size: features of every layer.
        layers: number of layers.
    """

    parts: int = 1
    """Vectors in the state of a layer: 2 where they are (h, c), as in an LSTM."""
    matrices: ClassVar[int] = 0
    """How many times hidden_size × hidden_size weights a layer has at least."""
    compiled: ClassVar[bool] = False
    """Whether it is much faster on CPUs where its loops in C can be compiled."""

    def __init__(self, n_in: int, hidden_size: int, layers: int = 1) -> None:
        self.n_in, self.n_out, self.layers = n_in, hidden_size, layers

    @property
    def state_size(self) -> int:
        """Length of the state."""
        return self.layers * self.parts * self.n_out

    @property
    def hidden_slices(self) -> list[slice]:
        """Where the first vector of every layer lies in the state: h, of which metrics tell."""
        return [slice(start, start + self.n_out) for start in range(0, self.state_size, self.parts * self.n_out)]

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of one member."""
        widths = [self.n_in, *[self.n_out] * (self.layers - 1)]
        return {f"layer{i}": self.init_layer(n_in, generator) for i, n_in in enumerate(widths)}

    def prepared(self, params: Params) -> Params:
        """The parameters with what every call makes of them; right for as long as they do not change."""
        return params

    def __call__(
        self,
        params: Params,
        x: Float[Tensor, "pop time batch n_in"],
        state: Float[Tensor, "pop batch state"],
        start: Bool[Tensor, "pop time batch"],
        kept: Sequence[Float[Tensor, "pop time batch hidden"]] = (),
    ) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch state"]]:
        """Unrolls over time.

        Args:
            params: what `init` made, stacked, or `prepared`.
            x: inputs.
            state: state before the first step.
            start: where an episode begins: the state is zeroed before that step.
            kept: dropout: factors of what every layer but the last hands to the next; none: all is handed on.

        Returns:
            the last layer's output at every step, and the state after the last step.
        """
        final = []
        for layer, own in enumerate(state.chunk(self.layers, dim=-1) if self.layers > 1 else [state]):
            x, last = self.unroll(params[f"layer{layer}"], x, own, start)
            final.append(last)
            x = x * kept[layer] if layer < len(kept) else x
        return x, torch.cat(final, dim=-1) if self.layers > 1 else final[0]

    @abstractmethod
    def init_layer(self, n_in: int, generator: torch.Generator) -> Params:
        """Parameters of one layer of one member, whose inputs are `n_in` features."""

    @abstractmethod
    def unroll(
        self,
        params: Params,
        x: Float[Tensor, "pop time batch n_in"],
        state: Float[Tensor, "pop batch own"],
        start: Bool[Tensor, "pop time batch"],
    ) -> tuple[Float[Tensor, "pop time batch hidden"], Float[Tensor, "pop batch own"]]:
        """One layer over time: its outputs, and its state after the last step.

        Args:
            params: of the layer, each with a leading axis `pop`.
            x: its inputs.
            state: its share of the state before the first step.
            start: where an episode begins: the state is to be replaced by zeros before that step, not multiplied by
                them, which would keep NaN.
        """
