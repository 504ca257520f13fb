"""Whether the sizes that a file names can be those of the weights that it holds, asked before anything is built."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
from torch import Tensor

from popgraft.config.network import CRITICS, MEMORIES
from popgraft.errors import StoreError
from popgraft.nn.encoders import is_image
from popgraft.rollout.spaces_of import fields_of
from popgraft.sb3.arguments import policy_arguments
from popgraft.sb3.network import ENCODERS

LARGEST_SPACE = 2**24
"""Numbers in an observation or an action, at most."""
LARGEST = {"n_envs": 2**16, "ent_coef_plateau_window": 2**20, "stats_window_size": 2**31}
"""What has nothing to do with weights."""
DENSE = ("net_arch", "head_layers", "critic_head_layers")
"""Settings that are numbers of units wherever they stand, of which each has at least one weight."""


def check_sizes(path: Any, values: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Refuses arguments that describe a network which a file's weights cannot fill.

    Args:
        path: the file, for messages.
        values: the arguments, decoded, with a class for the policy.
        parameters: the file's state dicts.

    Raises:
        StoreError: a size is out of the question.
        ConfigError: the arguments set something twice, or name a space that no agent can have.
    """
    weights = [leaf for leaf in parameters.get("policy", {}).values() if isinstance(leaf, Tensor)]
    total, settings = sum(leaf.numel() for leaf in weights), values["settings"]
    for name, most in LARGEST.items():
        _refuse_above(most, path, name, values.get(name, settings.get(name)))
    for name in ("observation_space", "action_space"):
        if isinstance(values.get(name), gym.Space):
            _refuse_above(LARGEST_SPACE, path, name, gym.spaces.flatdim(values[name]))
    network = policy_arguments(settings, values.get("policy_kwargs") or {})
    for name, width in _widths(network, values):
        for size in _integers(width):
            _refuse_above(total, path, name, size)
    memory = MEMORIES.load(network.get("recurrent", "lstm"))
    if memory:  # else they mean nothing
        widest = math.isqrt(total // memory.matrices) if memory.matrices else total
        for name in ("lstm_hidden_size", "hidden_size"):
            _refuse_above(widest, path, name, network.get(name))
        for name in ("n_lstm_layers", "recurrent_layers"):
            _refuse_above(len(weights), path, name, network.get(name))


def _widths(network: Mapping[str, Any], values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The numbers of units that the network uses; an encoder of the user's has none that are known here."""
    sized_by = CRITICS.load(network.get("critic", "quantile")).sized_by
    names = [*DENSE, *([sized_by] if sized_by else [])]
    extractor = network.get("features_extractor_class") or values["policy_class"].extractor
    encoder = network.get("encoder", ENCODERS.get(extractor))
    if extractor in ENCODERS and ":" not in encoder:
        names.append("encoder_layers")
        fields = fields_of(values["observation_space"]).values()
        normalized = bool(network.get("normalize_images", True))
        if encoder != "mlp" and any(is_image(field.spec, normalized) for field in fields):
            names += ["cnn_features", "features_extractor_kwargs"]
    return ((name, network.get(name)) for name in names)


def _refuse_above(most: int, path: Any, name: str, size: Any) -> None:
    if isinstance(size, int) and size > most:
        raise StoreError(f"{path} is refused: {name}={size:,}, but its weights allow {most:,} at most")


def _integers(value: Any) -> Iterator[int]:
    if isinstance(value, (Mapping, list)):
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _integers(part)
    elif isinstance(value, int):
        yield value
