"""Initial weights as torch.nn and sb3-contrib draw them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import NetworkConfig
from popgraft.config.kinds import kinds_of
from popgraft.nn import Params, Policy
from popgraft.nn.encoders.own import ModuleEncoder

RECURRENT = "weight_hh"
"""What the parameters of a recurrent layer have, and no others."""


PARTS = {
    "encoder": ("encoder", "critic_encoder"),
    "recurrent": ("actor_memory", "critic_memory"),
    "action_head": ("head",),
}
"""Parts of a network that a kind draws the weights of, by its setting."""


def draw_as_torch_(
    network: Policy, config: NetworkConfig, flat: Float[Tensor, "1 n"], generator: torch.Generator, dense: bool
) -> None:
    """Draws weights and biases from U(−1/√n, 1/√n), n the inputs of a unit (recurrent: the layer's width), in place.

    As torch.nn.LSTM, Linear and Conv2d do; a recurrent layer's bias is the sum of PyTorch's two. Layer norms, standard
    deviations and what the user's own kinds have drawn stay.

    Args:
        network: knows where the parameters lie.
        config: its settings.
        flat: parameters of a population of one.
        generator: source of the draws.
        dense: whether dense and convolutional layers are drawn too, and not recurrent ones alone.
    """
    kinds = kinds_of(NetworkConfig)
    own = {part for name, parts in PARTS.items() if getattr(config, name) not in kinds[name].table for part in parts}
    if isinstance(network.encoder, ModuleEncoder):
        own.update(PARTS["encoder"])
    _draw_({name: part for name, part in network.views(flat).items() if name not in own}, generator, dense)


def _draw_(params: Params, generator: torch.Generator, dense: bool) -> None:
    for node in params.values():
        if not isinstance(node, dict):
            continue
        weight = node.get(RECURRENT, node.get("weight"))
        if weight is None or weight.dim() < 3:
            _draw_(node, generator, dense)
        elif RECURRENT in node or dense:
            bound = 1 / math.sqrt(weight[0, 0].numel())
            for name, leaf in node.items():
                summands = 2 if RECURRENT in node and name == "bias" else 1
                leaf.copy_(sum(_uniform(leaf.shape, bound, generator) for _ in range(summands)))


def _uniform(shape: torch.Size, bound: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
