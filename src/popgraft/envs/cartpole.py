"""The pole on a cart, as Gymnasium's CartPole-v1."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.envs.base import Stepped, TensorEnv
from popgraft.spaces import ActionSpec, ObsSpec

GRAVITY = 9.8
POLE, TOTAL = 0.1, 1.1
"""Masses of the pole, and of pole and cart."""
LENGTH = 0.5
"""Half the pole's length."""
FORCE = 10.0
TAU = 0.02
"""Seconds of a step."""
X_LIMIT, ANGLE_LIMIT = 2.4, 12 * math.tau / 360


class CartPole(TensorEnv):
    """Balance a pole on a cart by pushing the cart left (0) or right (1); every step earns 1.

        F = ±10,   τ = (F + m l ω² sin θ)/M,   ω̇ = (g sin θ − τ cos θ)/(l (4/3 − m cos² θ/M)),   v̇ = τ − m l ω̇ cos θ/M

    The state is (x, v, θ, ω) and moves by Euler's method. (Barto, Sutton & Anderson 1983.)

    Args:
        hide_velocities: whether an agent sees (x, θ) only.
        time_limit: steps of an episode.
    """

    noise_dims = 4

    def __init__(self, hide_velocities: bool = False, time_limit: int = 500) -> None:
        self.time_limit = time_limit
        self._shown = slice(None, None, 2) if hide_velocities else slice(None)
        self.observation = ObsSpec((2 if hide_velocities else 4,))
        self.action = ActionSpec("discrete", sizes=(2,))

    def reset(self, noise: Float[Tensor, "pop env 4"]) -> Float[Tensor, "pop env 4"]:
        """All four numbers uniform on [−0.05, 0.05)."""
        return noise * 0.1 - 0.05

    def step(
        self, state: Float[Tensor, "pop env 4"], action: Int[Tensor, "pop env"], noise: Float[Tensor, "pop env 4"]
    ) -> Stepped:
        """Pushes; an episode ends beyond 2.4 from the middle or 12 degrees from upright."""
        _, v, angle, omega = state.unbind(-1)
        sin, cos = angle.sin(), angle.cos()
        push = action * (2 * FORCE / TOTAL) - FORCE / TOTAL
        tau = torch.addcmul(push, omega.square(), sin, value=POLE * LENGTH / TOTAL)
        inertia = 4 * LENGTH / 3 - cos.square() * (LENGTH * POLE / TOTAL)
        alpha = torch.addcmul(sin * GRAVITY, tau, cos, value=-1) / inertia
        acceleration = torch.addcmul(tau, alpha, cos, value=-POLE * LENGTH / TOTAL)
        state = torch.add(state, torch.stack([v, acceleration, omega, alpha], dim=-1), alpha=TAU)
        x, _, angle, _ = state.abs().unbind(-1)
        return state, torch.ones_like(x), (x > X_LIMIT) | (angle > ANGLE_LIMIT)

    def observe(self, state: Float[Tensor, "pop env 4"]) -> Float[Tensor, "pop env shown"]:
        """The state, or half of it."""
        return state[..., self._shown]
