"""Dense layers with a population axis."""

import itertools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn.blocks import ACTIVATIONS, Params, orthogonal
from popgraft.nn.precision import affine


class Linear:
    """y = W x + b for every member with its own W, b: one batched matrix product.

    Args:
        n_in: input features.
        n_out: output features.
        gain: scale of the orthogonal initialisation.
    """

    def __init__(self, n_in: int, n_out: int, gain: float = math.sqrt(2)) -> None:
        self.n_in, self.n_out, self.gain = n_in, n_out, gain

    def init(self, generator: torch.Generator) -> Params:
        """Orthogonal weight [n_out, n_in], zero bias [n_out]."""
        return {
            "weight": orthogonal(self.n_out, self.n_in, self.gain, generator),
            "bias": torch.zeros(self.n_out),
        }

    def __call__(self, params: Params, x: Float[Tensor, "pop *batch n_in"]) -> Float[Tensor, "pop *batch n_out"]:
        """Applies the layer to [pop, *batch, n_in]."""
        rows = x.flatten(1, -2) if x.dim() > 2 else x.unsqueeze(1)
        return affine(rows, params["weight"], params["bias"]).view(*x.shape[:-1], self.n_out)


class LayerNorm:
    """Standardises the features, then scales and shifts them (Ba et al. 2016, arXiv:1607.06450).

    Args:
        n: features.
        eps: added to the variance.
    """

    def __init__(self, n: int, eps: float = 1e-5) -> None:
        self.n, self.eps = n, eps

    def init(self, generator: torch.Generator) -> Params:
        """Unit scale, zero shift."""
        return {"weight": torch.ones(self.n), "bias": torch.zeros(self.n)}

    def __call__(self, params: Params, x: Float[Tensor, "pop *batch n"]) -> Float[Tensor, "pop *batch n"]:
        """Applies the layer to [pop, *batch, n]."""
        shape = (x.shape[0], *(1,) * (x.dim() - 2), self.n)
        normed = torch.nn.functional.layer_norm(x, (self.n,), eps=self.eps)
        return torch.addcmul(params["bias"].view(shape), normed, params["weight"].view(shape))


class MLP:
    """Dense layers, each followed by an optional layer norm and a nonlinearity.

    Args:
        n_in: input features.
        widths: features of every layer; empty for the identity.
        activation: name in `ACTIVATIONS`.
        layer_norm: whether to normalise before the nonlinearity.
    """

    def __init__(self, n_in: int, widths: list[int], activation: str = "tanh", layer_norm: bool = False) -> None:
        self.n_out = widths[-1] if widths else n_in
        self.activation = ACTIVATIONS[activation]
        sizes = [n_in, *widths]
        self.linears = [Linear(a, b) for a, b in itertools.pairwise(sizes)]
        self.norms = [LayerNorm(width) for width in widths] if layer_norm else []

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of every layer, named by position."""
        params: Params = {f"linear{i}": layer.init(generator) for i, layer in enumerate(self.linears)}
        params |= {f"norm{i}": layer.init(generator) for i, layer in enumerate(self.norms)}
        return params

    def __call__(self, params: Params, x: Float[Tensor, "pop *batch n_in"]) -> Float[Tensor, "pop *batch n_out"]:
        """Applies all layers to [pop, *batch, n_in]."""
        for i, linear in enumerate(self.linears):
            x = linear(params[f"linear{i}"], x)
            if self.norms:
                x = self.norms[i](params[f"norm{i}"], x)
            x = self.activation(x)
        return x
