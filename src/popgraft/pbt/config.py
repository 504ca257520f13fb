"""Settings of the scheduler for models that are trained elsewhere."""

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import field_validator

from popgraft.config.fields import Positive
from popgraft.config.population import EvolutionConfig

OptimizerStrategy = Literal["reset", "copy"]


class PBTConfig(EvolutionConfig):
    """A population whose members are trained by the user's own code."""

    population_size: Positive = 10
    """Number of members."""
    checkpoint_dir: str | Path = "pbt_checkpoints"
    """Folder of the members' checkpoints; made when the first one is written."""
    metric_name: str = "mean_reward"
    """What a performance is, for the log."""
    optimizer_exploit_strategy: OptimizerStrategy = "reset"
    """Whether a recipient's optimizer starts afresh (`reset`) or goes on as its donor's (`copy`)."""

    @field_validator("optimizer_exploit_strategy", mode="before")
    @classmethod
    def _known_strategy(cls, strategy: Any) -> Any:
        allowed = get_args(OptimizerStrategy)
        if strategy not in allowed:
            names = " or ".join(repr(name) for name in allowed)
            raise ValueError(f"optimizer_exploit_strategy must be {names}, not {strategy!r}")
        return strategy

    @field_validator("metric_name", "checkpoint_dir", mode="after")
    @classmethod
    def _not_empty(cls, value: str | Path) -> str | Path:
        if not str(value):
            raise ValueError("must not be empty")
        return value
