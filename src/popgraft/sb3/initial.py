"""Initial weights as torch.nn and sb3-contrib draw them."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn import Params, Policy
from popgraft.nn.lifted import Lifted

RECURRENT = "weight_hh"
"""What the parameters of a recurrent layer have, and no others."""


def draw_as_torch_(network: Policy, flat: Float[Tensor, "1 n"], generator: torch.Generator, dense: bool) -> None:
    """Draws weights and biases from U(−1/√n, 1/√n), n the inputs of a unit (recurrent: the layer's width), in place.

    As torch.nn.LSTM, Linear and Conv2d do; a recurrent layer's bias is the sum of PyTorch's two. Layer norms, standard
    deviations and encoders of the user's stay.

    Args:
        network: knows where the parameters lie.
        flat: parameters of a population of one.
        generator: source of the draws.
        dense: whether dense and convolutional layers are drawn too, and not recurrent ones alone.
    """
    own = ("encoder", "critic_encoder") if isinstance(network.encoder.body, Lifted) else ()
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
