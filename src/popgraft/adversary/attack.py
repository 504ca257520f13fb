"""Attacks: perturbations of observations inside a ball that increase an objective, for all members at once.

An observation is one vector [n] in normalised units, and a perturbation δ has the shape [pop, time, batch, n] of the
observations that it is added to: a whole sequence is attacked together, so that a recurrent policy can be led astray.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config.adversary import PerturbationConfig
from popgraft.errors import ConfigError
from popgraft.spaces import ObsSpec

Objective = Callable[[Tensor], Tensor]
"""From observations [pop, time, batch, n] to what an attack increases, [pop, batch]."""

BISECTIONS = 30
"""Halvings of the interval in which the projection onto a ball cut by a box is sought."""


class Vectors:
    """What is attacked of an observation, as one vector: all keys but images, which are left as they are.

    Args:
        specs: every key of an observation.

    Raises:
        ConfigError: there is nothing to attack.
    """

    def __init__(self, specs: Mapping[str, ObsSpec]) -> None:
        self.shapes = {key: spec.shape for key, spec in specs.items() if not spec.image}
        self.sizes = [math.prod(shape) for shape in self.shapes.values()]
        self.size = sum(self.sizes)
        if not self.shapes:
            raise ConfigError(
                "an attack moves float observations, but the environment shows images only; do without "
                "(model.adversary.enabled: false, evaluation.attack_weight: 0)"
            )

    def join(self, obs: Mapping[str, Tensor]) -> Float[Tensor, "pop time batch n"]:
        """All that is attacked, side by side."""
        return torch.cat([obs[key].reshape(*obs[key].shape[:3], -1) for key in self.shapes], dim=-1)

    def split(self, x: Float[Tensor, "pop time batch n"], obs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Observations with `x` in the place of what is attacked."""
        parts = zip(self.shapes.items(), x.split(self.sizes, dim=-1), strict=True)
        return {**obs, **{key: part.reshape(*part.shape[:3], *shape) for (key, shape), part in parts}}


class Region(NamedTuple):
    """Where perturbations may lie: a ball around 0, cut by a box that contains 0.

    Attributes:
        norm: of the ball, over the last axis.
        radius: of every member's ball, [pop, 1, 1, 1].
        low: least perturbation, 0 at most; None without a box.
        high: largest perturbation, 0 at least; None without a box.
    """

    norm: str
    radius: Float[Tensor, "pop 1 1 1"]
    low: Float[Tensor, "pop time batch n"] | None
    high: Float[Tensor, "pop time batch n"] | None

    @classmethod
    def around(
        cls, x: Float[Tensor, "pop time batch n"], radius: Float[Tensor, "pop"], config: PerturbationConfig
    ) -> "Region":
        """The ball around observations, cut by the box that they may lie in.

        An observation that is itself outside the box may stay where it is, but move no further away.
        """
        low = None if config.clip_min is None else (config.clip_min - x).clamp(max=0)
        high = None if config.clip_max is None else (config.clip_max - x).clamp(min=0)
        return cls(config.norm_type, radius.view(-1, 1, 1, 1), low, high)

    def project(self, delta: Float[Tensor, "pop time batch n"]) -> Float[Tensor, "pop time batch n"]:
        """The nearest point of the region.

        In l∞ the ball is a box too. In l2 the point is clip(tδ) with the largest t ≤ 1 for which it lies in the ball.
        """
        if self.norm == "linf":
            return self._clip(torch.maximum(torch.minimum(delta, self.radius), -self.radius))
        if self.low is None and self.high is None:
            # A little less than the radius, so that rounding does not lead out of the ball.
            limit = self.radius * (1 - 8 * torch.finfo(delta.dtype).eps)
            length = torch.linalg.vector_norm(delta, dim=-1, keepdim=True)
            shrunk: Tensor = delta * (limit / length.clamp(min=torch.finfo(delta.dtype).tiny)).clamp(max=1)
            return shrunk
        above = torch.ones_like(delta[..., :1])
        below = torch.where(self._holds(self._clip(delta)), 1.0, 0.0).to(delta.dtype)
        for _ in range(BISECTIONS):
            middle = (below + above) / 2
            inside = self._holds(self._clip(middle * delta))
            below, above = torch.where(inside, middle, below), torch.where(inside, above, middle)
        return self._clip(below * delta)

    def scatter(self, noise: Float[Tensor, "pop time batch n"]) -> Float[Tensor, "pop time batch n"]:
        """Points drawn uniformly from the ball; those outside the box move to the nearest one in it.

            l∞:  (2u − 1)ε
            l2:  ε F(‖z‖²)^(1/n) z/‖z‖,   z = Φ⁻¹(u),   F the law of χ² with n degrees of freedom

        Args:
            noise: u ~ U[0, 1).
        """
        even = 2 * noise - 1
        if self.norm == "l2":
            edge = 1 - torch.finfo(even.dtype).eps
            z, n = math.sqrt(2) * torch.erfinv(even.clamp(-edge, edge)), even.shape[-1]
            square = z.square().sum(-1, keepdim=True)
            share = torch.special.gammainc(torch.full_like(square, n / 2), square / 2) ** (1 / n)
            even = z * (share * square.clamp(min=torch.finfo(even.dtype).tiny).rsqrt())
        return self.project(even * self.radius)

    def _clip(self, delta: Tensor) -> Tensor:
        if self.low is not None:
            delta = torch.maximum(delta, self.low)
        return delta if self.high is None else torch.minimum(delta, self.high)

    def _holds(self, delta: Tensor) -> Tensor:
        inside: Tensor = torch.linalg.vector_norm(delta, dim=-1, keepdim=True) <= self.radius
        return inside

    def direction(self, grad: Float[Tensor, "pop time batch n"]) -> Float[Tensor, "pop time batch n"]:
        """The step of length 1 that increases a linear objective most: sign(g) in l∞, g/‖g‖ in l2."""
        if self.norm == "linf":
            return grad.sign()
        length: Tensor = torch.linalg.vector_norm(grad, dim=-1, keepdim=True)
        return grad / length.clamp(min=torch.finfo(grad.dtype).tiny)


def perturb(
    objective: Objective,
    x: Float[Tensor, "pop time batch n"],
    radius: Float[Tensor, "pop"],
    noise: Float[Tensor, "restarts pop time batch n"],
    config: PerturbationConfig,
    divergence: bool = False,
) -> Float[Tensor, "pop time batch n"]:
    """Perturbations δ with ‖δ‖ ≤ ε that increase an objective J; gradients are taken with respect to δ only.

        PGD:     δ ← Π(δ + ε·step·direction(∇J(x + δ))), `attack_steps` times
        FGSM:    δ = Π(ε·direction(∇J(x + δ₀)))
        random:  δ = δ₀

    (Madry et al. 2018, arXiv:1706.06083; Goodfellow et al. 2015, arXiv:1412.6572.) Each sequence gets the best of all
    restarts; δ = 0 is a candidate as well, so that an attack by gradients never lowers J.

    Args:
        objective: J. What it depends on besides x should be detached, which spares its gradient.
        x: clean observations, in normalised units.
        radius: ε of every member, in the same units.
        noise: U[0, 1) numbers, from which the random starting points are made.
        config: kind of attack.
        divergence: J is 0 at δ = 0 and positive elsewhere, so that its gradient vanishes there: the attack starts at a
            random point in any case, and δ = 0 is no candidate.
    """
    region, method = Region.around(x, radius, config), config.attack_method
    zero = torch.zeros_like(x)
    starts = [zero]
    if divergence or method == "random" or (method == "pgd" and config.random_init):
        starts = [region.scatter(u) for u in noise]
    candidates = [_climb(objective, x, start, region, config) for start in starts]
    if not divergence and method != "random":
        candidates.append(zero)
    return _strongest(objective, x, candidates)


def _climb(objective: Objective, x: Tensor, delta: Tensor, region: Region, config: PerturbationConfig) -> Tensor:
    """One attack from a starting point."""
    match config.attack_method:
        case "random":
            return delta
        case "fgsm":
            return region.project(region.radius * region.direction(_gradient(objective, x, delta)))
    length = config.step * region.radius
    for _ in range(config.attack_steps):
        delta = region.project(delta + length * region.direction(_gradient(objective, x, delta)))
    return delta


def _gradient(objective: Objective, x: Tensor, delta: Tensor) -> Tensor:
    with torch.enable_grad():
        delta = delta.detach().requires_grad_()
        (grad,) = torch.autograd.grad(objective(x + delta).sum(), delta)
    return grad


@torch.no_grad()
def _strongest(objective: Objective, x: Tensor, candidates: list[Tensor]) -> Tensor:
    """The candidate with the largest objective, for every sequence."""
    best, *others = candidates
    if not others:
        return best
    most = objective(x + best)
    for other in others:
        value = objective(x + other)
        better = value > most
        most = torch.where(better, value, most)
        best = torch.where(better[:, None, :, None], other, best)
    return best
