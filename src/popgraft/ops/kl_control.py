"""A penalty on the policy's step, and the controller that keeps the step at its target.

The loss carries β·E_old[log π_old − log π]; a discrete PID controller in velocity form moves β so that the KL
divergence of an update comes to its target. That form computes the *change* of β (Åström & Hägglund 2006, Advanced PID
Control), so the integral is β itself: where β is clamped nothing winds up beyond the clamp, and an error of the other
sign moves it away at once. The sum of errors is kept for the log only; the law does not read it.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.errors import StoreError
from popgraft.ops.reduce import mean
from popgraft.state import KLControl

STATE_KEYS = {
    "kl_beta": "beta",
    "kl_err_int": "error_sum",
    "kl_err_prev": "error_prev",
    "kl_penalty_error": "error",
}
"""Fields of `KLControl` by their names in a model's parameters."""


class Gains(NamedTuple):
    """Gains of the controller, in units of β per unit of relative error."""

    p: Float[Tensor, "pop"]
    """Proportional gain Kp."""
    i: Float[Tensor, "pop"]
    """Integral gain Ki, per update."""
    d: Float[Tensor, "pop"]
    """Derivative gain Kd, times updates."""


def initial_kl_control(beta: Float[Tensor, "pop"]) -> KLControl:
    """The given coefficient, and no error so far."""
    return KLControl(
        beta=beta.clone(),
        error=torch.zeros_like(beta),
        error_prev=torch.zeros_like(beta),
        error_sum=torch.zeros_like(beta),
    )


def kl_penalty(log_ratio: Float[Tensor, "pop *batch"], valid: Float[Tensor, "pop *batch"]) -> Float[Tensor, "pop"]:
    """E_old[log π_old − log π], an estimate of KL(π_old ‖ π) in nats whose gradient is that of the divergence.

    Args:
        log_ratio: log π − log π_old of the actions taken by π_old.
        valid: 1 for samples that count.
    """
    return -mean(log_ratio, valid)


def update_(
    state: KLControl,
    kl: Float[Tensor, "pop"],
    target: Float[Tensor, "pop"],
    gains: Gains,
    bounds: tuple[float, float],
    active: Bool[Tensor, "pop"],
) -> None:
    """Moves β by one step of the controller.

        eₜ = KL/target − 1
        β ← clip(β + Kp (eₜ − eₜ₋₁) + Ki eₜ + Kd (eₜ − 2eₜ₋₁ + eₜ₋₂), low, high)

    The errors before the first are 0. A member that is not active, has no target (infinite) or whose divergence is not
    finite is left as it is.

    Args:
        state: what is updated.
        kl: KL divergence that the update reached, nats.
        target: divergence to aim at, nats.
        gains: Kp, Ki, Kd.
        bounds: smallest and largest β, per nat.
        active: members that made an update.
    """
    error = kl / target - 1
    change = gains.p * (error - state.error)
    change = change + gains.i * error + gains.d * (error - 2 * state.error + state.error_prev)
    moved = active & kl.isfinite() & target.isfinite()
    state.beta.copy_(torch.where(moved, (state.beta + change).clamp(*bounds), state.beta))
    state.error_sum.copy_(torch.where(moved, state.error_sum + error, state.error_sum))
    state.error_prev.copy_(torch.where(moved, state.error, state.error_prev))
    state.error.copy_(torch.where(moved, error, state.error))


def state_dict(state: KLControl, member: int, gains: Gains) -> dict[str, float]:
    """Controller and gains of one member as plain numbers, for a model's parameters."""
    return {key: float(leaf[member]) for key, leaf in _leaves(state, gains).items()}


def load_(state: KLControl, member: int, gains: Gains, values: Mapping[str, Any]) -> None:
    """Writes what `state_dict` made into one member's rows of the controller and the gains.

    Raises:
        StoreError: a key is missing or unknown, or a value is not a finite number; nothing is written then.
    """
    leaves = _leaves(state, gains)
    if set(values) != set(leaves):
        raise StoreError(
            f"the state of a KL controller holds {', '.join(sorted(map(str, values))) or 'nothing'}, "
            f"but needs exactly {', '.join(leaves)}; take it from get_parameters() of a model with a KL penalty"
        )
    for key, value in values.items():
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise StoreError(f"{key}={value!r} in the state of a KL controller must be a finite number")
    for key, leaf in leaves.items():
        leaf[member] = values[key]


def _leaves(state: KLControl, gains: Gains) -> dict[str, Tensor]:
    fields = {key: getattr(state, name) for key, name in STATE_KEYS.items()}
    return fields | {f"kl_pid_{name}": gain for name, gain in gains._asdict().items()}
