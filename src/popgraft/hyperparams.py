"""The space of one hyperparameter: bounds, scale, sampling and perturbation.

Population-based training (Jaderberg et al. 2017, arXiv:1711.09846, §3): a new value is the donor's, perturbed by a
factor, or a fresh draw from the space. Every function takes its generator explicitly.
"""

import dataclasses
import math
from typing import Any, ClassVar

import numpy as np

from popgraft.errors import ConfigError

Value = Any
"""A hyperparameter's value: a number, or any member of `values` for a categorical one."""


@dataclasses.dataclass(frozen=True)
class HyperparamConfig:
    """One tunable hyperparameter: a range (`min_value`, `max_value`) or a list of `values`, never both.

    Args:
        name: the hyperparameter's name, as under `model`.
        min_value: lower bound, inclusive.
        max_value: upper bound, inclusive.
        values: the ordered choices of a categorical hyperparameter.
        perturbation_factor: a perturbation multiplies or divides by it; above 1.
        resample_probability: with `both`, how likely a graft draws it afresh if it is the one number that may be.
        is_log_scale: draw log-uniformly; needs `min_value` > 0.

    Raises:
        ConfigError: a combination that cannot work.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    name: str
    min_value: int | float | None = None
    max_value: int | float | None = None
    values: tuple[Value, ...] | list[Value] | None = None
    perturbation_factor: int | float = 1.2
    resample_probability: int | float = 0.25
    is_log_scale: bool = False

    def __post_init__(self) -> None:
        def refuse(reason: str) -> None:
            raise ConfigError(f"hyperparameter {self.name!r}: {reason}")

        low, high = self.min_value, self.max_value
        for field in ("min_value", "max_value", "perturbation_factor", "resample_probability"):
            number = getattr(self, field)
            if number is not None and not isinstance(number, (int, float)):
                refuse(f"{field}={number!r} is not a number; write it without quotes, for example 1.0e-4")
        if self.values is not None:
            if low is not None or high is not None:
                refuse("it has both values and bounds; keep either `values` or `min_value` and `max_value`")
            if len(self.values) == 0:
                refuse("values is empty; list at least one choice")
            if any(list(self.values).count(value) > 1 for value in self.values):
                refuse(f"values={list(self.values)} lists a choice twice; keep one of each")
            if self.is_log_scale:
                refuse("is_log_scale applies to a range, not to a list of values; remove it")
        elif low is None or high is None:
            refuse(f"min_value={low} and max_value={high}; give both bounds, or a list of `values`")
        elif not (math.isfinite(low) and math.isfinite(high)):
            refuse(f"min_value={low} and max_value={high} must be finite numbers")
        elif low > high:
            refuse(f"min_value={low} is above max_value={high}; swap them")
        elif self.is_log_scale and low <= 0:
            refuse(f"is_log_scale needs min_value > 0, not {low}; raise min_value or turn is_log_scale off")
        if not 1 < self.perturbation_factor < math.inf:
            refuse(f"perturbation_factor={self.perturbation_factor} must be finite and above 1, for example 1.2")
        if not 0 <= self.resample_probability <= 1:
            refuse(f"resample_probability={self.resample_probability} must lie in [0, 1]")

    @property
    def is_continuous(self) -> bool:
        """Whether the hyperparameter is a range."""
        return self.values is None

    @property
    def is_categorical(self) -> bool:
        """Whether the hyperparameter is a list of choices."""
        return self.values is not None

    @property
    def real(self) -> "HyperparamConfig":
        """The same space over the reals: integer bounds, as in [0, 1], would allow whole numbers only."""
        if self.is_categorical:
            return self
        low, high = self.bounds
        return dataclasses.replace(self, min_value=float(low), max_value=float(high))

    @property
    def bounds(self) -> tuple[int | float, int | float]:
        """(min_value, max_value) of a continuous hyperparameter."""
        assert self.min_value is not None
        assert self.max_value is not None
        return self.min_value, self.max_value

    def contains(self, value: Value) -> bool:
        """Whether `value` lies in the space; members train with single precision, whose rounding leaves nothing."""
        if self.values is not None:
            return self.listed(value) in self.values
        low, high = self.bounds
        return isinstance(value, (int, float)) and (
            low <= value <= high or same_single(value, low) or same_single(value, high)
        )

    def listed(self, value: Value) -> Value:
        """The choice that `value` is in single precision; `value` itself where there is none."""
        if self.values is None or value in self.values:
            return value
        return next((choice for choice in self.values if same_single(choice, value)), value)

    def exact(self, single: float) -> Value:
        """What a value of the space stands for that is kept in single precision.

        It is a choice as it is listed, or of a range the number of fewest digits, within the bounds.
        """
        if self.values is not None:
            return self.listed(single)
        low, high = self.bounds
        return min(max(shortest(single), low), high)

    def sample(self, rng: np.random.Generator) -> Value:
        """Draws a fresh value: uniform over `values` or the range, log-uniform if `is_log_scale`.

        Integer bounds give integers, both ends included.
        """
        if self.values is not None:
            return self.values[int(rng.integers(len(self.values)))]
        low, high = self.bounds
        if self._is_integer and not self.is_log_scale:
            return int(rng.integers(int(low), int(high) + 1))
        if self.is_log_scale:
            return self._clip(math.exp(rng.uniform(math.log(low), math.log(high))), self._is_integer)
        return self._clip(rng.uniform(low, high), self._is_integer)

    def perturb(self, value: Value, rng: np.random.Generator) -> Value:
        """Moves `value` one step up or down at even odds, inside the space.

        A range: × f or ÷ f, clipped; a linear range that contains 0: ± (f − 1) · span. Integers stay integers and move
        by 1 at least. Values: the neighbour in the list, reflected at the ends. NaN, and a value that is not in the
        list, are drawn afresh.
        """
        up = bool(rng.integers(2))
        if self.values is not None:
            return self._neighbour(value, up, rng)
        if math.isnan(value):
            return self.sample(rng)
        low, high = self.bounds
        factor = self.perturbation_factor
        if not self.is_log_scale and low <= 0 <= high:
            step = (factor - 1) * (high - low)
            moved = value + step if up else value - step
        else:
            moved = value * factor if up else value / factor
        integer = self._is_integer and isinstance(value, int)
        if integer and round(moved) == value and moved != value:
            moved = value + math.copysign(1, moved - value)
        return self._clip(moved, integer)

    def unit(self, value: Value) -> float:
        """Where a value of a range lies between its bounds, from 0 to 1, on its own scale."""
        low, high, at = self._on_scale(*self.bounds, value)
        return min(max((at - low) / (high - low), 0.0), 1.0) if high > low else 0.0

    def from_unit(self, share: float) -> int | float:
        """The value of a range that lies there."""
        low, high = self._on_scale(*self.bounds)
        at = low + share * (high - low)
        return self._clip(math.exp(at) if self.is_log_scale else at, self._is_integer)

    def distance(self, one: Value, other: Value) -> float:
        """How far apart two values are, from 0 to 1: the share of the range between them, on its own scale.

        For choices the share of the list between them; 1 for a value that is not in it.
        """
        if self.values is not None:
            one, other, choices = self.listed(one), self.listed(other), list(self.values)
            if one not in choices or other not in choices:
                return float(one != other)
            return abs(choices.index(one) - choices.index(other)) / max(len(choices) - 1, 1)
        low, high, a, b = self._on_scale(*self.bounds, one, other)
        return min(abs(a - b) / (high - low), 1.0) if high > low else float(a != b)

    def _on_scale(self, *values: Value) -> tuple[float, ...]:
        """Numbers as the range is explored: as they are, or their logarithms."""
        return tuple(math.log(x) if self.is_log_scale else x for x in values)

    def _neighbour(self, value: Value, up: bool, rng: np.random.Generator) -> Value:
        assert self.values is not None
        value = self.listed(value)
        if value not in self.values:
            return self.sample(rng)
        last = len(self.values) - 1
        if last == 0:
            return value
        index = list(self.values).index(value) + (1 if up else -1)
        return self.values[last - 1 if index > last else 1 if index < 0 else index]

    @property
    def _is_integer(self) -> bool:
        return all(isinstance(bound, int) for bound in (self.min_value, self.max_value))

    def _clip(self, value: int | float, integer: bool) -> int | float:
        low, high = self.bounds
        clipped = min(max(value, low), high)
        return round(clipped) if integer else float(clipped)


def same_single(one: Value, other: Value) -> bool:
    """Whether two values are the same number up to the rounding of single precision."""
    numbers = all(isinstance(value, (int, float)) and not isinstance(value, bool) for value in (one, other))
    return numbers and math.isclose(one, other, rel_tol=2**-24)


def shortest(single: float) -> float:
    """The number of fewest digits that is the same one in single precision."""
    return float(str(np.float32(single)))


def to_single(space: HyperparamConfig, value: int | float) -> float:
    """Rounds to single precision, away from a bound that rounding would cross (1e-5 rounds to 0.9999999747e-5).

    Where no single lies between the bounds, the nearest one.
    """
    nearest = np.float32(value)
    if space.is_categorical:
        return float(nearest)
    low, high = space.bounds
    inward = np.float32(high) if float(nearest) < low else np.float32(low)
    inside = nearest if low <= float(nearest) <= high else np.nextafter(nearest, inward)
    return float(inside if low <= float(inside) <= high else nearest)


def from_lists(space: HyperparamConfig, value: Value) -> Value:
    """Undoes what JSON makes of a listed choice with tuples, so that it is found in its list again."""
    if space.values is None or value in space.values:
        return value
    return next((choice for choice in space.values if _lists(choice) == _lists(value)), value)


def _lists(value: Value) -> Value:
    """Nested tuples and lists as lists."""
    return [_lists(part) for part in value] if isinstance(value, (tuple, list)) else value
