"""Settings of the scheduler for models that are trained elsewhere."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import Field, StrictBool, field_validator

from popgraft.config.fields import Number, Positive
from popgraft.config.population import EvolutionConfig

OptimizerStrategy = Literal["reset", "copy", "partial", "adaptive"]


class PBTConfig(EvolutionConfig):
    """A population whose members are trained by the user's own code."""

    population_size: Positive = 10
    """Number of members."""
    checkpoint_dir: str | Path = "pbt_checkpoints"
    """Folder of the members' checkpoints; made when the first one is written."""
    metric_name: str = "mean_reward"
    """What a performance is, for the log."""
    optimizer_exploit_strategy: OptimizerStrategy = "reset"
    """Whether a recipient's optimizer starts afresh (`reset`), goes on as its donor's (`copy`) or with a part of it
    (`partial`), or does what fits the explored values (`adaptive`)."""
    optimizer_partial: Literal["momentum", "scale"] = "momentum"
    """What `partial` keeps: the average gradient, or the second moment and the utility."""
    optimizer_adaptive_distance: Annotated[Number, Field(ge=0, le=1)] = 0.1
    """Largest change of an explored value at which `adaptive` copies, as a share of its range."""
    optimizer_rescale: StrictBool = False
    """Whether an inherited momentum is divided by the change of the learning rate."""

    @field_validator("optimizer_exploit_strategy", mode="before")
    @classmethod
    def _known_strategy(cls, strategy: Any) -> Any:
        allowed = get_args(OptimizerStrategy)
        if strategy not in allowed:
            names = ", ".join(" or ".join(repr(name) for name in pair) for pair in (allowed[:2], allowed[2:]))
            raise ValueError(f"optimizer_exploit_strategy must be {names}, not {strategy!r}")
        return strategy

    @field_validator("metric_name", "checkpoint_dir", mode="after")
    @classmethod
    def _not_empty(cls, value: str | Path) -> str | Path:
        if not str(value):
            raise ValueError("must not be empty")
        return value
