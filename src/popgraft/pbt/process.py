"""Gaussian-process regression of a function that drifts, as PB2 uses it (arXiv:2002.02518, §4.1).

    k((x, i), (x′, j)) = s² exp(−|x − x′|² / 2ℓ²) · (1 − ω)^{|i − j|/2}

The second factor (Bogunovic et al. 2016, arXiv:1601.06650) forgets: two observations |i − j| rounds apart are of
functions that have drifted apart. All in double precision.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor

BOUNDS = {"variance": (0.01, 10.0), "length": (0.05, 5.0), "forgetting": (1e-4, 0.9), "noise": (1e-3, 1.0)}
"""Of the constants, for inputs within [0, 1] and values of mean 0 and variance 1."""
STEPS = 15
"""Steps of L-BFGS towards the constants."""


@dataclasses.dataclass(frozen=True)
class Kernel:
    """How alike the function is at two inputs and times.

    Attributes:
        variance: s², of the function at one place.
        length: ℓ, of a change of the inputs that matters.
        forgetting: ω, from 0 for a function that stays as it is to 1.
        noise: variance of an observation about the function.
    """

    variance: Float[Tensor, ""]
    length: Float[Tensor, ""]
    forgetting: Float[Tensor, ""]
    noise: Float[Tensor, ""]

    def __call__(
        self, x: Float[Tensor, "n d"], i: Float[Tensor, "n"], y: Float[Tensor, "m d"], j: Float[Tensor, "m"]
    ) -> Float[Tensor, "n m"]:
        """Covariances of the function at n inputs x and times i with that at m inputs y and times j."""
        apart, lag = (x.unsqueeze(1) - y).square().sum(2), (i.unsqueeze(1) - j).abs()
        return self.variance * (-apart / (2 * self.length**2)).exp() * (1 - self.forgetting) ** (lag / 2)


@dataclasses.dataclass(frozen=True)
class Process:
    """What is known of the function after some observations.

    Attributes:
        kernel: what was thought of it before.
        x: inputs.
        times: when they were observed, in rounds.
        y: what was observed.
    """

    kernel: Kernel
    x: Float[Tensor, "n d"]
    times: Float[Tensor, "n"]
    y: Float[Tensor, "n"]

    @property
    def likelihood(self) -> Float[Tensor, ""]:
        """Logarithm of the observations' density: −½ yᵀK⁻¹y − ½ log |K| − ½ n log 2π."""
        factor = self._factor()
        fit = self.y @ torch.cholesky_solve(self.y.unsqueeze(1), factor).squeeze(1)
        return -fit / 2 - factor.diagonal().log().sum() - len(self.y) * math.log(2 * math.pi) / 2

    def at(self, x: Float[Tensor, "m d"], times: Float[Tensor, "m"]) -> tuple[Float[Tensor, "m"], Float[Tensor, "m"]]:
        """Mean and standard deviation of the function at other inputs and times."""
        factor, across = self._factor(), self.kernel(self.x, self.times, x, times)
        mean = across.T @ torch.cholesky_solve(self.y.unsqueeze(1), factor).squeeze(1)
        known = torch.linalg.solve_triangular(factor, across, upper=False).square().sum(0)
        return mean, (self.kernel.variance - known).clamp(min=0).sqrt()

    def imagining(self, x: Float[Tensor, "m d"], times: Float[Tensor, "m"]) -> "Process":
        """The same after observations that are yet to come: as if each had its mean, so that only deviations change."""
        mean, _ = self.at(x, times)
        return Process(self.kernel, torch.cat([self.x, x]), torch.cat([self.times, times]), torch.cat([self.y, mean]))

    def _factor(self) -> Float[Tensor, "n n"]:
        covariance = self.kernel(self.x, self.times, self.x, self.times)
        noise = self.kernel.noise * torch.eye(len(self.y), dtype=self.y.dtype)
        factor: Tensor = torch.linalg.cholesky(covariance + noise)
        return factor


def fitted(x: Float[Tensor, "n d"], times: Float[Tensor, "n"], y: Float[Tensor, "n"]) -> Process:
    """The process whose constants, within `BOUNDS`, make the observations most likely.

    Args:
        x: inputs, within [0, 1].
        times: when they were observed, in rounds.
        y: what was observed, of mean 0 and variance 1.
    """
    low, high = torch.tensor(list(BOUNDS.values()), dtype=x.dtype).log().T
    place = torch.zeros(len(BOUNDS), dtype=x.dtype, requires_grad=True)

    def process() -> Process:
        return Process(Kernel(*(low + (high - low) * place.sigmoid()).exp().unbind()), x, times, y)

    def loss() -> float:
        place.grad = None
        value = -process().likelihood
        value.backward()
        return float(value.detach())

    if len(y):
        with torch.enable_grad():
            optimizer = torch.optim.LBFGS([place], max_iter=STEPS, line_search_fn="strong_wolfe")
            optimizer.step(loss)
    with torch.no_grad():
        return process()
