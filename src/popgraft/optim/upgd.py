"""UPGD and AdaptiveUPGD for a whole population: gradient descent, perturbed where a parameter is of little use.

Elsayed & Mahmood, ICLR 2024 (arXiv:2404.00781), with the gate in units of the bias-corrected maximum. The utility
must be known for all of an agent's parameters before any of them moves, hence `track_`, then `descend_`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft import native, tree
from popgraft.native import Definition
from popgraft.state import OptimizerState

BLOCK = 2**19
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
        grad: g; set to zero for members that rest.
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
    columns = begin(state.step.add_(moving), learning_rate, sigma, weight_decay, moving, rule)
    found = []
    for theta, g, xi, mask, averages, own in _blocks(params, grad, noise, keep, state.averages, columns):
        # zeros for resting members, by bits: NaN · 0 is NaN, and torch.where is five times slower
        g.view(bits).bitwise_and_(mask)
        low, high = track_(theta, g, averages, own, rule)
        eta = normaliser(low, high)
        measured = descend_(theta, g, averages, xi, own, eta, sizes, rule)
        found.append({**measured, "upgd_gate_max": torch.sigmoid(-low / eta).squeeze(1)})
    return found[0] if len(found) == 1 else tree.concatenate(found)


class Columns(NamedTuple):
    """What a step needs to know of every member, [pop, 1] each, for products with [pop, n].

    Attributes:
        keep_utility: β of the utility; 1 for a resting member, as all decay rates here.
        keep_square: β₂.
        take_grad: 1 − β₁; 0 for a resting member.
        take_norm: 1 − β of the average of gradient norms; 0 for a resting member.
        norm_correction: 1 − βᵗ of the same.
        root_correction: √(1 − β₂ᵗ).
        eps: ε√(1 − β₂ᵗ).
        sigma: σ.
        gain: √(1 − β₂ᵗ)/(1 − β₁ᵗ); 1 where the rule is not adaptive.
        length: −ακ · gain, the factor of the direction.
        decay: 1 − αλ.
    """

    keep_utility: Tensor
    keep_square: Tensor
    take_grad: Tensor
    take_norm: Tensor
    norm_correction: Tensor
    root_correction: Tensor
    eps: Tensor
    sigma: Tensor
    gain: Tensor
    length: Tensor
    decay: Tensor


@functools.cache
def _constants(rule: UPGDRule, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """What `begin` multiplies by, as tensors: an operation with one of Python's numbers takes three times as long.

    Returns:
        Columns 1 to 4 of a resting member, and how a moving one's differ; ln β of the moments and of the gradient norm;
        0, 1 and ε.
    """
    beta1, beta2 = rule.betas
    norm = rule.noise_beta or 0.0
    resting, moving = [1.0, 1.0, 0.0, 0.0], [rule.beta_utility - 1, beta2 - 1, 1 - beta1, 1 - norm]
    logs = [math.log(beta) if beta > 0 else -math.inf for beta in (beta1, beta2, norm)]
    stacks = [torch.tensor(row, dtype=dtype, device=device).view(-1, 1, 1) for row in (resting, moving, logs)]
    return *stacks, *torch.tensor([0.0, 1.0, rule.eps], dtype=dtype, device=device).view(3, 1, 1)


def begin(
    step: Float[Tensor, "pop"],
    learning_rate: Float[Tensor, "pop"],
    sigma: Float[Tensor, "pop"],
    weight_decay: Float[Tensor, "pop"],
    moving: Float[Tensor, "pop"],
    rule: UPGDRule,
) -> Columns:
    """Factors of a step that has been counted already; `moving` is 1 for members that take it, 0 for others."""
    resting, difference, logs, zero, one, eps = _constants(rule, moving.dtype, moving.device)
    row = moving.unsqueeze(1)
    rate = learning_rate.unsqueeze(1) * row
    keep_utility, keep_square, take_grad, take_norm = torch.addcmul(resting, difference, row).unbind()
    corrections = (step.unsqueeze(1).maximum(one) * logs).expm1_().neg_()  # 1 − βᵗ to full precision
    correction1, correction2, norm_correction = corrections.unbind()
    root = correction2.sqrt_()
    gain = root / correction1 if rule.adaptive else torch.ones_like(root)
    return Columns(
        keep_utility=keep_utility,
        keep_square=keep_square,
        take_grad=take_grad,
        take_norm=take_norm,
        norm_correction=norm_correction,
        root_correction=root,
        eps=root * eps,
        sigma=sigma.unsqueeze(1),
        gain=gain,
        length=torch.addcmul(zero, rate, gain, value=-rule.utility_gain),
        decay=torch.addcmul(one, rate, weight_decay.unsqueeze(1), value=-1),
    )


@Definition
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
        columns: the step's factors, from `begin`.
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


def _contiguous(params: Tensor, grad: Tensor, averages: dict[str, Tensor], *others: object) -> bool:
    """Whether the compiled passes can work on these, of which the noise comes fourth."""
    noise = [x for x in others[:1] if isinstance(x, Tensor)]
    return all(x.is_contiguous() for x in (params, grad, *averages.values(), *noise))


@track_.compiled(_contiguous)
def _track_in_one_pass(
    params: Tensor, grad: Tensor, averages: dict[str, Tensor], columns: Columns, rule: UPGDRule
) -> tuple[Tensor, Tensor]:
    own = torch.cat([columns.keep_utility, columns.take_grad, columns.keep_square], dim=1).to(params.dtype)
    extremes = own.new_empty(2, len(params))
    native.call(
        "upgd_track",
        (params, grad, averages["utility"], *_moments(averages, rule), own, _track_constants(rule), extremes),
        (*params.shape, rule.adaptive),
    )
    low, high = extremes.unsqueeze(2).unbind()
    return low, high


def normaliser(low: Tensor, high: Tensor) -> Tensor:
    """η from the least and the largest utility: the largest if positive, else the largest magnitude, and never 0."""
    return torch.where(high > 0, high, -low).clamp_(min=torch.finfo(high.dtype).tiny)


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
        columns: the step's factors, from `begin`.
        eta: η in units of the uncorrected utility.
        sizes: elements of each named tensor in a row.
        rule: constants.

    Returns:
        `upgd_noise_std` and `upgd_gate_mean`, as `upgd_`.
    """
    std = _noise_std(grad, averages, columns, sizes, rule)
    spread = std / columns.gain
    if spread.shape[1] > 1:
        for part, own in zip(noise.split(sizes, dim=1), spread.split(1, dim=1), strict=True):
            part.mul_(own)
        spread = torch.ones_like(columns.gain)
    mean = move_(params, grad, averages, noise, spread, columns, eta, rule)
    return {"upgd_noise_std": _root_mean_square(std, sizes), "upgd_gate_mean": mean}


@Definition
def move_(
    params: Float[Tensor, "pop n"],
    grad: Float[Tensor, "pop n"],
    averages: dict[str, Float[Tensor, "pop ..."]],
    noise: Float[Tensor, "pop n"],
    spread: Float[Tensor, "pop 1"],
    columns: Columns,
    eta: Float[Tensor, "pop 1"],
    rule: UPGDRule,
) -> Float[Tensor, "pop"]:
    """The last part of `descend_`, in place: θ ← (1 − αλ)θ + length · (m/(√v + ε′) + spread · ξ)∘(1 − s).

    Returns:
        Mean 1 − s.
    """
    gate = torch.div(averages["utility"], -eta).sigmoid_()  # sigmoid(−x) = 1 − sigmoid(x)
    noise.mul_(spread)
    if rule.adaptive:
        denominator = averages["exp_avg_sq"].sqrt().add_(columns.eps)
        noise.addcdiv_(averages["exp_avg"], denominator)
    else:
        noise.add_(grad)
    params.mul_(columns.decay).addcmul_(noise.mul_(gate), columns.length)
    return gate.mean(1)


@move_.compiled(_contiguous)
def _move_in_one_pass(
    params: Tensor,
    grad: Tensor,
    averages: dict[str, Tensor],
    noise: Tensor,
    spread: Tensor,
    columns: Columns,
    eta: Tensor,
    rule: UPGDRule,
) -> Tensor:
    pop = len(params)
    own = torch.cat([eta.expand(pop, 1), spread, columns.eps, columns.length, columns.decay], dim=1).to(params.dtype)
    mean = own.new_empty(pop)
    native.call(
        "upgd_descend",
        (params, grad, averages["utility"], *_moments(averages, rule), noise, own, mean),
        (*params.shape, rule.adaptive),
    )
    return mean


def _moments(averages: dict[str, Tensor], rule: UPGDRule) -> tuple[Tensor, Tensor]:
    """The moments, or what stands in their places where the rule has none."""
    names = ("exp_avg", "exp_avg_sq") if rule.adaptive else ("utility", "utility")
    return averages[names[0]], averages[names[1]]


@functools.cache
def _track_constants(rule: UPGDRule) -> Tensor:
    """Factors of g∘θ in the utility, and of g² in the second moment."""
    return torch.tensor([rule.beta_utility - 1, 1 - rule.betas[1]], dtype=torch.float32)


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
    counts = _counts(tuple(sizes), norm.dtype, norm.device)
    std = columns.sigma * norm
    if rule.noise_scaling == "rms":
        std = std / counts.sqrt()
    if rule.adaptive:
        sums = torch.stack([part.sum(1) for part in averages["exp_avg_sq"].split(sizes, dim=1)], dim=1)
        std = std / ((sums / counts).sqrt() / columns.root_correction + rule.eps)
    return std.clamp(min=rule.min_noise_std)


@functools.cache
def _counts(sizes: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Elements of every tensor, copied to the device once."""
    return torch.tensor(sizes, dtype=dtype, device=device)


def _root_mean_square(std: Tensor, sizes: Sequence[int]) -> Tensor:
    """Root mean square over elements of the tensors' standard deviations."""
    if std.shape[1] == 1:
        return std.squeeze(1).clone()
    return (std.square() @ _counts(tuple(sizes), std.dtype, std.device)).div_(sum(sizes)).sqrt_()


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
