"""The update rule that a configuration asks for, as a learner calls it."""

import abc
import dataclasses
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.config import ModelConfig
from popgraft.optim.adam import adam_, initial_adam_state
from popgraft.optim.noise import draw_noise_
from popgraft.optim.upgd import UPGDRule, initial_upgd_state, upgd_
from popgraft.optim.vgs import (
    VGSRule,
    initial_vgs_state,
    measure_,
    normalized_variance,
    scaling_factor,
    warmup_active,
)
from popgraft.state import OptimizerState, VGSState

Metrics = dict[str, Float[Tensor, "pop"]]


class UpdateRule(abc.ABC):
    """Turns gradients into steps, for all members at once."""

    @abc.abstractmethod
    def initial_state(self, params: Float[Tensor, "pop n"]) -> OptimizerState:
        """The state before the first step."""

    @abc.abstractmethod
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
        """Takes one step, in place; members that are not `active` are left exactly as they are.

        Args:
            params: flat parameters.
            grad: their gradient.
            state: what the rule remembers.
            learning_rate: step size of every member.
            active: members that take the step.
            hyperparams: all other tunable numbers.
            generators: one per member, the source of its noise.

        Returns:
            What to log of the step.
        """


@dataclasses.dataclass(frozen=True)
class AdamUpdate(UpdateRule):
    """Adam, and AdamW where the decay is decoupled."""

    betas: tuple[float, float]
    eps: float
    decays: bool
    decoupled: bool

    def initial_state(self, params: Float[Tensor, "pop n"]) -> OptimizerState:
        """Zero moments."""
        return initial_adam_state(params)

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
        decay = hyperparams["weight_decay"] if self.decays else None
        adam_(
            params,
            grad,
            state,
            learning_rate,
            active,
            betas=self.betas,
            eps=self.eps,
            weight_decay=decay,
            decoupled=self.decoupled,
        )
        return {}


@dataclasses.dataclass(frozen=True)
class UPGDUpdate(UpdateRule):
    """UPGD, AdaptiveUPGD and UPGDW."""

    rule: UPGDRule
    sizes: tuple[int, ...]

    def initial_state(self, params: Float[Tensor, "pop n"]) -> OptimizerState:
        """Zero utility and moments."""
        return initial_upgd_state(params, self.sizes, self.rule)

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
        """One step; every member's noise comes from its own generator, also where it rests."""
        noise = torch.empty_like(params)
        draw_noise_(noise, generators)
        sigma, decay = hyperparams["sigma"], hyperparams["weight_decay"]
        return upgd_(params, grad, state, noise, learning_rate, sigma, decay, active, sizes=self.sizes, rule=self.rule)


def make_rule(config: ModelConfig, sizes: Sequence[int], decays: bool = True) -> UpdateRule:
    """The configured update rule.

    Args:
        config: the agent's settings.
        sizes: elements of each named tensor in a row of the flat parameters.
        decays: whether any member may have a weight decay other than 0; Adam then takes one more pass.
    """
    constants = config.optimizer_kwargs
    if config.optimizer in ("adam", "adamw"):
        return AdamUpdate(constants.betas, constants.eps, decays, decoupled=config.optimizer == "adamw")
    rule = UPGDRule(
        adaptive=config.optimizer != "upgd",
        beta_utility=constants.betas[1] if config.optimizer == "upgdw" else constants.beta_utility,
        betas=constants.betas,
        eps=constants.eps,
        utility_gain=constants.utility_gain,
        noise_scaling=constants.noise_scaling if constants.adaptive_noise else "fixed",
        noise_beta=None if constants.instant_noise_scale else constants.noise_beta,
        min_noise_std=constants.min_noise_std,
    )
    return UPGDUpdate(rule, tuple(sizes))


@dataclasses.dataclass(frozen=True)
class GradientScaler:
    """The variance gradient scaler with its constants.

    Attributes:
        rule: constants of the statistics.
        sizes: elements of each named tensor in a row of the flat parameters.
        to_step: whether the learning rate is scaled instead of the gradient.
    """

    rule: VGSRule
    sizes: tuple[int, ...]
    to_step: bool

    def initial_state(self, params: Float[Tensor, "pop n"]) -> VGSState:
        """Nothing measured."""
        return initial_vgs_state(params, self.sizes, self.rule)

    def scale_(
        self,
        grad: Float[Tensor, "pop n"],
        state: VGSState,
        learning_rate: Float[Tensor, "pop"],
        active: Bool[Tensor, "pop"],
        alpha: Float[Tensor, "pop"],
    ) -> tuple[Float[Tensor, "pop"], Metrics]:
        """Measures the raw gradient, and scales it in place or the learning rate.

        Args:
            grad: raw gradient.
            state: what has been measured so far.
            learning_rate: step size of every member.
            active: members that are about to take the step.
            alpha: strength of the scaling.

        Returns:
            The learning rate to use, and what to log.
        """
        measure_(state, grad, self.sizes, active, self.rule)
        variance = normalized_variance(state, self.sizes, self.rule)
        factor = scaling_factor(state, variance, alpha, self.rule)
        if self.to_step:
            learning_rate = learning_rate * factor
        else:
            grad.mul_(factor.unsqueeze(1))
        return learning_rate, {
            "vgs/scaling_factor": factor,
            "vgs/normalized_variance": variance,
            "vgs/step_count": state.step_count.clone(),
            "vgs/warmup_active": warmup_active(state, self.rule).to(factor.dtype),
        }


def make_scaler(config: ModelConfig, sizes: Sequence[int]) -> GradientScaler:
    """The configured variance gradient scaler."""
    vgs = config.vgs
    rule = VGSRule(vgs.beta, vgs.eps, vgs.warmup_steps, vgs.min_scaling_factor, vgs.cap, vgs.statistic)
    return GradientScaler(rule, tuple(sizes), vgs.apply_to == "step")
