"""Population-based training: readiness, exploit, rescue, explore.

Every draw comes from a stream named by (seed, purpose, number, …), so a decision depends on its standing and one
counter alone, and a resumed run decides as the uninterrupted one.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from popgraft.config.population import EXPLOIT, EXPLORE, EvolutionConfig
from popgraft.pbt.choice import Choice
from popgraft.pbt.exploit import Exploit
from popgraft.pbt.explore import Explore
from popgraft.pbt.ranking import rescue
from popgraft.pbt.readiness import Readiness
from popgraft.pbt.standing import Hyperparams, Standing
from popgraft.pbt.strategy import Strategy


class Evolution(Strategy):
    """Population-based training (Jaderberg et al. 2017, arXiv:1711.09846).

    A survivor keeps its values, unless `explore_always`. A recipient takes all of its donor's, and then explores those
    that vary. An unhealthy member is replaced whether or not the population is ready.

    Attributes:
        exploit: who copies whom; None: nobody, which is random search.
        explore: how recipients' hyperparameters move; None: they do not.
        readiness: readiness checks in a row that have failed; the only state.
    """

    def __init__(self, config: EvolutionConfig, seed: int) -> None:
        super().__init__(config, seed)
        self.exploit: Exploit | None = None
        self.explore: Explore | None = None
        if config.copies:
            self.exploit = EXPLOIT.make(config.exploit_method, config, **config.exploit_method_kwargs)
        if config.explores:
            self.explore = EXPLORE.make(config.explore_method, config, **config.explore_method_kwargs)
        self.readiness = Readiness(config)

    def __call__(self, standing: Standing) -> Choice:
        """Decides; the reason for a member without a finite score is always "rescue".

        Raises:
            PopulationLost: no member that is compared has a finite score.
        """
        healthy, everyone = standing.scores.mean.isfinite(), torch.arange(standing.pop)
        ready = self._is_ready(standing)
        places = torch.cat([standing.compared, torch.tensor([standing.pop])])
        chosen = places[self._parents(standing.among(standing.compared), ready)]
        parents = everyone.index_put((standing.compared,), chosen)
        parents = torch.where(torch.isin(everyone, standing.deciding), parents, everyone)
        deciding = standing.deciding.tolist()
        reasons = {
            member: self.config.exploit_method if healthy[member] else "rescue"
            for member in deciding
            if parents[member] != member
        }
        explorers = deciding if ready and self.config.explore_always else list(reasons)
        return Choice(parents, explored=self._explored(standing, parents, explorers), reasons=reasons)

    @property
    def compares_episodes(self) -> bool:
        """Whether the exploit method does."""
        return self.exploit is not None and self.exploit.compares_episodes

    def statistics(self) -> dict[str, float]:
        """Readiness checks in a row that have failed."""
        return {"failed_ready_checks": float(self.readiness.failed)}

    def state_dict(self) -> dict[str, Any]:
        """The state of the readiness checks."""
        return self.readiness.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.readiness.load_state_dict(state)

    def _explored(self, standing: Standing, parents: Int[Tensor, "pop"], members: list[int]) -> dict[int, Hyperparams]:
        """New values of some members' hyperparameters."""
        if self.explore is None:
            return {}
        inherited = {member: standing.hyperparams_of(int(parents[member])) for member in members}
        return {member: self.explore(standing, member, values) for member, values in inherited.items()}

    def _is_ready(self, standing: Standing) -> bool:
        if self.exploit is None and not self.config.explore_always:
            return False
        ready = int(standing.scores.mean[standing.compared].isfinite().sum()) + standing.heirs
        who = None if standing.together else int(standing.deciding[0])
        return self.readiness.check(ready, standing.pop, standing.occasion, who)

    def _parents(self, compared: Standing, ready: bool) -> Int[Tensor, "compared"]:
        """Exploits, if the population is ready, and rescues the unhealthy in any case."""
        parents, scores = torch.arange(compared.pop), compared.scores.mean
        if self.exploit is not None:
            if ready:
                parents = self.exploit(compared)
            if self.exploit.copies_the_best_ever:
                record = torch.tensor([float("nan")]) if compared.best is None else compared.best.scores.mean
                scores = torch.cat([scores, record])
        return rescue(parents, scores, self.config.truncation_ratio, compared.mode, compared.rng("rescue"))
