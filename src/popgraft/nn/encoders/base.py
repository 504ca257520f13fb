"""What an encoder is, and which observations are images."""

from abc import ABC, abstractmethod

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn.blocks import Params
from popgraft.spaces import ObsSpec


class Encoder(ABC):
    """Turns a dictionary of observations into one vector of features, for every member of the population.

    It is made as Class(spaces, network, **encoder_kwargs), `network` a `NetworkConfig`.

    Args:
        n_out: number of features.
    """

    def __init__(self, n_out: int) -> None:
        self.n_out = n_out

    @abstractmethod
    def init(self, generator: torch.Generator) -> Params:
        """Parameters of one member."""

    @abstractmethod
    def __call__(self, params: Params, obs: dict[str, Tensor]) -> Float[Tensor, "pop *batch n_out"]:
        """Encodes every key [pop, *batch, *shape]; images are 8-bit pixels [channels, height, width]."""


def is_image(spec: ObsSpec, normalize_images: bool) -> bool:
    """Whether an observation is an image: 8-bit pixels, or all of three axes where pixels are taken as they are."""
    return spec.image or (not normalize_images and len(spec.shape) == 3)


def floats(spec: ObsSpec, x: Tensor, normalize_images: bool) -> Tensor:
    """An observation as floats, its pixels divided by 255 unless they are taken as they are."""
    if not spec.image:
        return x
    return x / 255 if normalize_images else x.float()
