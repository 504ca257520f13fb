"""UPGD and AdaptiveUPGD for a whole population: gradient descent, perturbed where a parameter is of little use.

Elsayed & Mahmood, ICLR 2024 (arXiv:2404.00781), with the gate in units of the bias-corrected maximum. The utility
must be known for all of an agent's parameters before any of them moves, hence `track_`, then `descend_`.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft import tree
from popgraft.state import OptimizerState

BLOCK = 2**18
"""Elements that are worked on at a time on a CPU, so that the buffers of a step stay in its cache."""

BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
"""Integers as wide as a floating-point number of so many bytes."""


@dataclasses.dataclass(frozen=True)
class UPGDRule:
    """Constants of the update rule, the same for all members.

    Attributes:
        adaptive: whether the direction is Adam's (AdaptiveUPGD) instead of the gradient (UPGD).
        beta_utility: decay rate of the utility's average.
        betas: decay rates β₁, β₂ of Adam's moments.
        eps: added to the root of the second moment.
        utility_gain: κ; 1 halves the step at zero utility, 2 restores it.
        noise_scaling: what σ is relative to: nothing ("fixed"), a tensor's root mean square gradient ("rms"), or its
            gradient's Euclidean norm ("l2"), which grows with the tensor's size and exists for comparison only.
        noise_beta: decay rate of the average of gradient norms that noise is scaled by; None takes the latest norm.
        min_noise_std: least standard deviation of scaled noise, in units of the direction.
    """

    adaptive: bool = True
    beta_utility: int | float = 0.999
    betas: tuple[int | float, int | float] = (0.9, 0.999)
    eps: int | float = 1e-8
    utility_gain: int | float = 1.0
    noise_scaling: Literal["fixed", "rms", "l2"] = "fixed"
    noise_beta: int | float | None = None
    min_noise_std: int | float = 1e-6

    @property
    def averages_norm(self) -> bool:
        """Whether the state holds an average of gradient norms."""
        return self.noise_scaling != "fixed" and self.noise_beta is not None


def initial_upgd_state(params: Float[Tensor, "pop n"], sizes: Sequence[int], rule: UPGDRule) -> OptimizerState:
    """Zero averages, no steps taken; the averages are those that `rule` needs."""
    zero = params.new_zeros(params.shape[0])
    names = ("utility", "exp_avg", "exp_avg_sq") if rule.adaptive else ("utility",)
    averages = {name: torch.zeros_like(params) for name in names}
    if rule.averages_norm:
        averages["grad_norm"] = params.new_zeros(params.shape[0], len(sizes))
    return OptimizerState(averages=averages, step=zero, skipped=zero.clone())


def upgd_(
    params: Float[Tensor, "pop n"],
    grad: Float[Tensor, "pop n"],
    state: OptimizerState,
    noise: Float[Tensor, "pop n"],
    learning_rate: Float[Tensor, "pop"],
    sigma: Float[Tensor, "pop"],
    weight_decay: Float[Tensor, "pop"],
    active: Bool[Tensor, "pop"],
    *,
    sizes: Sequence[int],
    rule: UPGDRule,
) -> dict[str, Float[Tensor, "pop"]]:
    """One optimizer step, in place; members that are not `active` are left exactly as they are.

        U ← βU − (1 − β) g∘θ,  s = sigmoid(Û/η),  η = max Û,  θ ← (1 − αλ)θ − κα d∘(1 − s)
        d = g + ξ (UPGD),  d = m̂/(√v̂ + ε) + ξ (AdaptiveUPGD),  ξ ~ N(0, σ²)

    Elsayed & Mahmood 2024 (arXiv:2404.00781), algorithm 1 with η from corrected utilities: the corrections of Û and η
    cancel. If no utility is positive, η = max |Û|; if all are zero, s = ½.

    Args:
        params: θ.
        grad: g.
        state: averages and step count, from `initial_upgd_state` with the same rule.
        noise: standard normal draws; used as a buffer and overwritten.
        learning_rate: α of every member.
        sigma: σ of every member; a ratio of noise to signal unless the scaling is "fixed".
        weight_decay: λ of every member, decoupled.
        active: members that take the step.
        sizes: elements of each named tensor in a row.
        rule: constants.

    Returns:
        `upgd_noise_std`: root mean square over elements of the noise's standard deviation, in units of d;
        `upgd_gate_mean`, `upgd_gate_max`: mean and largest 1 − s; the smallest is sigmoid(−1) if a utility is positive.
    """
    moving, bits = active.to(params.dtype), BITS[params.element_size()]
    keep = active.to(bits).neg_().unsqueeze(1)
    columns = begin_(state.step, learning_rate, sigma, weight_decay, moving, rule)
    found = []
    for theta, g, xi, mask, averages, own in _blocks(params, grad, noise, keep, state.averages, columns):
        # zeros for resting members, by bits: NaN · 0 is NaN, and torch.where is five times slower
        calm = g.view(bits).bitwise_and(mask).view(g.dtype)
        low, high = track_(theta, calm, averages, own, rule)
        eta = normaliser(low, high)
        measured = descend_(theta, calm, averages, xi, own, eta, sizes, rule)
        found.append({**measured, "upgd_gate_max": torch.sigmoid(-low / eta).squeeze(1)})
    return found[0] if len(found) == 1 else tree.concatenate(found)


class Columns(NamedTuple):
    """What a step needs to know of every member, [pop, 1] each, for products with [pop, n].

    Attributes:
        sigma: σ.
        keep_utility: β of the utility; 1 for a resting member, as all decay rates here.
        keep_square: β₂.
        take_grad: 1 − β₁; 0 for a resting member.
        take_norm: 1 − β of the average of gradient norms; 0 for a resting member.
        norm_correction: 1 − βᵗ of the same.
        root_correction: √(1 − β₂ᵗ).
        gain: √(1 − β₂ᵗ)/(1 − β₁ᵗ); 1 where the rule is not adaptive.
        length: −ακ · gain, the factor of the direction.
        decay: 1 − αλ.
    """

    sigma: Tensor
    keep_utility: Tensor
    keep_square: Tensor
    take_grad: Tensor
    take_norm: Tensor
    norm_correction: Tensor
    root_correction: Tensor
    gain: Tensor
    length: Tensor
    decay: Tensor


@functools.cache
def _constants(rule: UPGDRule, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """1 − β and ln β of the utility, the two moments and the gradient norm; and the number 1."""
    betas = torch.tensor([rule.beta_utility, *rule.betas, rule.noise_beta or 0.0], dtype=torch.float64)
    taken, logs, one = (value.to(dtype).to(device) for value in (1 - betas, betas.log(), torch.ones(1)))
    return taken, logs, one


def begin_(
    step: Float[Tensor, "pop"],
    learning_rate: Float[Tensor, "pop"],
    sigma: Float[Tensor, "pop"],
    weight_decay: Float[Tensor, "pop"],
    moving: Float[Tensor, "pop"],
    rule: UPGDRule,
) -> Columns:
    """Counts the step and works out the factors of it; `moving` is 1 for members that take it, 0 for others."""
    taken, logs, one = _constants(rule, moving.dtype, moving.device)
    step.add_(moving)
    row, rate = moving.unsqueeze(1), (learning_rate * moving).unsqueeze(1)
    corrections = torch.expm1(step.clamp(min=1).unsqueeze(1) * logs).neg_()  # 1 − βᵗ to full precision
    _, correction1, correction2, norm_correction = corrections.split(1, dim=1)
    keep_utility, _, keep_square, _ = torch.addcmul(one, row, taken, value=-1).split(1, dim=1)
    _, take_grad, _, take_norm = (row * taken).split(1, dim=1)
    root = correction2.sqrt()
    gain = root / correction1 if rule.adaptive else one
    return Columns(
        sigma=sigma.unsqueeze(1),
        keep_utility=keep_utility,
        keep_square=keep_square,
        take_grad=take_grad,
        take_norm=take_norm,
        norm_correction=norm_correction,
        root_correction=root,
        gain=gain.expand_as(root),
        length=rate * gain * -rule.utility_gain,
        decay=torch.addcmul(one, rate, weight_decay.unsqueeze(1), value=-1),
    )


def track_(
    params: Float[Tensor, "pop n"],
    grad: Float[Tensor, "pop n"],
    averages: dict[str, Float[Tensor, "pop ..."]],
    columns: Columns,
    rule: UPGDRule,
) -> tuple[Float[Tensor, "pop 1"], Float[Tensor, "pop 1"]]:
    """Updates the averages of utility and moments, in place.

    Args:
        params: θ.
        grad: g; zero for resting members.
        averages: of the optimizer's state.
        columns: the step's factors, from `begin_`.
        rule: constants.

    Returns:
        Least and largest utility, before the correction of its bias.
    """
    utility = averages["utility"]
    utility.mul_(columns.keep_utility).addcmul_(grad, params, value=rule.beta_utility - 1)
    if rule.adaptive:
        averages["exp_avg"].lerp_(grad, columns.take_grad)
        averages["exp_avg_sq"].mul_(columns.keep_square).addcmul_(grad, grad, value=1 - rule.betas[1])
    return utility.amin(1, keepdim=True), utility.amax(1, keepdim=True)


def normaliser(low: Tensor, high: Tensor) -> Tensor:
    """η from the least and the largest utility: the largest if positive, else the largest magnitude, and never 0."""
    return torch.where(high > 0, high, -low).clamp(min=torch.finfo(high.dtype).tiny)


def descend_(
    params: Float[Tensor, "pop n"],
    grad: Float[Tensor, "pop n"],
    averages: dict[str, Float[Tensor, "pop ..."]],
    noise: Float[Tensor, "pop n"],
    columns: Columns,
    eta: Float[Tensor, "pop 1"],
    sizes: Sequence[int],
    rule: UPGDRule,
) -> dict[str, Float[Tensor, "pop"]]:
    """Moves the parameters along the gated and perturbed direction, after `track_`, in place.

    With corrections c₁ = 1 − β₁ᵗ and c₂ = 1 − β₂ᵗ, AdaptiveUPGD's direction is formed as
    (√c₂/c₁) · (m/(√v + ε√c₂) + (c₁/√c₂) ξ), which spares passes over m and v.

    Args:
        params: θ.
        grad: g; zero for resting members.
        averages: of the optimizer's state.
        noise: standard normal draws; used as a buffer and overwritten.
        columns: the step's factors, from `begin_`.
        eta: η in units of the uncorrected utility.
        sizes: elements of each named tensor in a row.
        rule: constants.

    Returns:
        `upgd_noise_std` and `upgd_gate_mean`, as `upgd_`.
    """
    std = _noise_std(grad, averages, columns, sizes, rule)
    gate = torch.div(averages["utility"], -eta).sigmoid_()  # sigmoid(−x) = 1 − sigmoid(x)
    _scale_(noise, std / columns.gain, sizes)
    if rule.adaptive:
        denominator = averages["exp_avg_sq"].sqrt().add_(columns.root_correction * rule.eps)
        noise.addcdiv_(averages["exp_avg"], denominator)
    else:
        noise.add_(grad)
    params.mul_(columns.decay).addcmul_(noise.mul_(gate), columns.length)
    return {"upgd_noise_std": _root_mean_square(std, sizes), "upgd_gate_mean": gate.mean(1)}


def _noise_std(
    grad: Tensor, averages: dict[str, Tensor], columns: Columns, sizes: Sequence[int], rule: UPGDRule
) -> Float[Tensor, "pop parts"]:
    """Standard deviation of ξ for every tensor, or one for all of them, in units of the direction.

    σ ("fixed"), σ‖g‖/√numel ("rms") or σ‖g‖ ("l2"); the latter two divided by rms(√v̂) + ε where the rule is adaptive.
    """
    if rule.noise_scaling == "fixed":
        return columns.sigma
    norm = torch.stack([torch.linalg.vector_norm(part, dim=1) for part in grad.split(sizes, dim=1)], dim=1)
    if rule.noise_beta is not None:
        averages["grad_norm"].lerp_(norm, columns.take_norm)
        norm = averages["grad_norm"] / columns.norm_correction
    counts = norm.new_tensor(sizes)
    std = columns.sigma * norm
    if rule.noise_scaling == "rms":
        std = std / counts.sqrt()
    if rule.adaptive:
        sums = torch.stack([part.sum(1) for part in averages["exp_avg_sq"].split(sizes, dim=1)], dim=1)
        std = std / ((sums / counts).sqrt() / columns.root_correction + rule.eps)
    return std.clamp(min=rule.min_noise_std)


def _scale_(noise: Tensor, std: Tensor, sizes: Sequence[int]) -> None:
    """Multiplies every tensor's noise by its standard deviation."""
    if std.shape[1] == 1:
        noise.mul_(std)
        return
    for part, own in zip(noise.split(sizes, dim=1), std.split(1, dim=1), strict=True):
        part.mul_(own)


def _root_mean_square(std: Tensor, sizes: Sequence[int]) -> Tensor:
    """Root mean square over elements of the tensors' standard deviations."""
    if std.shape[1] == 1:
        return std.squeeze(1).clone()
    return (std.square() @ std.new_tensor(sizes)).div_(sum(sizes)).sqrt_()


def _blocks(
    params: Tensor, grad: Tensor, noise: Tensor, keep: Tensor, averages: dict[str, Tensor], columns: Columns
) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor], Columns]]:
    """Rows to work on together: few enough for a CPU's cache, all of them on other devices."""
    pop, n = params.shape
    count = max(1, BLOCK // n)
    if count >= pop or params.device.type != "cpu":
        yield params, grad, noise, keep, averages, columns
        return
    for start in range(0, pop, count):
        rows = slice(start, start + count)
        own = {name: average[rows] for name, average in averages.items()}
        yield params[rows], grad[rows], noise[rows], keep[rows], own, Columns(*(column[rows] for column in columns))
