"""A corridor whose first cell tells which way to turn at its end."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from popgraft.envs.base import Stepped, TensorEnv
from popgraft.errors import ConfigError
from popgraft.spaces import ActionSpec, ObsSpec

NORTH, EAST, SOUTH, WEST = range(4)
RIGHT_TURN = 4.0
PENALTY = -0.1
"""For the wrong turn, and for a step against a wall."""


@dataclasses.dataclass
class Walk:
    """The state: cells from the start, and whether the goal is in the north."""

    cell: Int[Tensor, "pop env"]
    north: Bool[Tensor, "pop env"]


class TMaze(TensorEnv):
    """Walk along a corridor to a junction, and turn there as a sign at the start has said.

    An agent moves north, east, south or west (0 to 3). It sees 011 or 110 at the start (turn north, turn south), 101 in
    the corridor and 010 at the junction. A turn at the junction ends the episode and earns 4, or −0.1 if it is the
    wrong one; moves against a wall cost 0.1. The best return is 4, and without memory 1.95 on average. (Bakker 2002,
    NIPS 14, "Reinforcement learning with long short-term memory", section 4.)

    Args:
        length: cells from the start to the junction, at least 1.
        time_limit: steps of an episode.

    Raises:
        ConfigError: a corridor without cells.
    """

    noise_dims = 1

    def __init__(self, length: int = 10, time_limit: int = 100) -> None:
        if length < 1:
            raise ConfigError(f"TMaze has no corridor with length={length}; choose length >= 1")
        self._length, self.time_limit = length, time_limit
        self.observation = ObsSpec((3,))
        self.action = ActionSpec("discrete", sizes=(4,))

    def reset(self, noise: Float[Tensor, "pop env 1"]) -> Walk:
        """At the start; the goal is in the north or in the south with equal probability."""
        north = noise.squeeze(-1) < 0.5
        return Walk(torch.zeros_like(north, dtype=torch.long), north)

    def step(self, state: Walk, action: Int[Tensor, "pop env"], noise: Float[Tensor, "pop env 1"]) -> Stepped:
        """One move."""
        sideways = (action == NORTH) | (action == SOUTH)
        turned = sideways & (state.cell == self._length)
        right = turned & ((action == NORTH) == state.north)
        move = (action == EAST).long() - (action == WEST).long()
        cell = (state.cell + move).clamp(0, self._length)
        still = (cell == state.cell) & right.logical_not()
        reward = right * RIGHT_TURN + still * PENALTY
        return Walk(cell, state.north), reward, turned

    def observe(self, state: Walk) -> Float[Tensor, "pop env 3"]:
        """Three signs, 0 or 1 each."""
        start, junction = state.cell == 0, state.cell == self._length
        first = torch.where(start, state.north.logical_not(), junction.logical_not())
        last = torch.where(start, state.north, junction.logical_not())
        return torch.stack([first, start | junction, last], dim=-1).to(torch.float32)
