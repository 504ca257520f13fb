"""Hyperparameters over time as a configuration lists them, in place of a population's own decisions."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import Config
from popgraft.errors import PopulationLost
from popgraft.pbt.schedule import Schedule
from popgraft.state import Decision, Record, Scores


class Prescribed:
    """Every member follows `pbt.schedule`; nobody is selected, so that members are independent samples.

    At a graft everybody moves one place on. The agents stay the same, and go through all that a graft does to whom it
    moves: another seat, and the optimizer state as configured.

    Args:
        config: the run.

    Attributes:
        failed_ready_checks: 0, for there are none.
    """

    failed_ready_checks = 0

    def __init__(self, config: Config) -> None:
        self._entries = config.pbt.schedule
        self._pop = config.pbt.population_size
        self._steps = config.steps_per_generation // self._pop

    def initial_hyperparams(self, defaults: dict[str, float]) -> dict[str, Float[Tensor, "pop"]]:
        """The schedule's first values; all others as given."""
        return {
            name: torch.full((self._pop,), value)
            for name, value in {**defaults, **self._entries[0].hyperparams}.items()
        }

    def __call__(
        self,
        generation: int,
        scores: Scores,
        hyperparams: dict[str, Float[Tensor, "pop"]],
        record: Record | None = None,
    ) -> Decision:
        """What sets in after `generation`.

        Args:
            generation: number of the generation that was scored.
            scores: fitness of every member.
            hyperparams: values that the generation was trained with.
            record: the best state there ever was, to which nobody returns.

        Raises:
            PopulationLost: no member has a finite score.
        """
        if not scores.mean.isfinite().any():
            raise PopulationLost(f"no member has a finite score after generation {generation}")
        begin, end = generation * self._steps, (generation + 1) * self._steps
        due = [entry for entry in self._entries if begin < entry.steps <= end]
        values = due[-1].hyperparams if due else {}
        grafted = any(entry.graft for entry in due)
        places = torch.arange(self._pop)
        return Decision(
            parents=places.roll(1) if grafted else places,
            hyperparams={
                name: torch.full_like(column, values[name]) if name in values else column.clone()
                for name, column in hyperparams.items()
            },
            reasons=dict.fromkeys(range(self._pop), "schedule") if grafted else {},
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: all that it decides stands in the configuration."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned: nothing."""


def make_schedule(config: Config) -> Schedule | Prescribed:
    """What decides over a run: `pbt.schedule` where there is one, evolution otherwise."""
    return Prescribed(config) if config.pbt.schedule else Schedule(config.pbt, config.seed)
