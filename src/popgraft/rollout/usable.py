"""Which numbers of an environment reach an agent: none that would spoil a statistic, or a product that others share.

The grids look at all that environments give before anybody else does. In a population whoever gives other numbers has
failed, like one that raises; `DistributionalPPO` raises.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Real

from popgraft.errors import UnusableNumber

LIMIT = 1e15
"""Largest size of a usable number. A discounted sum is up to 10⁴ times as large (γ = 0.9999), and its square, 10³⁸, is
the end of single precision."""


def usable(numbers: np.ndarray) -> bool:
    """Whether all are finite and no larger than `LIMIT`."""
    return bool(np.abs(numbers).max(initial=0) <= LIMIT)  # NaN is not


def fault_in(given: Mapping[str, np.ndarray], first: int | None = 0) -> UnusableNumber | None:
    """The first number that is not usable, in words; None where there is none.

    Args:
        given: what environments have given [env, *shape], by its name in a sentence.
        first: number of the first of these environments; None: it is not known.
    """
    for name, numbers in given.items():
        if not usable(numbers):
            env, *place = np.argwhere(~(np.abs(numbers) <= LIMIT))[0].tolist()
            where = f" at {place}" if place else ""
            who = "an environment" if first is None else f"environment {first + env}"
            return UnusableNumber(
                f"{who} gave {numbers[env, *place]:g} as {name}{where}; numbers must be finite and no "
                f"larger than {LIMIT:g}. Correct the environment, or wrap it (gymnasium.wrappers: ClipReward, "
                "TransformObservation)"
            )
    return None


def named(observations: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The numbers among observations, by their names in a sentence; images have no unusable ones."""
    return {f"observation {key!r}": x for key, x in observations.items() if x.dtype != np.uint8}


def named_terminal(
    observations: Mapping[str, Real[np.ndarray, "pop env *shape"]], final: Bool[np.ndarray, "pop env"]
) -> dict[str, np.ndarray]:
    """The same of terminal observations, with zeros where there are none."""

    def cleared(x: np.ndarray) -> np.ndarray:
        return np.where(final.reshape(*final.shape, *(1,) * (x.ndim - 2)), x, 0)

    return {f"terminal {name}": cleared(x) for name, x in named(observations).items()}
