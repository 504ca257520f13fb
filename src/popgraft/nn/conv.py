"""Convolutions with a population axis: members are groups of one grouped convolution."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import conv2d

from popgraft.errors import ConfigError
from popgraft.nn.blocks import ACTIVATIONS, Params, orthogonal
from popgraft.nn.dense import Linear

NATURE = ((8, 4, 0), (4, 2, 0), (3, 1, 0))
"""(kernel, stride, padding) of Mnih et al. 2015; they need 36 pixels."""
SMALL = ((3, 1, 1), (3, 2, 1), (3, 2, 1))
"""For smaller images, such as grid worlds: padded, so that every size fits and every border cell is seen."""
NATURE_PIXELS = 36


class Conv:
    """Convolution of every member's image with its own kernels.

    Args:
        n_in: input channels.
        n_out: output channels.
        kernel: height and width of a kernel, in pixels.
        stride: pixels between two applications.
        padding: zeros around the image, in pixels.
    """

    def __init__(self, n_in: int, n_out: int, kernel: int, stride: int, padding: int) -> None:
        self.n_in, self.n_out, self.kernel, self.stride, self.padding = n_in, n_out, kernel, stride, padding

    def size(self, pixels: int) -> int:
        """Height or width of the output for that of the input."""
        return (pixels + 2 * self.padding - self.kernel) // self.stride + 1

    def init(self, generator: torch.Generator) -> Params:
        """Orthogonal weight [n_out, n_in, kernel, kernel], zero bias [n_out]."""
        weight = orthogonal(self.n_out, self.n_in * self.kernel**2, math.sqrt(2), generator)
        return {
            "weight": weight.view(self.n_out, self.n_in, self.kernel, self.kernel),
            "bias": torch.zeros(self.n_out),
        }

    def __call__(self, params: Params, x: Float[Tensor, "batch pop_in h w"]) -> Float[Tensor, "batch pop_out h2 w2"]:
        """Applies the layer to [batch, pop · n_in, height, width]: the members side by side in the channels."""
        weight, bias = params["weight"].flatten(0, 1), params["bias"].flatten()
        return conv2d(x, weight, bias, self.stride, self.padding, groups=len(params["bias"]))


class CNN:
    """Three convolutions and a dense layer on images (Mnih et al. 2015, doi:10.1038/nature14236).

    Images of 36 pixels and more in both directions go through the kernels 8/4, 4/2, 3/1 of that paper (kernel/stride,
    without padding), smaller ones through 3/1, 3/2, 3/2 with a padding of 1, which fit every size.

    Args:
        shape: (channels, height, width) of an image.
        widths: channels of the three convolutions.
        n_out: features of the dense layer.
        activation: name in `ACTIVATIONS`, applied after every layer.
        normalize: whether pixels, of 8 bits then, are divided by 255.

    Raises:
        ConfigError: a shape that is not that of an image.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        widths: Sequence[int] = (32, 64, 64),
        n_out: int = 512,
        activation: str = "relu",
        normalize: bool = True,
    ) -> None:
        if len(shape) != 3 or min(shape) < 1:
            raise ConfigError(
                f"an image of shape {shape} cannot be convolved: it needs (channels, height, width), all at least 1; "
                "reshape the observation with a wrapper, or set model.network.encoder: mlp"
            )
        channels, height, width = shape
        kernels = NATURE if min(height, width) >= NATURE_PIXELS else SMALL
        self.n_out, self.activation, self.normalize = n_out, ACTIVATIONS[activation], normalize
        self.convs = [
            Conv(a, b, *kernel) for a, b, kernel in zip([channels, *widths[:-1]], widths, kernels, strict=True)
        ]
        for conv in self.convs:
            height, width = conv.size(height), conv.size(width)
        self.dense = Linear(self.convs[-1].n_out * height * width, n_out)

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of every layer."""
        params: Params = {f"conv{i}": conv.init(generator) for i, conv in enumerate(self.convs)}
        return params | {"dense": self.dense.init(generator)}

    def __call__(
        self, params: Params, x: UInt8[Tensor, "pop *batch c h w"] | Float[Tensor, "pop *batch c h w"]
    ) -> Float[Tensor, "pop *batch n_out"]:
        """Applies all layers to pixels [pop, *batch, channels, height, width]."""
        pop, *batch = x.shape[:-3]
        side_by_side = x.reshape(pop, -1, *x.shape[-3:]).transpose(0, 1).flatten(1, 2)
        y = side_by_side.to(params["dense"]["weight"].dtype)
        if self.normalize:
            y.div_(255)  # in the floats that the line before has made
        for i, conv in enumerate(self.convs):
            y = self.activation(conv(params[f"conv{i}"], y))
        features = y.view(y.shape[0], pop, -1).transpose(0, 1)
        return self.activation(self.dense(params["dense"], features)).view(pop, *batch, self.n_out)
