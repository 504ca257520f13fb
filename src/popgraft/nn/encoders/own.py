"""A user's `nn.Module` as the encoder of a population."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popgraft.config import NetworkConfig
from popgraft.nn.blocks import Params
from popgraft.nn.encoders.base import Encoder, floats
from popgraft.nn.lifted import Lifted
from popgraft.spaces import Spaces


class ModuleEncoder(Encoder):
    """A module that stands alone: it takes float tensors, and a dictionary of them where the observation space is one.

    That is the convention of Stable-Baselines3's BaseFeaturesExtractor. 8-bit images are divided by 255, unless
    `normalize_images` is false.

    Args:
        spaces: what the agent sees.
        config: the network's settings.
        make: makes the module from the observation space.

    Raises:
        ConfigError: a module that cannot be used.
    """

    def __init__(self, spaces: Spaces, config: NetworkConfig, make: Callable[[Any], nn.Module]) -> None:
        self.specs, self.normalize_images = spaces.obs, config.normalize_images
        self.takes_dict = isinstance(spaces.observation_space, Mapping)
        zeros = {name: torch.zeros(spec.shape) for name, spec in sorted(self.specs.items())}
        self.body = Lifted(partial(make, spaces.observation_space), zeros if self.takes_dict else zeros["obs"])
        super().__init__(self.body.n_out)

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of one member."""
        return {"body": self.body.init(generator)}

    def __call__(self, params: Params, obs: dict[str, Tensor]) -> Float[Tensor, "pop *batch n_out"]:
        """Encodes every key [pop, *batch, *shape]."""
        seen = {name: floats(spec, obs[name], self.normalize_images) for name, spec in sorted(self.specs.items())}
        return self.body(params["body"], seen if self.takes_dict else seen["obs"])
