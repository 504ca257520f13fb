"""From observations to features: what stands before the memory."""

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from popgraft.config import NetworkConfig
from popgraft.errors import ConfigError
from popgraft.messages import told
from popgraft.names import import_name
from popgraft.nn.blocks import Params
from popgraft.nn.conv import CNN
from popgraft.nn.dense import MLP
from popgraft.nn.lifted import Lifted
from popgraft.spaces import ObsSpec, Spaces


def _user_module(path: str, observation_space: Any, kwargs: dict[str, Any]) -> nn.Module:
    """Makes the encoder `module:Class` as Class(observation_space, **kwargs)."""
    setting = f"model.network.encoder={path!r}"
    cls = import_name(path, "model.network.encoder")
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ConfigError(f"{setting} is {cls!r}; name a subclass of torch.nn.Module")
    try:
        return cls(observation_space, **kwargs)
    except Exception as error:
        raise ConfigError(
            f"{setting}: {cls.__name__}(observation_space, **{kwargs}) fails ({told(error)}); "
            "correct model.network.encoder_kwargs or the constructor"
        ) from error


def is_image(spec: ObsSpec, normalize_images: bool) -> bool:
    """Whether an observation is an image: 8-bit pixels, or all of three axes where pixels are taken as they are."""
    return spec.image or (not normalize_images and len(spec.shape) == 3)


class Encoder:
    """Turns a dictionary of observations into one vector of features.

    `auto` sends every image through its own `CNN` and takes every other key as it is; `mlp` takes images as vectors of
    pixels too; `cnn` is `auto` for observations that are all images. The parts, joined in the order of their names, go
    through the dense layers `encoder_layers`. An encoder `module:Class` of the user stands alone: it is made as
    Class(observation_space, **encoder_kwargs), takes float tensors, and a dictionary of them where the observation
    space is one (the convention of Stable-Baselines3's BaseFeaturesExtractor). 8-bit images are divided by 255, unless
    `normalize_images` is false.

    Args:
        spaces: what the agent sees.
        config: the network's settings.
        extractor: makes the user's encoder from the observation space, in place of the configured one.

    Raises:
        ConfigError: an encoder that does not suit the observations, or a module that cannot be used.
    """

    def __init__(
        self, spaces: Spaces, config: NetworkConfig, extractor: Callable[[Any], nn.Module] | None = None
    ) -> None:
        self.specs = {name: spaces.obs[name] for name in sorted(spaces.obs)}
        self.normalize_images = config.normalize_images
        self.cnns: dict[str, CNN] = {}
        self.body: Lifted | MLP
        if extractor is None and ":" in config.encoder:
            extractor = partial(_user_module, config.encoder, kwargs=config.encoder_kwargs)
        if extractor is not None:
            self.takes_dict = isinstance(spaces.observation_space, Mapping)
            zeros = {name: torch.zeros(spec.shape) for name, spec in self.specs.items()}
            make = partial(extractor, spaces.observation_space)
            self.body = Lifted(make, zeros if self.takes_dict else zeros["obs"])
        else:
            self._check(config.encoder)
            if config.encoder != "mlp":
                self.cnns = {
                    name: CNN(spec.shape, n_out=config.cnn_features, normalize=self.normalize_images)
                    for name, spec in self.specs.items()
                    if is_image(spec, self.normalize_images)
                }
            flat = [math.prod(spec.shape) for name, spec in self.specs.items() if name not in self.cnns]
            width = sum(flat) + sum(cnn.n_out for cnn in self.cnns.values())
            self.body = MLP(width, config.encoder_layers, config.activation, config.layer_norm)
        self.n_out = self.body.n_out

    def _check(self, encoder: str) -> None:
        vectors = [name for name, spec in self.specs.items() if not is_image(spec, self.normalize_images)]
        if encoder == "cnn" and vectors:
            shape = self.specs[vectors[0]].shape
            scaled = " or, where its pixels are scaled already, normalize_images: false" if len(shape) == 3 else ""
            raise ConfigError(
                f"model.network.encoder='cnn' needs images, but the observation {vectors[0]!r} of shape "
                f"{shape} is not one (8-bit pixels); set model.network.encoder: auto{scaled}"
            )

    def init(self, generator: torch.Generator) -> Params:
        """Parameters of one member."""
        params = {f"cnn_{name}": cnn.init(generator) for name, cnn in self.cnns.items()}
        return params | {"body": self.body.init(generator)}

    def __call__(self, params: Params, obs: dict[str, Tensor]) -> Float[Tensor, "pop *batch n_out"]:
        """Encodes every key [pop, *batch, *shape]."""
        if isinstance(self.body, Lifted):
            floats = {name: self._floats(spec, obs[name]) for name, spec in self.specs.items()}
            return self.body(params["body"], floats if self.takes_dict else floats["obs"])
        parts = [self._part(params, name, spec, obs[name]) for name, spec in self.specs.items()]
        return self.body(params["body"], parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1))

    def _part(self, params: Params, name: str, spec: ObsSpec, x: Tensor) -> Tensor:
        """The share of one observation key in the features."""
        if name in self.cnns:
            return self.cnns[name](params[f"cnn_{name}"], x)
        return self._floats(spec, x.reshape(*x.shape[: x.dim() - len(spec.shape)], math.prod(spec.shape)))

    def _floats(self, spec: ObsSpec, x: Tensor) -> Tensor:
        if not spec.image:
            return x
        return x / 255 if self.normalize_images else x.float()
