"""Settings of the update rule and of the gradients it gets."""

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from popgraft.config.fields import DecayRate, Integer, Number, Section

OptimizerName = Literal["adam", "adamw", "upgd", "adaptive_upgd", "upgdw"]
LEARNING_RATE: dict[str, float] = {"adam": 3e-4, "adamw": 3e-4, "upgd": 0.3, "adaptive_upgd": 3e-4, "upgdw": 3e-4}
"""Learning rate where none is given. The steps of upgd are as long as the gradient, whose norm is bounded, and not of a
length of their own as Adam's."""
TOO_SLOW = 0.03
"""Learning rates of upgd up to here have learnt nothing where 0.3 does (benchmarks/LOG.md)."""
WEIGHT_DECAY: dict[str, float] = {"adam": 0.0, "adamw": 0.01, "upgd": 0.001, "adaptive_upgd": 0.001, "upgdw": 0.01}
"""Weight decay where none is given: that of the optimizer's authors."""

_NOISE = ("adaptive_noise", "noise_scaling", "instant_noise_scale", "noise_beta", "min_noise_std")
_UTILITY = ("sigma", "beta_utility", "utility_gain")
UNREAD: dict[str, tuple[str, ...]] = {
    "adam": (*_UTILITY, *_NOISE),
    "adamw": (*_UTILITY, *_NOISE),
    "upgd": ("betas", "eps"),
    "adaptive_upgd": (),
    "upgdw": ("beta_utility",),  # as in AdamW, its second decay rate serves both
}
"""Constants that an optimizer has no use for."""


def made_for_adam(optimizer: str, fastest: float) -> str | None:
    """What is wrong with a learning rate, if it is one for Adam and the optimizer is not.

    Args:
        optimizer: the update rule.
        fastest: the learning rate, or the largest one that is allowed.
    """
    if optimizer != "upgd" or fastest > TOO_SLOW:
        return None
    return (
        f"a learning_rate of {fastest:g} is made for Adam: upgd, whose steps are as long as the gradient, learns next "
        f"to nothing with {TOO_SLOW:g} or less; leave learning_rate out ({LEARNING_RATE['upgd']:g}), raise it, or take "
        "optimizer: adaptive_upgd"
    )


class OptimizerKwargs(Section):
    """Constants of the optimizer; `weight_decay` and `sigma` may be tuned by a population."""

    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Annotated[Number, Field(gt=0)] = 1e-5
    """Added to the root of the second moment."""
    weight_decay: Annotated[Number, Field(ge=0, le=1e6)] | None = None
    """Added to the gradient for adam, decoupled for all others; null: 0 for adam, 0.01 for adamw and upgdw, 0.001 for
    upgd and adaptive_upgd."""
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
