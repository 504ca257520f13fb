"""The schedule of a population: readiness, exploit, rescue, explore.

Every draw comes from a stream named by (seed, purpose, generation, …), so a decision depends on its arguments and one
counter alone, and a resumed run decides as the uninterrupted one.
"""

import dataclasses
import logging
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.config import PopulationConfig
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt.exploit import rescue, truncation
from popgraft.pbt.explore import explore, from_single, to_single
from popgraft.rng import numpy_generator
from popgraft.state import Decision, Scores

logger = logging.getLogger(__name__)


class Schedule:
    """Population-based training with truncation selection (Jaderberg et al. 2017, arXiv:1711.09846).

    Args:
        config: the population and its evolution.
        seed: root of all draws.

    Attributes:
        failed_ready_checks: readiness checks in a row that have failed; the only state.
    """

    def __init__(self, config: PopulationConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.failed_ready_checks = 0
        self._spaces = [_real(space) for space in config.hyperparams]

    def initial_hyperparams(self, defaults: dict[str, float]) -> dict[str, Float[Tensor, "pop"]]:
        """Values that the population begins with: listed hyperparameters drawn from their spaces, all others as given.

        A member's draw does not depend on the population's size.
        """
        pop = self.config.population_size
        values = {name: torch.full((pop,), value, dtype=torch.float32) for name, value in defaults.items()}
        for space in self._spaces:
            streams = [numpy_generator(self.seed, "initial", space.name, member) for member in range(pop)]
            values[space.name] = torch.tensor([to_single(space, space.sample(rng)) for rng in streams])
        return values

    def __call__(self, generation: int, scores: Scores, hyperparams: dict[str, Float[Tensor, "pop"]]) -> Decision:
        """Decides who inherits from whom after `generation`, and with which hyperparameters.

        A survivor keeps its values. A recipient takes all of its donor's, and then explores each listed hyperparameter.
        An unhealthy member is replaced whether or not the population is ready.

        Args:
            generation: number of the generation that was scored.
            scores: fitness of every member.
            hyperparams: values that the generation was trained with.

        Returns:
            The decision; the reason for a member without a finite score is always "rescue".

        Raises:
            PopulationLost: no member has a finite score.
        """
        config, mean = self.config, scores.mean
        healthy = mean.isfinite()
        parents = torch.arange(len(mean))
        if config.exploit_method == "truncation" and self._is_ready(generation, healthy):
            rng = numpy_generator(self.seed, "exploit", generation)
            parents = truncation(mean, config.truncation_ratio, config.metric_mode, rng)
        rng = numpy_generator(self.seed, "rescue", generation)
        parents = rescue(parents, mean, config.truncation_ratio, config.metric_mode, rng)
        decision = Decision(
            parents=parents,
            hyperparams={name: values[parents] for name, values in hyperparams.items()},
            reasons={
                member: "truncation" if healthy[member] else "rescue"
                for member, parent in enumerate(parents.tolist())
                if parent != member
            },
        )
        for member in decision.reasons:
            for space in self._spaces:
                values = decision.hyperparams[space.name]
                rng = numpy_generator(self.seed, "explore", generation, space.name, member)
                donor_value = from_single(space, float(values[member]))
                values[member] = to_single(space, explore(space, donor_value, config.explore_method, rng))
        return decision

    def state_dict(self) -> dict[str, int]:
        """All that a resumed run needs besides the configuration and the seed."""
        return {"failed_ready_checks": self.failed_ready_checks}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Restores what `state_dict` returned."""
        self.failed_ready_checks = state["failed_ready_checks"]

    def _is_ready(self, generation: int, healthy: Bool[Tensor, "pop"]) -> bool:
        """Whether enough members have a finite score: `ready_percentage`, or fewer once that has failed too often."""
        config = self.config
        ready, pop = int(healthy.sum()), len(healthy)
        required = math.ceil(pop * config.ready_percentage - 1e-9)  # 100 · 0.07 is 7.000…1 in binary
        if ready >= required:
            self.failed_ready_checks = 0
            return True
        self.failed_ready_checks += 1
        if self.failed_ready_checks < config.ready_check_max_wait or ready < config.min_ready_members:
            return False
        logger.warning(
            "generation %d: %d of %d members have a finite score, but pbt.ready_percentage=%g asks for %d; "
            "going on, after %d failed checks in a row",
            generation, ready, pop, config.ready_percentage, required, self.failed_ready_checks,
        )  # fmt: skip
        self.failed_ready_checks = 0
        return True


def _real(space: HyperparamConfig) -> HyperparamConfig:
    """The same space over the reals: integer bounds, as in [0, 1], would allow whole numbers only."""
    if space.is_categorical:
        return space
    low, high = space.bounds
    return dataclasses.replace(space, min_value=float(low), max_value=float(high))
