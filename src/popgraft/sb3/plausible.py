"""Whether the sizes that a file names can be those of the weights that it holds, asked before anything is built."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

import gymnasium as gym
from torch import Tensor

from popgraft.errors import StoreError

LARGEST_SPACE = 2**24
"""Numbers in an observation or an action, at most."""
LARGEST = {"n_envs": 2**16, "ent_coef_plateau_window": 2**20, "stats_window_size": 2**31}
"""What has nothing to do with weights."""
WIDTHS = ("encoder_layers", "cnn_features", "n_quantiles", "n_bins")
"""Settings that are numbers of units, of which each has at least one weight, beside those in `policy_kwargs`."""


def check_sizes(path: Any, values: Mapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Refuses a file whose arguments describe a network that its weights cannot fill.

    Args:
        path: the file, for messages.
        values: its arguments, decoded.
        parameters: its state dicts.

    Raises:
        StoreError: a size is out of the question.
    """
    weights = [leaf for leaf in parameters.get("policy", {}).values() if isinstance(leaf, Tensor)]
    total = sum(leaf.numel() for leaf in weights)
    settings, kwargs = values["settings"], dict(values.get("policy_kwargs") or {})
    width, depth = (kwargs.pop(name, None) for name in ("lstm_hidden_size", "n_lstm_layers"))
    for name, size in _integers({name: settings[name] for name in WIDTHS if name in settings} | kwargs):
        _refuse_above(total, path, name, size)
    if settings.get("recurrent") != "none":  # else they mean nothing; a GRU has three matrices, an LSTM four
        _refuse_above(math.isqrt(total // 3), path, "lstm_hidden_size", width)
        _refuse_above(len(weights), path, "n_lstm_layers", depth)
    for name, most in LARGEST.items():
        _refuse_above(most, path, name, values.get(name, settings.get(name)))
    for name in ("observation_space", "action_space"):
        if isinstance(values.get(name), gym.Space):
            _refuse_above(LARGEST_SPACE, path, name, gym.spaces.flatdim(values[name]))


def _refuse_above(most: int, path: Any, name: str, size: Any) -> None:
    if isinstance(size, int) and size > most:
        raise StoreError(f"{path} is refused: it names {name}={size:,}, but its weights allow {most:,} at most")


def _integers(value: Any, name: str = "") -> Iterator[tuple[str, int]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from _integers(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list):
        for part in value:
            yield from _integers(part, name)
    elif isinstance(value, int):
        yield name, value
