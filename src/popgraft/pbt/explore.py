"""Explore: from a donor's hyperparameter to the recipient's (Jaderberg et al. 2017, arXiv:1711.09846, §3)."""

from typing import Literal, assert_never

import numpy as np

from popgraft.hyperparams import HyperparamConfig, Value

Method = Literal["perturb", "resample", "both", "none"]


def explore(space: HyperparamConfig, donor_value: Value, method: Method, rng: np.random.Generator) -> Value:
    """The value that a recipient trains with.

    Args:
        space: the hyperparameter's space.
        donor_value: what the donor trained with.
        method: perturb the donor's value, draw afresh, or `both`: afresh with `space.resample_probability`, else
            perturb; `none` keeps the donor's value.
        rng: source of the draws.
    """
    match method:
        case "none":
            return donor_value
        case "perturb":
            return space.perturb(donor_value, rng)
        case "resample":
            return space.sample(rng)
        case "both":
            afresh = rng.random() < space.resample_probability
            return space.sample(rng) if afresh else space.perturb(donor_value, rng)
        case _:
            assert_never(method)


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
