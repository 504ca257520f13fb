"""The variance gradient scaler: shorter steps for a member whose gradient fluctuates from step to step.

The statistic follows the normalised gradient variance of Faghri & Duvenaud 2020 (arXiv:2007.04532); the scaling rule is
this project's own.
"""

import dataclasses
import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.errors import ConfigError
from popgraft.state import VGSState
from popgraft.tree import wide

PERCENTILE = 0.9
"""Share of a member's tensors whose normalised variance lies below the one that counts."""


@dataclasses.dataclass(frozen=True)
class VGSRule:
    """Constants of the variance gradient scaler.

    Args:
        beta: decay rate β of the running averages, per optimizer step.
        eps: ε, added to the denominator of the normalised variance, in units of the squared gradient.
        warmup_steps: optimizer steps to measure before the factor leaves 1.
        min_scaling_factor: smallest factor.
        cap: largest normalised variance that counts.
        statistic: `spatial_mean` follows the mean of every tensor's gradient, `per_element` every element.

    Raises:
        ConfigError: a constant outside its range.
    """

    beta: int | float = 0.99
    eps: int | float = 1e-8
    warmup_steps: int = 100
    min_scaling_factor: int | float = 0.1
    cap: int | float = 50
    statistic: str = "spatial_mean"

    def __post_init__(self) -> None:
        def require(holds: bool, name: str, domain: str, example: object) -> None:
            if not holds:
                value = getattr(self, name)
                raise ConfigError(f"VGS: {name}={value!r} must be {domain}, for example {name}={example!r}")

        require(0 <= self.beta < 1, "beta", "in [0, 1)", 0.99)
        require(0 < self.eps < math.inf, "eps", "positive and finite", 1e-8)
        require(0 <= self.warmup_steps < math.inf, "warmup_steps", "0 or more", 100)
        require(0 <= self.min_scaling_factor <= 1, "min_scaling_factor", "in [0, 1]", 0.1)
        require(self.cap >= 0, "cap", "0 or more", 50)
        statistics = ("spatial_mean", "per_element")
        require(self.statistic in statistics, "statistic", " or ".join(statistics), "spatial_mean")


def initial_vgs_state(params: Float[Tensor, "pop n"], sizes: Sequence[int], rule: VGSRule) -> VGSState:
    """Nothing measured yet.

    Args:
        params: flat parameters, for their number, device and precision.
        sizes: elements of each named tensor in a row of `params`.
        rule: decides between one average per tensor and one per element.
    """
    pop, n = params.shape
    size = n if rule.statistic == "per_element" else len(sizes)
    return VGSState(
        step_count=params.new_zeros(pop),
        param_grad_mean_ema=params.new_zeros(pop, size),
        param_grad_sq_ema=params.new_zeros(pop, size),
        grad_mean_ema=params.new_zeros(pop),
        grad_var_ema=params.new_zeros(pop),
        grad_norm_ema=params.new_zeros(pop),
        grad_max_ema=params.new_zeros(pop),
    )


def measure_(
    state: VGSState, grad: Float[Tensor, "pop n"], sizes: Sequence[int], active: Bool[Tensor, "pop"], rule: VGSRule
) -> Bool[Tensor, "pop"]:
    """Enters the raw gradient into the running averages, in place; once per optimizer step, before any scaling.

        M ← βM + (1 − β)μ,  Q ← βQ + (1 − β)μ²,  μ the mean of a tensor's gradient, or the gradient itself

    A member that is not `active`, or whose gradient has no finite norm, is left exactly as it is.

    Args:
        state: running averages.
        grad: raw gradient.
        sizes: elements of each named tensor in a row of `grad`.
        active: members that are about to take the step.
        rule: constants.

    Returns:
        The members that were measured.
    """
    norm: Tensor = torch.linalg.vector_norm(grad, dim=1)
    mean = grad.mean(1)
    mean_square = (norm / math.sqrt(grad.shape[1])).square()
    observed = grad
    if rule.statistic == "spatial_mean":
        observed = torch.stack([part.mean(1) for part in grad.split(list(sizes), dim=1)], dim=1)
    measured = active & norm.isfinite()
    weight = measured.to(grad.dtype) * (1 - rule.beta)
    for average, value in (
        (state.param_grad_mean_ema, observed),
        (state.param_grad_sq_ema, observed.square()),
        (state.grad_mean_ema, mean),
        (state.grad_var_ema, (mean_square - mean.square()).clamp(min=0)),
        (state.grad_norm_ema, norm),
        (state.grad_max_ema, torch.maximum(grad.amax(1), -grad.amin(1))),
    ):
        # A weight of 0 changes no bit unless it meets a NaN.
        average.lerp_(value.nan_to_num(0.0, 0.0, 0.0), wide(weight, average))
    state.step_count.add_(measured)
    return measured


def normalized_variance(state: VGSState, sizes: Sequence[int], rule: VGSRule) -> Float[Tensor, "pop"]:
    """90th percentile over a member's tensors of their normalised gradient variance r.

        M̂ = M/(1 − βᵗ),  Q̂ = Q/(1 − βᵗ)
        spatial_mean:  r = max(Q̂ − M̂², 0)/(M̂² + ε) ≥ 0
        per_element:   r = max(Σ Q̂ − Σ M̂², 0)/(Σ Q̂ + ε) ∈ [0, 1],  sums over the elements of the tensor

    The sums weigh an element by its share of the tensor's gradient energy: an element that is always nearly zero,
    however noisy, has no say. The percentile interpolates linearly between tensors.
    """
    correction = (1 - rule.beta ** state.step_count.double().clamp(min=1)).to(state.step_count.dtype).unsqueeze(1)
    mean, square = state.param_grad_mean_ema, state.param_grad_sq_ema
    if rule.statistic == "spatial_mean":
        signal, energy = (mean / correction).square(), square / correction
        denominator = signal + rule.eps
    else:
        means, squares = mean.split(list(sizes), dim=1), square.split(list(sizes), dim=1)
        norms = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in means], dim=1)
        signal = (norms / correction).square()
        energy = torch.stack([part.sum(1) for part in squares], dim=1) / correction
        denominator = energy + rule.eps
    return torch.quantile((energy - signal).clamp(min=0) / denominator, PERCENTILE, dim=1)


def warmup_active(state: VGSState, rule: VGSRule) -> Bool[Tensor, "pop"]:
    """Whether fewer than `warmup_steps` gradients have been measured."""
    return state.step_count < rule.warmup_steps


def scaling_factor(
    state: VGSState, variance: Float[Tensor, "pop"], alpha: Float[Tensor, "pop"], rule: VGSRule
) -> Float[Tensor, "pop"]:
    """What to multiply each member's gradient, or its learning rate, with; 1 during warm-up.

        clip(1/(1 + α·min(r, cap)), min_scaling_factor, 1)

    Args:
        state: running averages.
        variance: r, from `normalized_variance`.
        alpha: strength α ≥ 0 of every member.
        rule: constants.
    """
    factor = (1 / (1 + alpha * variance.clamp(max=rule.cap))).clamp(rule.min_scaling_factor, 1)
    return factor.masked_fill(warmup_active(state, rule), 1)
