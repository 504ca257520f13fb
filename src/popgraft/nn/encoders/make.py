"""The encoder that a configuration asks for."""

from collections.abc import Callable
from functools import partial
from typing import Any, cast

from torch import nn

from popgraft.config import NetworkConfig
from popgraft.config.network import ENCODERS
from popgraft.nn.encoders.base import Encoder
from popgraft.nn.encoders.own import ModuleEncoder
from popgraft.spaces import Spaces


def make_encoder(spaces: Spaces, config: NetworkConfig, extractor: Callable[[Any], nn.Module] | None = None) -> Encoder:
    """Makes an encoder.

    Args:
        spaces: what the agent sees.
        config: the network's settings.
        extractor: makes a module from the observation space, in place of the configured encoder.

    Raises:
        ConfigError: an encoder that does not suit the observations, or that cannot be used.
    """
    make = partial(ENCODERS.make, config.encoder)
    if extractor is None and issubclass(ENCODERS.load(config.encoder), nn.Module):
        extractor = partial(make, **config.encoder_kwargs)
    if extractor is not None:
        return ModuleEncoder(spaces, config, extractor)
    return cast(Encoder, make(spaces, config, **config.encoder_kwargs))
