"""Explore: from a donor's hyperparameters to the recipient's (Jaderberg et al. 2017, arXiv:1711.09846, §3)."""

import abc

import numpy as np

from popgraft.config.population import EvolutionConfig
from popgraft.hyperparams import HyperparamConfig, Value
from popgraft.pbt.standing import Hyperparams, Standing


class Explore(abc.ABC):
    """How a recipient's hyperparameters differ from its donor's.

    Args:
        config: how the population evolves.

    Attributes:
        spaces: hyperparameters that vary over the population.
    """

    def __init__(self, config: EvolutionConfig) -> None:
        self.spaces = config.spaces

    @abc.abstractmethod
    def __call__(self, standing: Standing, member: int, inherited: Hyperparams) -> Hyperparams:
        """New values of the hyperparameters that change, by name.

        Args:
            standing: the population.
            member: who goes on with them; draws come from `standing.rng("explore", …, member)`.
            inherited: what its donor was trained with.
        """


class EachByItself(Explore):
    """Every hyperparameter by itself, from a stream of its own."""

    def __call__(self, standing: Standing, member: int, inherited: Hyperparams) -> Hyperparams:
        """New values of all hyperparameters that vary."""
        return {
            space.name: self.explored(
                space, space.listed(inherited[space.name]), standing.rng("explore", space.name, member)
            )
            for space in self.spaces
        }

    @abc.abstractmethod
    def explored(self, space: HyperparamConfig, value: Value, rng: np.random.Generator) -> Value:
        """The value that a recipient trains with, whose donor has trained with `value`."""


class Perturb(EachByItself):
    """The donor's value, moved one step up or down."""

    def explored(self, space: HyperparamConfig, value: Value, rng: np.random.Generator) -> Value:
        """One step from the donor's."""
        return space.perturb(value, rng)


class Resample(EachByItself):
    """A value drawn afresh."""

    def explored(self, space: HyperparamConfig, value: Value, rng: np.random.Generator) -> Value:
        """Whatever the donor's was."""
        return space.sample(rng)


class Both(Perturb):
    """One step from the donor's values, and at most one value drawn afresh.

    Which one that may be is drawn uniformly, and whether it is with its space's `resample_probability`. So every graft
    stays near its donor in all numbers but one, however many there are.
    """

    def __call__(self, standing: Standing, member: int, inherited: Hyperparams) -> Hyperparams:
        """New values of all hyperparameters that vary."""
        values, rng = dict(super().__call__(standing, member, inherited)), standing.rng("afresh", member)
        if self.spaces:
            space = self.spaces[int(rng.integers(len(self.spaces)))]
            if rng.random() < space.resample_probability:
                values[space.name] = space.sample(rng)
        return values
