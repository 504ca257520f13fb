"""What becomes of an optimizer's state when its agent turns into another one's copy.

    reset      nothing remembered, as at birth
    copy       the donor's
    partial    the donor's momentum alone, or its second moment and utility alone
    adaptive   the donor's where every explored value is near the donor's, else nothing
    relative   the donor's moments, with Adam's count of steps at 0

Jaderberg et al. 2017 (arXiv:1711.09846) prescribe none of them. `relative` is what Adam-Rel does wherever an objective
changes (Ellis et al. 2024, arXiv:2412.17113): the moments stay, and t of the corrections 1 − βᵗ begins anew. The
arithmetic is on named averages and one count of steps, which is what PyTorch's optimizers and the engine's rules have
in common.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from popgraft.config.population import EvolutionConfig
from popgraft.errors import ConfigError
from popgraft.hyperparams import Value

Fate = Literal["reset", "copy", "momentum", "scale", "relative"]
"""What happens to one agent's state; `momentum` and `scale` are `partial`, by what is kept."""


@runtime_checkable
class Roles(Protocol):
    """What the averages of an optimizer are, by their names; an engine's `UpdateRule` says it of its own."""

    @property
    def momenta(self) -> tuple[str, ...]:
        """Averages of gradients."""
        ...

    @property
    def squares(self) -> tuple[str, ...]:
        """Averages of squared gradients."""
        ...

    @property
    def others(self) -> tuple[str, ...]:
        """Averages that say how elements compare, or how large gradients are."""
        ...


class Names(NamedTuple):
    """`Roles` of optimizers that do not say it of themselves."""

    momenta: tuple[str, ...]
    squares: tuple[str, ...]
    others: tuple[str, ...]


TORCH = Names(("exp_avg", "momentum_buffer"), ("exp_avg_sq", "max_exp_avg_sq"), ("utility", "grad_norm"))
"""Of PyTorch's optimizers, and of those here that are like them."""


def fate_of(config: EvolutionConfig, donor: Mapping[str, Value], heir: Mapping[str, Value]) -> Fate:
    """What happens to the optimizer state of one recipient.

    Args:
        config: the strategy, and the spaces in which distance is measured.
        donor: hyperparameters that the donor trained with.
        heir: those that the recipient is to train with.
    """
    match config.optimizer_exploit_strategy:
        case "partial":
            return config.optimizer_partial
        case "adaptive":
            farthest = max(
                (space.distance(donor[space.name], heir[space.name]) for space in config.hyperparams), default=0
            )
            return "copy" if farthest <= config.optimizer_adaptive_distance else "reset"
        case strategy:
            return strategy


def velocity_ratio(config: EvolutionConfig, donor: Mapping[str, Value], heir: Mapping[str, Value]) -> float:
    """Factor of an inherited momentum, after which it carries the parameters as far at the recipient's learning rate.

    α/α′ with `optimizer_rescale`, where both are known and positive; else 1.
    """
    old, new = donor.get("learning_rate"), heir.get("learning_rate")
    known = config.optimizer_rescale and isinstance(old, (int, float)) and isinstance(new, (int, float))
    return old / new if known and old > 0 and new > 0 else 1.0  # type: ignore[operator]


def inherit_(
    averages: Mapping[str, Tensor],
    step: Tensor | None,
    fate: Fate,
    roles: Roles,
    betas: tuple[float, float] | None,
    ratio: float = 1.0,
) -> None:
    """Turns a donor's state into its heir's, in place.

    `momentum`: as after one step whose gradient g was the donor's mean gradient m/(1 − β₁ᵗ): one step counted,
    m = (1 − β₁)g, v = (1 − β₂)g², all else 0. A second moment of 0 at the donor's count would make the next step up to
    √(1/(1 − β₂)) times too long. A momentum that is not corrected (SGD's) stays as it is and all else is 0, and where
    there is none nothing is left. `scale`: the momentum alone becomes 0 while the count goes on, so that the next steps
    are short. `relative`: the count alone becomes 0; along a gradient that stays as it is, the next step is
    √(1 − β₂)/(1 − β₁) times as long.

    Args:
        averages: one agent's or one parameter's, by name.
        step: how many steps entered them, of any shape with one element; None where steps are not counted.
        fate: what happens to them.
        roles: what they are.
        betas: decay rates β₁ of momenta and β₂ of squares that are corrected for their beginning; None where none are.
        ratio: factor of the momentum that is left (`velocity_ratio`).

    Raises:
        ConfigError: `fate` is a part of the state, and there are averages of which it is not known what they are; or it
            is `relative`, and they are not Adam's.
    """
    momenta = [averages[name] for name in roles.momenta if name in averages]
    if fate in ("momentum", "scale"):
        unknown = sorted(set(averages) - {*roles.momenta, *roles.squares, *roles.others})
        if unknown:
            raise ConfigError(
                f"optimizer_exploit_strategy 'partial' is not defined for an optimizer that remembers "
                f"{', '.join(unknown)}; choose copy or reset"
            )
    if fate == "relative" and averages:
        _begin_counting(averages, step, roles, betas)
    if fate == "reset" or (fate == "momentum" and not momenta):
        _forget(averages, step)
    elif fate == "scale":
        for momentum in momenta:
            momentum.zero_()
    elif fate == "momentum":
        _keep_momentum(averages, step, roles, betas)
    for momentum in momenta:
        momentum.mul_(ratio)


def _begin_counting(
    averages: Mapping[str, Tensor], step: Tensor | None, roles: Roles, betas: tuple[float, float] | None
) -> None:
    others = sorted(set(averages) - {*roles.momenta, *roles.squares})
    if step is None or betas is None or others:
        remembered = f"remembers {', '.join(others)}" if others else "corrects no moments by a count of steps"
        raise ConfigError(
            f"optimizer_exploit_strategy 'relative' starts Adam's count of steps again, and is not defined for an "
            f"optimizer that {remembered}; choose copy or reset, or train with adam or adamw"
        )
    step.zero_()


def _forget(averages: Mapping[str, Tensor], step: Tensor | None) -> None:
    for average in averages.values():
        average.zero_()
    if step is not None:
        step.zero_()


def _keep_momentum(
    averages: Mapping[str, Tensor], step: Tensor | None, roles: Roles, betas: tuple[float, float] | None
) -> None:
    for name, average in averages.items():
        if name not in roles.momenta:
            average.zero_()
    if step is None or betas is None:
        return
    beta1, beta2 = betas
    momenta = [averages[name] for name in roles.momenta if name in averages]
    for momentum in momenta:
        momentum.div_(1 - beta1 ** float(step) if step > 0 else 1.0)
    for name in roles.squares:
        if name in averages:
            averages[name].copy_(momenta[0].square().mul_(1 - beta2))
    for momentum in momenta:
        momentum.mul_(1 - beta1)
    step.clamp_(max=1)
