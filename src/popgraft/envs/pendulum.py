"""The pendulum that is to be swung up, as Gymnasium's Pendulum-v1."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.envs.base import Stepped, TensorEnv
from popgraft.spaces import ActionSpec, ObsSpec

GRAVITY = 10.0
TAU = 0.05
"""Seconds of a step."""
MAX_SPEED, MAX_TORQUE = 8.0, 2.0


class Pendulum(TensorEnv):
    """Swing a pendulum up and hold it there with a torque u that is too weak to do it at once.

        r = −(θ² + 0.1 ω² + 0.001 u²),   ω ← clip(ω + (3/2 g sin θ + 3u) τ, ±8),   θ ← θ + ωτ,   θ = 0 upright

    An episode never terminates.

    Args:
        hide_velocities: whether an agent sees (cos θ, sin θ) only, and not ω too.
        time_limit: steps of an episode.
    """

    noise_dims = 2

    def __init__(self, hide_velocities: bool = False, time_limit: int = 200) -> None:
        self.time_limit, self._hides = time_limit, hide_velocities
        self.observation = ObsSpec((2 if hide_velocities else 3,))
        self.action = ActionSpec("box", shape=(1,), low=(-MAX_TORQUE,), high=(MAX_TORQUE,))

    def reset(self, noise: Float[Tensor, "pop env 2"]) -> Float[Tensor, "pop env 2"]:
        """θ uniform on [−π, π), ω on [−1, 1)."""
        angle, omega = (2 * noise - 1).unbind(-1)
        return torch.stack([math.pi * angle, omega], dim=-1)

    def step(
        self, state: Float[Tensor, "pop env 2"], action: Float[Tensor, "pop env 1"], noise: Float[Tensor, "pop env 2"]
    ) -> Stepped:
        """Applies the torque."""
        angle, omega = state.unbind(-1)
        torque = action.squeeze(-1)
        upright = torch.remainder(angle + math.pi, math.tau) - math.pi
        cost = upright.square() + 0.1 * omega.square() + 0.001 * torque.square()
        omega = (omega + (1.5 * GRAVITY * angle.sin() + 3 * torque) * TAU).clamp(-MAX_SPEED, MAX_SPEED)
        angle = angle + omega * TAU
        return torch.stack([angle, omega], dim=-1), -cost, torch.zeros_like(cost, dtype=torch.bool)

    def observe(self, state: Float[Tensor, "pop env 2"]) -> Float[Tensor, "pop env shown"]:
        """(cos θ, sin θ, ω), or the first two."""
        angle, omega = state.unbind(-1)
        shown = [angle.cos(), angle.sin()] if self._hides else [angle.cos(), angle.sin(), omega]
        return torch.stack(shown, dim=-1)
