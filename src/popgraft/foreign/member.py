"""What a scheduler knows of one member: its place, its hyperparameters, and how well it did."""

import dataclasses
import math
import operator
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from popgraft.errors import ConfigError
from popgraft.hyperparams import Value
from popgraft.state import Scores

T = TypeVar("T", int, float)


@dataclasses.dataclass
class PopulationMember:
    """One member of a population that is trained elsewhere.

    Attributes:
        member_id: the member's place in the population.
        hyperparams: the values that it trains with from now on.
        performance: its latest score; None before the first, and again from an exploit to its next report.
        step: step at which that was measured, in the trainer's own unit; a recipient goes on from its donor's.
        checkpoint_path: file with the parameters that it has, as far as the scheduler knows them.
        vecnormalize_stats_path: file with the normalisation statistics that go with them.
        history: every report, as {"step", "performance", "hyperparams"}; of one after which the member became another
            one's copy, with "parents" as well: the donors of its "weights" and its "hyperparams", and the "generation"
            of the first one's report, counted from 0.
        exploited_from: the donor of its latest exploit.
        reference_step: step from which `perturbation_interval` counts.
        stderr: standard error of the score; NaN where it is not known.
        episodes: episodes that the score was taken over; 0 where it is not known.
        reported: the member as it reported, from the time at which a decision changed it to its next report.
        reported_at: decisions that had been made when it reported.
        changed_at: number of the decision that made it another one's copy.
    """

    member_id: int
    hyperparams: dict[str, Value]
    performance: float | int | None = None
    step: int = 0
    checkpoint_path: str | Path | None = None
    vecnormalize_stats_path: str | Path | None = None
    history: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    exploited_from: int | None = None
    reference_step: int = 0
    stderr: float = math.nan
    episodes: int = 0
    reported: "PopulationMember | None" = None
    reported_at: int = 0
    changed_at: int = -1

    @property
    def ranked(self) -> "PopulationMember":
        """What its latest report was of, by which it is ranked."""
        if self.reported is None or self.performance not in (None, self.reported.performance):  # set by hand
            return self
        return self.reported

    def as_reported(self) -> "PopulationMember":
        """A record of what it has reported, to be kept in `reported` when a decision changes it."""
        return dataclasses.replace(self.ranked, history=[], reported=None)

    def take_back(self) -> None:
        """Undoes what has changed since the report."""
        for report in self.history[-1:]:
            report.pop("parents", None)
        vars(self).update(vars(dataclasses.replace(self.ranked, history=self.history)))

    def seen_by(self, recipient: "PopulationMember") -> "PopulationMember":
        """What a recipient copies: what this member has reported, or what it was by the recipient's own report."""
        copied = self.performance is None and self.changed_at < recipient.reported_at
        return self if copied else self.ranked

    @property
    def is_healthy(self) -> bool:
        """Whether it has a finite score."""
        return self.performance is not None and math.isfinite(self.performance)

    def record_step(self, step: int, performance: float | int | None, hyperparams: dict[str, Value]) -> None:
        """Takes over what was measured when, which the member is ranked by from now on, and adds it to the history."""
        self.step, self.performance, self.reported = step, performance, None
        self.history.append({"step": step, "performance": performance, "hyperparams": dict(hyperparams)})


def scores_of(members: list[PopulationMember]) -> Scores:
    """What decisions see of members; NaN for who has no score."""
    mean = [math.nan if member.performance is None else member.performance for member in members]
    return Scores(
        mean=torch.tensor(mean, dtype=torch.float64),
        stderr=torch.tensor([member.stderr for member in members], dtype=torch.float64),
        episodes=torch.tensor([member.episodes for member in members], dtype=torch.long),
    )


def number(name: str, kind: Callable[[Any], T], value: Any) -> T:
    """A number of a report.

    Raises:
        ConfigError: it is none.
    """
    try:
        return kind(value)
    except (TypeError, ValueError, OverflowError):
        wanted = "a whole number" if kind is operator.index else "one number"
        raise ConfigError(f"{name}={value!r} is not {wanted}; report {wanted}") from None
