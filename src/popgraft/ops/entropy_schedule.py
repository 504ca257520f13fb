"""The entropy coefficient's decay: it waits until entropy has settled, then falls linearly.

An update reads `coefficient` first and ends with `observe_`; `EntropySchedule.seen` is then the index of the update
that is about to run.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.state import EntropySchedule


def initial_entropy_schedule(pop: int, window: int, device: torch.device) -> EntropySchedule:
    """Nothing seen yet; without a window (0) the decay waits for nothing and begins with the first update."""
    return EntropySchedule(
        recent=torch.zeros(pop, window, device=device),
        seen=torch.zeros(pop, device=device),
        decay_start=torch.full((pop,), math.inf if window else 0.0, device=device),
    )


def observe_(state: EntropySchedule, entropy: Float[Tensor, "pop"], tolerance: float, min_updates: int) -> None:
    """Takes in the entropy of an update's rollout, and starts the decay once entropy has reached a plateau.

        |slope| ≤ tolerance,   slope = Σₜ (t − t̄)(Hₜ − H̄)/Σₜ (t − t̄)²

    over the latest `window` updates, all of them seen. A decay that has begun never begins anew. An entropy that is not
    finite postpones the start until it has left the window.

    Args:
        state: what is updated.
        entropy: mean entropy of the rollout's action distributions, nats.
        tolerance: largest slope of a plateau, nats per update.
        min_updates: updates before which no plateau counts.
    """
    state.recent.copy_(torch.cat([state.recent, entropy.unsqueeze(1)], dim=1)[:, 1:])
    window = state.recent.shape[1]
    time = torch.arange(window, device=entropy.device) - (window - 1) / 2
    centred = state.recent - state.recent.mean(1, keepdim=True)
    slope = (centred * time).sum(1) / time.square().sum().clamp(min=0.5)  # 0.5 for two updates; one alone is level
    update = state.seen.clone()
    state.seen += 1
    plateau = (slope.abs() <= tolerance) & (state.seen >= max(window, min_updates))
    state.decay_start.copy_(torch.where(plateau & state.decay_start.isinf(), update, state.decay_start))


def coefficient(
    state: EntropySchedule,
    initial: Float[Tensor, "pop"],
    final: Float[Tensor, "pop"],
    decay_steps: int,
    minimum: Float[Tensor, "pop"],
) -> Float[Tensor, "pop"]:
    """Weight of the entropy bonus in the update that is about to run.

        c = a + (b − a)·clip((seen − decay_start)/decay_steps, 0, 1)
        a = max(initial, minimum),   b = max(final, minimum)

    Nothing of it is remembered, so new values are live at once.

    Args:
        state: where the schedule stands.
        initial: coefficient before the decay, per nat.
        final: coefficient after it, per nat; not finite: there is no decay, `initial` stays.
        decay_steps: length of the decay, updates, at least 1.
        minimum: floor of the coefficient at all times, per nat.
    """
    progress = ((state.seen - state.decay_start) / decay_steps).clamp(0, 1)
    end = torch.where(final.isfinite(), final, initial)
    return torch.lerp(torch.maximum(initial, minimum), torch.maximum(end, minimum), progress)
