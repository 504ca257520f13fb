"""Who decides at the same time, and whom they are compared with: everybody, or members of about the same age."""

import abc
import dataclasses

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from popgraft.config import Config
from popgraft.errors import PopulationLost
from popgraft.pbt import Choice, Strategy
from popgraft.state import Decision
from popgraft.store import RunDatabase
from popgraft.train.announce import Announcer
from popgraft.train.run_state import RunState
from popgraft.train.standing import of_those_left, standing_of


class Pace(abc.ABC):
    """Asks the strategy for those who have trained.

    Args:
        config: the run.
        strategy: decides.
        state: how the run stands.
        database: what it has recorded.
        announcer: says what happens.
    """

    def __init__(
        self, config: Config, strategy: Strategy, state: RunState, database: RunDatabase, announcer: Announcer
    ) -> None:
        self._config, self._strategy, self._state = config, strategy, state
        self._database, self._announcer = database, announcer

    @abc.abstractmethod
    def decide(self, members: Int[Tensor, "part"]) -> Decision:
        """Who inherits from whom; only `members` may become somebody else.

        Raises:
            PopulationLost: nobody has a finite score.
        """


class InStep(Pace):
    """Everybody decides at once.

    Where the population becomes smaller (`pbt.population_schedule`), the worst end, by the order in which a strategy
    sees them, and all others decide as if there had never been more of them.
    """

    def decide(self, members: Int[Tensor, "part"]) -> Decision:
        """Asks once for all."""
        state, config = self._state, self._config
        standing = standing_of(config, state, state.generation, self._database)
        order = members[standing.among(members).order]
        left = order[: config.size_at(state.steps)].sort().values
        yet = config.planned_generations(0, state.steps, len(left))
        own = dataclasses.replace(of_those_left(standing, left), left=yet)
        decision = self._strategy.decide(own, state.hyperparams, state.record, left)
        return dataclasses.replace(decision, ended=tuple(order[len(left) :].sort().values.tolist()))


class OwnPace(Pace):
    """Every shard decides when it has trained for a generation.

    A member is compared with those that have about as much training behind them, wherever they have had it: whose `age`
    differs from its own by `execute.max_lag` generations at most. Nobody inherits from an heir before it has trained.
    """

    def decide(self, members: Int[Tensor, "part"]) -> Decision:
        """Asks once for all of the same age."""
        state = self._state
        number = int(state.rounds.sum())
        whole = Choice(torch.arange(state.pop))
        for age in state.age[members].unique().tolist():
            deciding = members[state.age[members] == age]
            compared, heirs = self._comparable(age)
            try:
                known = {"compared": compared, "deciding": deciding, "heirs": heirs, "together": False}
                standing = standing_of(self._config, state, number, self._database, **known)
                whole = whole.joined(self._strategy(standing).of_those_who_decide(standing))
            except PopulationLost:
                if not self._at_work.any():
                    raise
                names = ", ".join(str(member) for member in deciding.tolist())
                text = f"no healthy member has been scored yet, so nobody takes the place of member {names}"
                self._announcer.event("waiting", text, int(state.rounds[deciding[0]]))
            number += len(deciding)
        return whole.decision(state.hyperparams, state.record, self._config.pbt)

    def _comparable(self, age: int) -> tuple[Int[Tensor, "compared"], int]:
        """Those of about an age: scored members, and how many are heirs.

        Where no scored one is healthy, members of any age: somebody must rescue.
        """
        state, config = self._state, self._config
        heirs, scored = state.heirs > 0, ~self._at_work
        near = (state.age - age).abs() <= config.execute.max_lag * config.pbt.perturbation_interval
        found = (scored & near).nonzero().flatten()
        if not state.known.mean[found].isfinite().any():
            found = scored.nonzero().flatten()
        return found, int((heirs & near).sum())

    @property
    def _at_work(self) -> Bool[Tensor, "pop"]:
        """Who has no score of its own yet: it has never finished a generation, or none as the heir that it is."""
        return (self._state.heirs > 0) | (self._state.place_steps == 0)
