"""Continuing control: a mass follows a target for ever."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.envs.base import Stepped, TensorEnv
from popgraft.errors import ConfigError
from popgraft.spaces import ActionSpec, ObsSpec

TAU = 0.1
"""Seconds of a step."""
FORCE = 4.0
FRICTION = 1.0


@dataclasses.dataclass
class Chase:
    """The state: position and velocity of the mass, and of its target."""

    x: Float[Tensor, "pop env"]
    v: Float[Tensor, "pop env"]
    y: Float[Tensor, "pop env"]
    w: Float[Tensor, "pop env"]


class Tracking(TensorEnv):
    """Push a mass along a line so that it stays on a target that takes a new velocity w without notice.

        r = −(x − y)²,   v ← v + (4u − v) τ,   x ← x + vτ,   y ← y + wτ, reflected at ±1

    with the force u in [−1, 1]. At every step w is redrawn from [−1, 1) with a given probability. The agent sees (x, y)
    and has to remember both velocities. An episode never ends, so returns are those of as many steps as are played.

    Args:
        turn_probability: of a new velocity, per step.

    Raises:
        ConfigError: a probability outside [0, 1].
    """

    noise_dims = 3

    def __init__(self, turn_probability: float = 0.05) -> None:
        if not 0 <= turn_probability <= 1:
            raise ConfigError(f"Tracking: turn_probability={turn_probability} must lie in [0, 1], for example 0.05")
        self._turn_probability = turn_probability
        self.observation = ObsSpec((2,))
        self.action = ActionSpec("box", shape=(1,), low=(-1.0,), high=(1.0,))

    def reset(self, noise: Float[Tensor, "pop env 3"]) -> Chase:
        """The mass at rest; its place, the target's and its velocity uniform on [−1, 1)."""
        x, y, w = (2 * noise - 1).unbind(-1)
        return Chase(x, torch.zeros_like(x), y, w)

    def step(self, state: Chase, action: Float[Tensor, "pop env 1"], noise: Float[Tensor, "pop env 3"]) -> Stepped:
        """Pushes the mass, and moves the target."""
        turn, drawn, _ = noise.unbind(-1)
        v = state.v + (FORCE * action.squeeze(-1) - FRICTION * state.v) * TAU
        x = state.x + v * TAU
        w = torch.where(turn < self._turn_probability, 2 * drawn - 1, state.w)
        moved = state.y + w * TAU
        y = moved.clamp(-1, 1) * 2 - moved
        w = torch.where(moved.abs() > 1, -w, w)
        reward = -(x - y).square()
        return Chase(x, v, y, w), reward, torch.zeros_like(reward, dtype=torch.bool)

    def observe(self, state: Chase) -> Float[Tensor, "pop env 2"]:
        """(x, y)."""
        return torch.stack([state.x, state.y], dim=-1)
