"""UPGD, AdaptiveUPGD and UPGDW as update rules: which constants each of them reads, and what it remembers."""

import abc
import dataclasses
import functools
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.optim.noise import draw_noise_
from popgraft.optim.rule import Metrics, UpdateRule
from popgraft.optim.upgd import UPGDRule, initial_upgd_state, upgd_
from popgraft.state import OptimizerState


@dataclasses.dataclass
class Perturbed(UpdateRule):
    """What the three have in common; a subclass says to which constants of `upgd_` its own amount.

    Args:
        utility_gain: κ; 2 restores the plain step at zero utility.
        adaptive_noise: whether noise follows the size of the gradient.
        noise_scaling: what adaptive noise follows: a tensor's root mean square gradient, or its Euclidean norm.
        instant_noise_scale: whether adaptive noise follows the latest gradient instead of a running average.
        noise_beta: decay rate of that average.
        min_noise_std: least standard deviation of adaptive noise.
    """

    weight_decay = 0.001
    tuned = ("weight_decay", "sigma")
    others = ("utility", "grad_norm")

    utility_gain: float
    adaptive_noise: bool
    noise_scaling: Literal["rms", "l2"]
    instant_noise_scale: bool
    noise_beta: float
    min_noise_std: float

    @property
    @abc.abstractmethod
    def constants(self) -> UPGDRule:
        """The constants of `upgd_`."""

    def with_noise(self, **constants: object) -> UPGDRule:
        """Constants of `upgd_`, of which those that all three have are filled in."""
        common = {
            "utility_gain": self.utility_gain,
            "noise_scaling": self.noise_scaling if self.adaptive_noise else "fixed",
            "noise_beta": None if self.instant_noise_scale else self.noise_beta,
            "min_noise_std": self.min_noise_std,
        }
        return UPGDRule(**common, **constants)  # type: ignore[arg-type]

    def initial_averages(self, params: Float[Tensor, "pop n"]) -> dict[str, Float[Tensor, "pop ..."]]:
        """Zeros, of the averages that these constants need."""
        return initial_upgd_state(params, self.sizes, self.constants).averages

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
        sizes, rule = self.sizes, self.constants
        return upgd_(params, grad, state, noise, learning_rate, sigma, decay, active, sizes=sizes, rule=rule)


@dataclasses.dataclass
class UPGDUpdate(Perturbed):
    """The gradient itself is the direction, so that a step is as long as it.

    Args:
        beta_utility: decay rate of the utility.
    """

    learning_rate = 0.3
    too_slow = 0.03  # where 0.3 learns (benchmarks/LOG.md)
    torch_class = "popgraft.foreign.upgd:UPGD"

    beta_utility: float

    @functools.cached_property
    def constants(self) -> UPGDRule:
        """Not adaptive."""
        return self.with_noise(adaptive=False, beta_utility=self.beta_utility)


@dataclasses.dataclass
class AdaptiveUPGDUpdate(Perturbed):
    """Adam's direction.

    Args:
        beta_utility: decay rate of the utility.
        betas: decay rates β₁, β₂ of the moments.
        eps: ε, added to the root of the second moment.
    """

    momenta = ("exp_avg",)
    squares = ("exp_avg_sq",)
    torch_class = "popgraft.foreign.upgd:AdaptiveUPGD"

    beta_utility: float
    betas: tuple[float, float]
    eps: float

    @property
    def corrections(self) -> tuple[float, float]:
        """As Adam's."""
        return self.betas

    @functools.cached_property
    def constants(self) -> UPGDRule:
        """All of them."""
        return self.with_noise(beta_utility=self.beta_utility, betas=self.betas, eps=self.eps)


@dataclasses.dataclass
class UPGDWUpdate(Perturbed):
    """AdaptiveUPGD with the defaults of AdamW; the utility decays as the second moment does.

    Args:
        betas: decay rates β₁, β₂ of the moments.
        eps: ε, added to the root of the second moment.
    """

    weight_decay = 0.01
    momenta = ("exp_avg",)
    squares = ("exp_avg_sq",)
    torch_class = "popgraft.foreign.upgd:UPGDW"

    betas: tuple[float, float]
    eps: float

    @property
    def corrections(self) -> tuple[float, float]:
        """As Adam's."""
        return self.betas

    @functools.cached_property
    def constants(self) -> UPGDRule:
        """One decay rate for utility and second moment."""
        return self.with_noise(beta_utility=self.betas[1], betas=self.betas, eps=self.eps)
