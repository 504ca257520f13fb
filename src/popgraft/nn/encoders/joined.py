"""The built-in encoders: images through convolutions, everything else as it is, and all of it through dense layers."""

import math
from abc import abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.errors import ConfigError
from popgraft.nn.blocks import Params
from popgraft.nn.conv import CNN
from popgraft.nn.dense import MLP
from popgraft.nn.encoders.base import Encoder, floats, is_image
from popgraft.spaces import ObsSpec, Spaces


class JoinedEncoder(Encoder):
    """Sends some observations through a `CNN` each and takes every other key as it is.

    The parts, joined in the order of their names, go through the dense layers `encoder_layers`.

    Args:
        spaces: what the agent sees.
        network: the network's settings.
    """

    def __init__(self, spaces: Spaces, network: NetworkConfig) -> None:
        self.specs = {name: spaces.obs[name] for name in sorted(spaces.obs)}
        self.normalize_images = normalize = network.normalize_images
        images = [name for name, spec in self.specs.items() if is_image(spec, normalize)]
        self.cnns = {
            name: CNN(self.specs[name].shape, n_out=network.cnn_features, normalize=normalize)
            for name in self.convolved(images)
        }
        flat = [math.prod(spec.shape) for name, spec in self.specs.items() if name not in self.cnns]
        width = sum(flat) + sum(cnn.n_out for cnn in self.cnns.values())
        self.body = MLP(width, network.encoder_layers, network.activation, network.layer_norm)
        super().__init__(self.body.n_out)

    @abstractmethod
    def convolved(self, images: list[str]) -> list[str]:
        """Which observations go through a CNN, of those that are images."""

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of one member."""
        params = {f"cnn_{name}": cnn.init(generator) for name, cnn in self.cnns.items()}
        return params | {"body": self.body.init(generator)}

    def __call__(self, params: Params, obs: dict[str, Tensor]) -> Float[Tensor, "pop *batch n_out"]:
        """Encodes every key [pop, *batch, *shape]."""
        parts = [self._part(params, name, spec, obs[name]) for name, spec in self.specs.items()]
        return self.body(params["body"], parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))

    def _part(self, params: Params, name: str, spec: ObsSpec, x: Tensor) -> Tensor:
        """The share of one observation key in the features."""
        if name in self.cnns:
            return self.cnns[name](params[f"cnn_{name}"], x)
        flat = x.reshape(*x.shape[: x.dim() - len(spec.shape)], math.prod(spec.shape))
        return floats(spec, flat, self.normalize_images)


class MixedEncoder(JoinedEncoder):
    """Convolves images."""

    def convolved(self, images: list[str]) -> list[str]:
        """All of them."""
        return images


class FlatEncoder(JoinedEncoder):
    """Takes images as vectors of pixels too."""

    def convolved(self, images: list[str]) -> list[str]:
        """None of them."""
        return []


class ImageEncoder(JoinedEncoder):
    """For observations that are all images.

    Raises:
        ConfigError: one is not.
    """

    def convolved(self, images: list[str]) -> list[str]:
        """All of them, and nothing else is there."""
        for name, spec in self.specs.items():
            if name not in images:
                scaled = " or, where its pixels are scaled already, normalize_images: false"
                raise ConfigError(
                    f"model.network.encoder='cnn' needs images, but the observation {name!r} of shape {spec.shape} is "
                    "not one (8-bit pixels); set model.network.encoder: auto"
                    f"{scaled if len(spec.shape) == 3 else ''}"
                )
        return images
