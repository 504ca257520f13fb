"""Advantage estimation and discounted returns over a rollout with episode ends in it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def gae(
    reward: Float[Tensor, "pop time env"],
    value: Float[Tensor, "pop time env"],
    next_value: Float[Tensor, "pop time env"],
    end: Bool[Tensor, "pop time env"],
    gamma: Float[Tensor, "pop"],
    gae_lambda: Float[Tensor, "pop"],
) -> Float[Tensor, "pop time env"]:
    """Generalised advantage estimation.

        δₜ = rₜ + γ vₜ₊₁ − Vₜ,   Aₜ = δₜ + γλ (1 − endₜ) Aₜ₊₁

    Schulman et al. 2016 (arXiv:1506.02438), eq. 16, with the bootstrap of a truncated episode kept (Pardo et al. 2018).

    Args:
        reward: rₜ.
        value: Vₜ.
        next_value: vₜ₊₁: 0 where the episode terminated, the value of the terminal observation where it was truncated,
            else the value of the next step.
        end: whether the episode ended with this step, either way.
        gamma: discount per step.
        gae_lambda: decay λ.

    Returns:
        Advantages; value + advantage is the λ-return.
    """
    delta = reward + gamma.view(-1, 1, 1) * next_value - value
    decay = (gamma * gae_lambda).view(-1, 1)
    advantage = torch.empty_like(delta)
    running = torch.zeros_like(delta[:, 0])
    for t in range(delta.shape[1] - 1, -1, -1):
        following = running.masked_fill(end[:, t], 0)  # a factor of 0 would let NaN through
        running = torch.addcmul(delta[:, t], decay, following)
        advantage[:, t] = running
    return advantage


def discounted_sums(
    reward: Float[Tensor, "pop time env"],
    end: Bool[Tensor, "pop time env"],
    gamma: Float[Tensor, "pop"],
    start: Float[Tensor, "pop env"],
) -> tuple[Float[Tensor, "pop time env"], Float[Tensor, "pop env"]]:
    """Running discounted sum of past rewards, Rₜ = γ Rₜ₋₁ + rₜ, restarted at each episode.

    Args:
        reward: rₜ.
        end: whether the episode ended with this step.
        gamma: discount per step; 1 gives the undiscounted running return.
        start: Rₜ before the first step.

    Returns:
        Rₜ at every step (an episode's last step holds its whole sum), and the sum to carry into the next rollout.
    """
    sums = torch.empty_like(reward)
    running = start
    for t in range(reward.shape[1]):
        sums[:, t] = torch.addcmul(reward[:, t], gamma.view(-1, 1), running)
        running = sums[:, t].masked_fill(end[:, t], 0)
    return sums, running
