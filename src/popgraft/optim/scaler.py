"""The variance gradient scaler that a configuration asks for, as a learner calls it."""

import dataclasses
from collections.abc import Sequence

from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.config.model import ModelConfig
from popgraft.optim.rule import Metrics
from popgraft.optim.vgs import (
    VGSRule,
    initial_vgs_state,
    measure_,
    normalized_variance,
    scaling_factor,
    warmup_active,
)
from popgraft.state import VGSState


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
