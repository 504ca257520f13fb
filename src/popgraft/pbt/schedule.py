"""The schedule of a population: readiness, exploit, rescue, explore.

Every draw comes from a stream named by (seed, purpose, generation, …), so a decision depends on its arguments and one
counter alone, and a resumed run decides as the uninterrupted one.
"""

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config import PopulationConfig
from popgraft.hyperparams import HyperparamConfig
from popgraft.pbt.exploit import choose_parents
from popgraft.pbt.explore import explore, to_single
from popgraft.pbt.readiness import Readiness
from popgraft.rng import numpy_generator
from popgraft.state import Decision, Record, Scores

NOTHING = Scores(torch.full((1,), math.nan), torch.full((1,), math.nan), torch.zeros(1, dtype=torch.long))
"""Scores of a record that has not been set."""


class Schedule:
    """Population-based training in which everybody decides at once (Jaderberg et al. 2017, arXiv:1711.09846).

    Args:
        config: the population and its evolution.
        seed: root of all draws.

    Attributes:
        readiness: readiness checks in a row that have failed; the only state.
    """

    def __init__(self, config: PopulationConfig, seed: int) -> None:
        self.config = config
        self.seed = seed
        self.readiness = Readiness(config)
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

    def __call__(
        self,
        generation: int,
        scores: Scores,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        record: Record | None = None,
        compared: Int[Tensor, "compared"] | None = None,
        deciding: Int[Tensor, "deciding"] | None = None,
        heirs: int = 0,
    ) -> Decision:
        """Decides who inherits from whom after `generation`, and with which hyperparameters.

        A survivor keeps its values, unless `explore_always`. A recipient takes all of its donor's, and then explores
        each listed hyperparameter. An unhealthy member is replaced whether or not the population is ready.

        Args:
            generation: number of the generation that was scored.
            scores: fitness of every member.
            hyperparams: values that the generation was trained with.
            record: the best state there ever was, to which "backtracking" returns.
            compared: members whose scores can be compared, in ascending order; None: everybody's.
            deciding: those of them that may become somebody else now; None: everybody.
            heirs: how many of the others have become somebody else since they were scored; they count as ready.

        Returns:
            The decision; the reason for a member without a finite score is always "rescue".

        Raises:
            PopulationLost: no member that is compared has a finite score.
        """
        config, healthy, pop = self.config, scores.mean.isfinite(), len(scores.mean)
        everyone = torch.arange(pop)
        who = None if deciding is None else int(deciding[0])
        compared, deciding = (everyone if some is None else some for some in (compared, deciding))
        ready = (config.exploit_method != "none" or config.explore_always) and self.readiness.check(
            int(healthy[compared].sum()) + heirs, pop, f"generation {generation}", who
        )
        candidates, places = _rows(scores, compared), compared
        if config.exploit_method == "backtracking":
            candidates = _joined(candidates, record.scores if record else NOTHING)
            places = torch.cat([compared, torch.tensor([pop])])
            own = record.state.hyperparams if record else {name: values[:1] for name, values in hyperparams.items()}
            hyperparams = {name: torch.cat([values, own[name]]) for name, values in hyperparams.items()}
        chosen = choose_parents(config, candidates, ready, self.seed, generation)[: len(compared)]
        parents = everyone.index_put((compared,), places[chosen])
        parents = torch.where(torch.isin(everyone, deciding), parents, everyone)
        decision = Decision(
            parents=parents,
            hyperparams={name: values[parents] for name, values in hyperparams.items()},
            reasons={
                member: config.exploit_method if healthy[member] else "rescue"
                for member in deciding.tolist()
                if parents[member] != member
            },
        )
        for member in deciding.tolist() if ready and config.explore_always else decision.reasons:
            for space in self._spaces:
                values = decision.hyperparams[space.name]
                rng = numpy_generator(self.seed, "explore", generation, space.name, member)
                donor_value = space.listed(float(values[member]))
                values[member] = to_single(space, explore(space, donor_value, config.explore_method, rng))
        return decision

    @property
    def failed_ready_checks(self) -> int:
        """Readiness checks in a row that have failed."""
        return self.readiness.failed

    def state_dict(self) -> dict[str, Any]:
        """All that a resumed run needs besides the configuration and the seed."""
        return self.readiness.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.readiness.load_state_dict(state)


def _rows(scores: Scores, members: Int[Tensor, "rows"]) -> Scores:
    return Scores(scores.mean[members], scores.stderr[members], scores.episodes[members], scores.faults)


def _joined(scores: Scores, more: Scores) -> Scores:
    parts = {
        name: torch.cat([getattr(each, name) for each in (scores, more)]) for name in ("mean", "stderr", "episodes")
    }
    return Scores(**parts, faults=scores.faults)


def _real(space: HyperparamConfig) -> HyperparamConfig:
    """The same space over the reals: integer bounds, as in [0, 1], would allow whole numbers only."""
    if space.is_categorical:
        return space
    low, high = space.bounds
    return dataclasses.replace(space, min_value=float(low), max_value=float(high))
