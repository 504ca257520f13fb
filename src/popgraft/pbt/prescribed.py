"""Hyperparameters over time as a configuration lists them, in place of a population's own decisions."""

from typing import cast

import torch

from popgraft.config import Config, PopulationConfig
from popgraft.config.population import STRATEGY
from popgraft.errors import ConfigError, PopulationLost
from popgraft.pbt.choice import Choice
from popgraft.pbt.standing import Hyperparams, Standing
from popgraft.pbt.strategy import Strategy


class Prescribed(Strategy):
    """Every member follows `pbt.schedule`; nobody is selected, so that members are independent samples.

    At a graft everybody moves one place on. The agents stay the same, and go through all that a graft does to whom it
    moves: another seat, and the optimizer state as configured.
    """

    def initial(self, member: int) -> Hyperparams:
        """The schedule's first values."""
        return cast("PopulationConfig", self.config).schedule[0].hyperparams

    def __call__(self, standing: Standing) -> Choice:
        """What sets in after the generation that `standing` is of.

        Raises:
            PopulationLost: no member has a finite score.
        """
        if not standing.scores.mean.isfinite().any():
            raise PopulationLost(f"no member has a finite score after generation {standing.number}")
        end, spent = int(standing.steps[0]), int(standing.spent[0])
        entries = cast("PopulationConfig", self.config).schedule
        due = [entry for entry in entries if end - spent < entry.steps <= end]
        everyone = torch.arange(standing.pop)
        grafted = any(entry.graft for entry in due)
        return Choice(
            parents=everyone.roll(1) if grafted else everyone,
            explored=dict.fromkeys(range(standing.pop), due[-1].hyperparams) if due else {},
            reasons=dict.fromkeys(range(standing.pop), "schedule") if grafted else {},
        )


def make_strategy(config: Config) -> Strategy:
    """What decides over a run: `pbt.schedule` where there is one, `pbt.strategy` otherwise.

    Raises:
        ConfigError: there is no such strategy, a part of it is missing, or it cannot decide for shards by themselves or
            for a population that becomes smaller.
    """
    if config.pbt.schedule:
        return Prescribed(config.pbt, config.seed)
    made: Strategy = STRATEGY.make(config.pbt.strategy, config.pbt, config.seed, **config.pbt.strategy_kwargs)
    if made.together and config.execute.mode == "async":
        raise ConfigError(
            f"pbt.strategy={config.pbt.strategy!r} decides over everybody at once, but with execute.mode: async every "
            "shard decides for itself; set execute.mode: lockstep"
        )
    if config.pbt.population_schedule and not made.of_any_size:
        raise ConfigError(
            f"pbt.population_schedule ends members, but pbt.strategy={config.pbt.strategy!r} is for a population of "
            "one size; remove pbt.population_schedule, or choose another strategy"
        )
    return made
