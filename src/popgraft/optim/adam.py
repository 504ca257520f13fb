"""Adam and AdamW for a whole population in one pass over its flat parameters."""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft import native
from popgraft.native import Definition
from popgraft.optim.rule import Metrics, UpdateRule
from popgraft.state import OptimizerState


@dataclasses.dataclass
class AdamUpdate(UpdateRule):
    """Adam; the decay is added to the gradient.

    Args:
        betas: decay rates β₁, β₂ of the moments.
        eps: ε, added to the root of the second moment.
    """

    momenta = ("exp_avg",)
    squares = ("exp_avg_sq",)
    torch_class = "torch.optim:Adam"
    decoupled: ClassVar[bool] = False

    betas: tuple[float, float]
    eps: float

    @property
    def corrections(self) -> tuple[float, float]:
        """Both moments are divided by 1 − βᵗ."""
        return self.betas

    def step_(
        self,
        params: Float[Tensor, "pop n"],
        grad: Float[Tensor, "pop n"],
        state: OptimizerState,
        learning_rate: Float[Tensor, "pop"],
        active: Bool[Tensor, "pop"],
        hyperparams: dict[str, Float[Tensor, "pop"]],
        generators: Sequence[torch.Generator],
    ) -> Metrics:
        """One step; no noise is drawn."""
        adam_(
            params,
            grad,
            state,
            learning_rate,
            active,
            betas=self.betas,
            eps=self.eps,
            weight_decay=hyperparams["weight_decay"],
            decoupled=self.decoupled,
        )
        return {}


class AdamWUpdate(AdamUpdate):
    """Adam with decoupled decay."""

    weight_decay = 0.01
    torch_class = "torch.optim:AdamW"
    decoupled = True


def bias_correction(beta: float, step: Float[Tensor, "pop"]) -> Float[Tensor, "pop"]:
    """1 − βᵗ to full precision, of which the difference would leave four digits for β = 0.999 and t = 1."""
    return -torch.expm1(step * math.log(beta)) if beta > 0 else torch.ones_like(step)


@Definition
def adam_(
    params: Float[Tensor, "pop n"],
    grad: Float[Tensor, "pop n"],
    state: OptimizerState,
    learning_rate: Float[Tensor, "pop"],
    active: Bool[Tensor, "pop"],
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Float[Tensor, "pop"] | None = None,
    decoupled: bool = False,
) -> None:
    """One optimizer step, in place; members that are not `active` are left exactly as they are.

        m ← β₁m + (1 − β₁)g,  v ← β₂v + (1 − β₂)g²,  θ ← θ − α · m̂/(√v̂ + ε),  m̂ = m/(1 − β₁ᵗ),  v̂ = v/(1 − β₂ᵗ)

    Kingma & Ba 2015 (arXiv:1412.6980), algorithm 1; decoupled decay θ ← θ − αλθ: Loshchilov & Hutter 2019
    (arXiv:1711.05101).

    Args:
        params: θ.
        grad: g.
        state: moments and step count.
        learning_rate: α of every member.
        active: members that take the step.
        betas: decay rates β₁, β₂.
        eps: ε.
        weight_decay: λ of every member, None for no decay; added to the gradient unless `decoupled`.
        decoupled: whether the decay is AdamW's.
    """
    exp_avg, exp_avg_sq = state.averages["exp_avg"], state.averages["exp_avg_sq"]
    moving = active.to(params.dtype)
    correction1, root = _count(state, moving, betas)
    learning_rate = learning_rate.to(params.dtype)
    weight_decay = None if weight_decay is None else weight_decay.to(params.dtype)
    row = moving.unsqueeze(1)
    grad = grad.masked_fill(active.logical_not().unsqueeze(1), 0)  # a resting member's gradient may be NaN
    rate = (learning_rate * moving).unsqueeze(1)
    if weight_decay is not None and decoupled:
        params.mul_(1 - rate * weight_decay.unsqueeze(1))
    elif weight_decay is not None:
        grad = torch.addcmul(grad, params, row * weight_decay.unsqueeze(1))
    exp_avg.lerp_(grad, row * (1 - betas[0]))
    exp_avg_sq.lerp_(grad.square(), row * (1 - betas[1]))
    denominator = exp_avg_sq.sqrt().div_(root.unsqueeze(1)).add_(eps)
    params.sub_(exp_avg / denominator * (rate / correction1.unsqueeze(1)))


def _contiguous(params: Tensor, grad: Tensor, state: OptimizerState, *others: object, **constants: object) -> bool:
    """Whether the compiled pass can write to what is written to."""
    return params.is_contiguous() and all(average.is_contiguous() for average in state.averages.values())


@adam_.compiled(_contiguous)
def _adam_in_one_pass(
    params: Tensor,
    grad: Tensor,
    state: OptimizerState,
    learning_rate: Tensor,
    active: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Tensor | None = None,
    decoupled: bool = False,
) -> None:
    exp_avg, exp_avg_sq = state.averages["exp_avg"], state.averages["exp_avg_sq"]
    moving = active.to(params.dtype)
    correction1, root = _count(state, moving, betas)
    none = torch.zeros_like(moving)
    decay = none if weight_decay is None or decoupled else weight_decay
    kept = 1 - learning_rate * weight_decay if weight_decay is not None and decoupled else none + 1
    own = torch.stack([moving, decay, kept, learning_rate / correction1, root], dim=1).to(params.dtype)
    constants = torch.tensor([1 - betas[0], 1 - betas[1], eps], dtype=params.dtype)
    native.call("adam", (params, grad.contiguous(), exp_avg, exp_avg_sq, own, constants), params.shape)


def _count(
    state: OptimizerState, moving: Float[Tensor, "pop"], betas: tuple[float, float]
) -> tuple[Float[Tensor, "pop"], Float[Tensor, "pop"]]:
    """Counts the step of members that take it; returns 1 − β₁ᵗ and √(1 − β₂ᵗ)."""
    step = state.step.add_(moving).clamp(min=1)
    return bias_correction(betas[0], step), bias_correction(betas[1], step).sqrt()
