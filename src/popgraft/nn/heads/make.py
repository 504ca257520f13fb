"""The action head for an action space."""

from collections.abc import Callable
from typing import cast

from popgraft.config import NetworkConfig
from popgraft.config.network import ACTION_HEADS
from popgraft.errors import ConfigError
from popgraft.nn.heads.base import ActionHead
from popgraft.nn.heads.bernoulli import Bernoulli
from popgraft.nn.heads.categorical import Categorical
from popgraft.nn.heads.gaussian import DiagonalGaussian
from popgraft.nn.heads.state_dependent import StateDependentGaussian
from popgraft.spaces import ActionKind, ActionSpec

Made = Callable[[int, ActionSpec, NetworkConfig], ActionHead]

HEADS: dict[ActionKind, Made] = {
    "discrete": Categorical,
    "multi_discrete": Categorical,
    "multi_binary": Bernoulli,
    "box": DiagonalGaussian,
}
"""Heads by families of action spaces."""
STATE_DEPENDENT: dict[ActionKind, Made] = {"box": StateDependentGaussian}
"""The same where `use_sde` is set."""


def make_head(n_in: int, action: ActionSpec, network: NetworkConfig) -> ActionHead:
    """Makes an action head.

    Args:
        n_in: features of the latent.
        action: what is chosen.
        network: the network's settings.

    Raises:
        ConfigError: state-dependent exploration of an action that is not continuous, or a head that cannot be used.
    """
    if network.action_head != "auto":
        made = ACTION_HEADS.make(network.action_head, n_in, action, network, **network.action_head_kwargs)
        return cast(ActionHead, made)
    heads = STATE_DEPENDENT if network.use_sde else HEADS
    if action.kind not in heads:
        raise ConfigError(f"use_sde=True needs a continuous action, and this one is {action.kind}; set use_sde: false")
    return heads[action.kind](n_in, action, network)
