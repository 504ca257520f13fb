"""Settings of the update rule and of the gradients it gets."""

import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StrictBool, model_serializer, model_validator

from popgraft.config.fields import DecayRate, Integer, Number, Section, writable
from popgraft.config.kinds import Kinds

OPTIMIZERS = Kinds(
    "model.optimizer",
    ("popgraft.optim:UpdateRule",),
    {
        "adam": "popgraft.optim.adam:AdamUpdate",
        "adamw": "popgraft.optim.adam:AdamWUpdate",
        "upgd": "popgraft.optim.upgd_rules:UPGDUpdate",
        "adaptive_upgd": "popgraft.optim.upgd_rules:AdaptiveUPGDUpdate",
        "upgdw": "popgraft.optim.upgd_rules:UPGDWUpdate",
    },
)


class OptimizerKwargs(Section):
    """Constants of the optimizer; an own one has its own. A population may tune `weight_decay` and `sigma`."""

    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Annotated[Number, Field(gt=0)] = 1e-5
    """Added to the root of the second moment."""
    weight_decay: Annotated[Number, Field(ge=0, le=1e6)] | None = None
    """Added to the gradient for adam, decoupled for all others; null: 0 for adam, 0.01 for adamw and upgdw, 0.001 for
    upgd and adaptive_upgd, and what an own rule says."""
    sigma: Annotated[Number, Field(ge=0, le=1e6)] = 0.001
    """Standard deviation of UPGD's noise; with `adaptive_noise` relative to the size of the gradient."""
    beta_utility: DecayRate = 0.999
    """Decay rate of UPGD's utility; upgdw takes the second of `betas`."""
    utility_gain: Annotated[Number, Field(gt=0)] = 1.0
    """Factor of UPGD's step; 2 restores the plain step at zero utility."""
    adaptive_noise: StrictBool = False
    """Whether UPGD's noise follows the size of the gradient."""
    noise_scaling: Literal["rms", "l2"] = "rms"
    """What adaptive noise follows: a tensor's root mean square gradient, or, for comparison, its Euclidean norm."""
    instant_noise_scale: StrictBool = True
    """Whether adaptive noise follows the latest gradient instead of a running average."""
    noise_beta: DecayRate = 0.999
    """Decay rate of that average."""
    min_noise_std: Annotated[Number, Field(ge=0)] = 1e-6
    """Least standard deviation of adaptive noise."""


class OwnKwargs(OptimizerKwargs):
    """Constants of an own rule: whatever its constructor takes. Nothing is added to what is given."""

    model_config = ConfigDict(extra="allow")

    @model_validator(mode="before")
    @classmethod
    def _can_be_written(cls, given: Any) -> Any:
        return writable(given)

    @model_serializer(mode="wrap")
    def _given(self, handler: Callable[[Any], Any]) -> dict[str, Any]:
        return {name: value for name, value in handler(self).items() if name in self.model_fields_set}


def read_by(optimizer: str) -> set[str]:
    """The constants that a rule reads."""
    rule = OPTIMIZERS.load(optimizer)
    return {*inspect.signature(rule).parameters, *rule.tuned} - {"sizes"}


def check_read(optimizer: str, given: Collection[str]) -> None:
    """Refuses constants that a rule has no use for.

    Raises:
        ValueError: names the first.
    """
    unread = sorted(set(given) - read_by(optimizer))
    if unread:
        raise ValueError(
            f"optimizer_kwargs.{unread[0]} is not read by optimizer={optimizer!r}; remove it, "
            "or choose optimizer: adaptive_upgd"
        )


def make_rule(optimizer: str, constants: OptimizerKwargs, sizes: Sequence[int]) -> Any:
    """The `UpdateRule` of these settings; `sizes` are those of the named tensors in a row of the flat parameters.

    Raises:
        ConfigError: there is no such rule, or it has no use for a constant.
    """
    own = isinstance(constants, OwnKwargs)
    given = constants.model_fields_set if own else read_by(optimizer)
    values = {name: getattr(constants, name) for name in given - {*OPTIMIZERS.load(optimizer).tuned}}
    return OPTIMIZERS.make(optimizer, tuple(sizes), **values)


def made_for_adam(optimizer: str, fastest: float) -> str | None:
    """What is wrong with a learning rate, if it is one for Adam and the optimizer is not.

    Args:
        optimizer: the update rule.
        fastest: the learning rate, or the largest one that is allowed.
    """
    rule = OPTIMIZERS.load(optimizer)
    if not rule.too_slow or fastest > rule.too_slow:
        return None
    return (
        f"a learning_rate of {fastest:g} is made for Adam: {optimizer}, whose steps are as long as the gradient, "
        f"learns next to nothing with {rule.too_slow:g} or less; leave learning_rate out ({rule.learning_rate:g}), "
        "raise it, or take optimizer: adaptive_upgd"
    )


class VGSConfig(Section):
    """The variance gradient scaler: shorter steps for a member whose gradient fluctuates."""

    enabled: StrictBool = False
    """Whether gradients are measured and scaled."""
    alpha: Annotated[Number, Field(ge=0, le=1e6)] = 0.1
    """Strength: the factor is 1/(1 + alpha · normalised variance)."""
    apply_to: Literal["gradient", "step"] = "gradient"
    """What is scaled; a constant factor of the gradient does nothing under Adam-like optimizers, `step` does."""
    statistic: Literal["spatial_mean", "per_element"] = "spatial_mean"
    """Variance over time of every tensor's mean gradient, or of every element (two more numbers per parameter)."""
    beta: DecayRate = 0.99
    """Decay rate of the statistics."""
    eps: Annotated[Number, Field(gt=0)] = 1e-8
    """Added to the denominator of the normalised variance."""
    warmup_steps: Annotated[Integer, Field(ge=0)] = 100
    """Optimizer steps before anything is scaled."""
    min_scaling_factor: Annotated[Number, Field(gt=0, le=1)] = 0.1
    """Least factor."""
    cap: Annotated[Number, Field(gt=0)] = 50.0
    """Largest normalised variance that counts."""
