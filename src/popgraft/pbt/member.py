"""What a scheduler knows of one member: its place, its hyperparameters, and how well it did."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from popgraft.hyperparams import Value


@dataclasses.dataclass
class PopulationMember:
    """One member of a population that is trained elsewhere.

    Attributes:
        member_id: the member's place in the population.
        hyperparams: the values that it trains with from now on.
        performance: its latest score, a copied one included; None before the first.
        step: step at which that was measured, in the trainer's own unit.
        checkpoint_path: file with the parameters that the score belongs to.
        vecnormalize_stats_path: file with the normalisation statistics that go with them.
        history: every report, as {"step", "performance", "hyperparams"}.
        exploited_from: the donor of its latest exploit.
        reference_step: step from which `perturbation_interval` counts.
        stderr: standard error of the score; NaN where it is not known.
        episodes: episodes that the score was taken over; 0 where it is not known.
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

    @property
    def is_healthy(self) -> bool:
        """Whether it has a finite score."""
        return self.performance is not None and math.isfinite(self.performance)

    def record_step(self, step: int, performance: float | int | None, hyperparams: dict[str, Value]) -> None:
        """Adds a report to the history."""
        self.history.append({"step": step, "performance": performance, "hyperparams": dict(hyperparams)})
