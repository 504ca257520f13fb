"""What an update rule is: its constants, what it remembers of gradients, and a step for all members at once."""

import abc
import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.config.model import ModelConfig
from popgraft.errors import ConfigError
from popgraft.state import OptimizerState

Metrics = dict[str, Float[Tensor, "pop"]]


@dataclasses.dataclass
class UpdateRule(abc.ABC):
    """Turns gradients into steps, for all members at once.

    A rule is made as Rule(sizes, **optimizer_kwargs) and is the same for everybody; what differs from member to member
    are its averages, which are inherited, and hyperparameters. A subclass names its averages by what they are, because
    a graft may keep a part of them: what is named nowhere there is not.

    Attributes:
        sizes: elements of each named tensor in a row of the flat parameters.
        learning_rate: step size where none is given.
        weight_decay: the same of the decay.
        too_slow: largest learning rate that has been seen to learn nothing; 0: there is none.
        tuned: hyperparameters that it reads beside the learning rate, of `weight_decay` and `sigma`.
        momenta: averages of gradients.
        squares: averages of squared gradients.
        others: averages that say how elements compare, or how large gradients are.
        torch_class: `module:Class` of the torch.optim.Optimizer that does the same; empty: none is known.
    """

    learning_rate: ClassVar[float] = 3e-4
    weight_decay: ClassVar[float] = 0.0
    too_slow: ClassVar[float] = 0.0
    tuned: ClassVar[tuple[str, ...]] = ("weight_decay",)
    momenta: ClassVar[tuple[str, ...]] = ()
    squares: ClassVar[tuple[str, ...]] = ()
    others: ClassVar[tuple[str, ...]] = ()
    torch_class: ClassVar[str] = ""

    sizes: tuple[int, ...]

    @property
    def corrections(self) -> tuple[float, float] | None:
        """Decay rates β₁ of momenta and β₂ of squares that `step_` divides by 1 − βᵗ; None: it corrects neither."""
        return None

    def initial_averages(self, params: Float[Tensor, "pop n"]) -> dict[str, Float[Tensor, "pop ..."]]:
        """The averages before the first step: a zero for every element of every one."""
        return {name: torch.zeros_like(params) for name in (*self.others, *self.momenta, *self.squares)}

    def initial_state(self, params: Float[Tensor, "pop n"]) -> OptimizerState:
        """The state before the first step.

        Raises:
            ConfigError: there is an average of which the class does not say what it is.
        """
        averages = self.initial_averages(params)
        unknown = sorted(set(averages) - {*self.momenta, *self.squares, *self.others})
        if unknown:
            raise ConfigError(
                f"{type(self).__name__} remembers {', '.join(unknown)} and does not say what that is, which a graft "
                "has to know; name it in momenta, squares or others of the class"
            )
        zero = params.new_zeros(len(params))
        return OptimizerState(averages=averages, step=zero, skipped=zero.clone())

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
    ) -> Metrics | None:
        """Takes one step and counts it, in place; members that are not `active` are left exactly as they are.

        Args:
            params: flat parameters.
            grad: their gradient, which may be NaN where a member rests, and is not needed afterwards.
            state: the averages, and the number of steps.
            learning_rate: step size of every member.
            active: members that take the step.
            hyperparams: all other tunable numbers.
            generators: one per member, the source of its noise.

        Returns:
            What to log of the step, if anything.
        """


def momentum_of(rule: UpdateRule, state: OptimizerState) -> Float[Tensor, "pop n"] | None:
    """Of a rule's momenta the one that diagnostics show: the first with a number for every parameter."""
    momenta, n = [state.averages[name] for name in rule.momenta if name in state.averages], sum(rule.sizes)
    return next((average for average in momenta if average.shape[1:] == (n,)), None)


def make_rule(config: ModelConfig, sizes: Sequence[int]) -> UpdateRule:
    """The configured update rule.

    Args:
        config: the agent's settings.
        sizes: elements of each named tensor in a row of the flat parameters.

    Raises:
        ConfigError: there is no such rule, or not with these constants.
    """
    rule: UpdateRule = config.update_rule(sizes)
    return rule
