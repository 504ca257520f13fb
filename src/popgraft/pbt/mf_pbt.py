"""Multiple-frequencies population-based training (Doulazmi et al. 2025, arXiv:2506.03225).

A short interval selects who is best soon, and hyperparameters with it that are good for a while. So the population is
divided, and its parts evolve at different intervals; what a slow part has found may reach a fast one whole, but of a
fast part only the weights reach a slow one.
"""

from typing import Annotated, Any, ClassVar

import torch
from jaxtyping import Int
from pydantic import Field, field_validator
from torch import Tensor

from popgraft.config.fields import Positive, Section
from popgraft.config.population import EXPLORE, EvolutionConfig
from popgraft.errors import ConfigError
from popgraft.pbt.choice import Choice
from popgraft.pbt.explore import Explore
from popgraft.pbt.ranking import rescue
from popgraft.pbt.settings import READINESS, WHO_COPIES, refuse_unread, settings_of
from popgraft.pbt.standing import Hyperparams, Standing
from popgraft.pbt.strategy import Strategy

SMALLEST = 3
"""Members of a part: one that is copied, one that is replaced, and one in between whose place others may take."""


class MFPBTSettings(Section):
    """Arguments of the strategy."""

    frequencies: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 10)
    """Generations between two evolutions of every part of the population, rising; members are divided in this order,
    as evenly as can be."""

    @field_validator("frequencies", mode="after")
    @classmethod
    def _rising(cls, frequencies: tuple[int, ...]) -> tuple[int, ...]:
        if list(frequencies) != sorted(set(frequencies)):
            raise ValueError(f"must rise, and {list(frequencies)} do not; sort them, and keep one of each")
        return frequencies


class MFPBT(Strategy):
    """Parts of the population evolve every δ generations, each with its own δ.

    A part of n members, ranked, has four brackets. The worst ⌊n/4⌋ become the best ⌊n/4⌋, in order, and explore. Those
    before the worst ones compare with the best of all other parts, each of whom migrates once, and take the weights of
    one that is better: with its hyperparameters, if it is from a slower part, and with those of their own part's best
    if it is from a faster one. Nobody else changes, but for members that have failed, who are rescued at once: by their
    own part if it can.

    Attributes:
        frequencies: δ of every part.
        parts: members of every part.
        explore: how hyperparameters of the worst move; None: they do not.
    """

    of_any_size: ClassVar[bool] = False

    def __init__(self, config: EvolutionConfig, seed: int, **kwargs: Any) -> None:
        super().__init__(config, seed)
        refuse_unread(config, (*WHO_COPIES, *READINESS))
        self.frequencies = settings_of(MFPBTSettings, kwargs).frequencies
        count, size = len(self.frequencies), config.population_size
        if size < count * SMALLEST:
            raise ConfigError(
                f"{count} parts of a population of {size} have less than {SMALLEST} members; raise "
                f"pbt.population_size to {count * SMALLEST}, or set fewer pbt.strategy_kwargs.frequencies"
            )
        self.parts = [list(range(size * i // count, size * (i + 1) // count)) for i in range(count)]
        self.explore: Explore | None = None
        if config.explores:
            self.explore = EXPLORE.make(config.explore_method, config, **config.explore_method_kwargs)

    def __call__(self, standing: Standing) -> Choice:
        """Decides; the reasons are "exploit", "migration" and "rescue".

        Raises:
            PopulationLost: no member that is compared has a finite score.
        """
        compared, deciding = set(standing.compared.tolist()), set(standing.deciding.tolist())
        order = [member for member in standing.order.tolist() if member in compared]
        rounds = _rounds(standing)
        parents, adopted = torch.arange(standing.pop), torch.arange(standing.pop)
        reasons: dict[int, str] = {}
        for part, frequency in enumerate(self.frequencies):
            due = {member for member in deciding.intersection(self.parts[part]) if rounds[member] % frequency == 0}
            for member, weights, values, reason in self._evolved(standing, order, part) if due else ():
                if member in due:
                    parents[member], adopted[member], reasons[member] = weights, values, reason
        self._rescue(standing, parents, adopted, reasons)
        explored: dict[int, Hyperparams] = {}
        if self.explore is not None:
            for member in sorted(deciding.intersection(reasons)):
                if reasons[member] != "migration":
                    inherited = standing.hyperparams_of(int(adopted[member]))
                    explored[member] = self.explore(standing, member, inherited)
        return Choice(parents, adopted, explored, reasons)

    def _part_of(self, member: int) -> int:
        return next(part for part, members in enumerate(self.parts) if member in members)

    def _evolved(self, standing: Standing, order: list[int], part: int) -> list[tuple[int, int, int, str]]:
        """Members of a part that change: who, as whom, with whose hyperparameters, and why."""
        own = [member for member in order if member in self.parts[part]]
        others = [member for member in order if member not in self.parts[part]]
        if not own or not standing.scores.mean[own[0]].isfinite():
            return []
        share, found = max(1, len(own) // 4), []
        for winner, loser in zip(own[:share], own[-share:], strict=True):
            if standing.is_better(winner, loser):
                found.append((loser, winner, winner, "exploit"))
        for member in own[max(share, len(own) - 2 * share) : len(own) - share]:
            if others and standing.is_better(others[0], member):
                migrant = others.pop(0)
                slower = self._part_of(migrant) > part
                found.append((member, migrant, migrant if slower else own[0], "migration"))
        return found

    def _rescue(
        self, standing: Standing, parents: Int[Tensor, "pop"], adopted: Int[Tensor, "pop"], reasons: dict[int, str]
    ) -> None:
        """Gives everybody who would go on without a finite score a parent of its own part, or of any if all failed."""
        healthy = standing.scores.mean.isfinite()
        for part, members in enumerate(self.parts):
            own = standing.compared[torch.isin(standing.compared, torch.tensor(members))]
            lost = own[~healthy[parents[own]]]
            if len(lost):
                pool = own if healthy[own].any() else standing.compared
                scores, rng = standing.scores.mean[pool], standing.rng("rescue", part)
                chosen = pool[rescue(torch.arange(len(pool)), scores, self.config.truncation_ratio, standing.mode, rng)]
                for member in lost.tolist():
                    donor = int(chosen[(pool == member).nonzero()])
                    parents[member], adopted[member], reasons[member] = donor, donor, "rescue"


def _rounds(standing: Standing) -> list[int]:
    """How many generations every member has behind it."""
    if standing.together:
        return [standing.number + 1] * standing.pop
    earlier = [past.member for past in standing.history]
    return [earlier.count(member) + 1 for member in range(standing.pop)]
