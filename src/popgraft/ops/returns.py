"""Advantage estimation and discounted returns over a rollout with episode ends in it."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft import native
from popgraft.native import Definition


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
    return accumulated(delta, end, gamma * gae_lambda, delta.new_zeros(len(delta), delta.shape[2]), backward=True)[0]


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
    return accumulated(reward, end, gamma, start, backward=False)


@Definition
def accumulated(
    x: Float[Tensor, "pop time env"],
    end: Bool[Tensor, "pop time env"],
    decay: Float[Tensor, "pop"],
    carry: Float[Tensor, "pop env"],
    *,
    backward: bool,
) -> tuple[Float[Tensor, "pop time env"], Float[Tensor, "pop env"]]:
    """Sums over time that begin anew at the end of an episode, and what is carried on.

    Args:
        x: what is added at every step.
        end: whether an episode ended with this step, so that nothing passes between it and the next.
        decay: factor of the sum so far.
        carry: the sum before the first step.
        backward: whether the last step is the first.
    """
    decay, carry = decay.to(x.dtype), carry.to(x.dtype)
    columns, running = [], carry
    for now, ended in zip(*(reversed(z.unbind(1)) if backward else z.unbind(1) for z in (x, end)), strict=True):
        # A factor of 0 would let NaN through.
        before = running.masked_fill(ended, 0) if backward else running
        running = torch.addcmul(now, decay.unsqueeze(1), before)
        columns.append(running)
        running = running if backward else running.masked_fill(ended, 0)
    return torch.stack(columns[::-1] if backward else columns, 1) if columns else x.clone(), running


@accumulated.compiled(lambda x, *others, **named: not x.requires_grad)
def _accumulated_in_one_pass(
    x: Tensor, end: Tensor, decay: Tensor, carry: Tensor, *, backward: bool
) -> tuple[Tensor, Tensor]:
    x, end, decay = x.contiguous(), end.contiguous(), decay.to(x.dtype).contiguous()
    running = carry.to(x.dtype).clone(memory_format=torch.contiguous_format)
    sums = torch.empty_like(x)
    native.call("accumulate", (x, end, decay, running, sums), (*x.shape, backward))
    return sums, running
