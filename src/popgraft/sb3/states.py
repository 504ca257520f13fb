"""Recurrent states in Stable-Baselines3's form, beside the engine's flat vectors."""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn import Policy

Memory = tuple[Tensor, ...]
"""The parts of its state, [layers, env, hidden] each: (h, c) of an LSTM, (h,) of a GRU; without a memory (h,) with no
features."""


class RNNStates(NamedTuple):
    """Recurrent state of the actor and of the critic.

    A critic without a memory of its own has a copy of the actor's state, which nothing reads.
    """

    pi: Memory
    vf: Memory


def shape_of(network: Policy) -> tuple[int, int, int]:
    """Layers, parts and features of the actor's memory."""
    memory = network.actor_memory
    return (memory.layers, memory.parts, memory.n_out) if memory else (1, 1, 0)


def unpack(carry: Float[Tensor, "1 env state"], network: Policy) -> RNNStates:
    """The engine's vectors (the parts of the first layer, then of the next; actor, then critic) as `RNNStates`.

    What the critic does not share with the actor, and all of the actor's, are views: writing to them writes to `carry`.
    """
    shape = shape_of(network)
    owners = carry[0].split(math.prod(shape), dim=1)
    memories = [tuple(part.unflatten(1, shape).permute(2, 1, 0, 3)) for part in owners]
    actor = memories[0]
    return RNNStates(actor, memories[1] if len(memories) > 1 else tuple(part.clone() for part in actor))


def pack(actor: Memory, critic: Memory | None) -> Float[Tensor, "1 env state"]:
    """The inverse of `unpack`, in new memory.

    Args:
        actor: its state.
        critic: its state; None where it has no memory of its own.
    """
    owners = [torch.stack(list(memory)).permute(2, 1, 0, 3).flatten(1) for memory in (actor, critic) if memory]
    return torch.cat(owners, dim=1).unsqueeze(0)
