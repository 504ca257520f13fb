"""Settings of the scheduler for models that are trained elsewhere, and of their state-adversarial training."""

from pathlib import Path
from typing import Any, ClassVar, get_args

from pydantic import StrictBool, field_validator, model_validator

from popgraft.config.adversary import AdversaryConfig, Course
from popgraft.config.fields import Positive
from popgraft.config.population import EvolutionConfig, OptimizerStrategy


class PBTConfig(EvolutionConfig):
    """A population whose members are trained by the user's own code."""

    in_order: ClassVar[tuple[str, ...]] = (
        "population_size",
        "perturbation_interval",
        "hyperparams",
        "exploit_method",
        "explore_method",
        "truncation_ratio",
        "checkpoint_dir",
        "metric_name",
        "metric_mode",
        "ready_percentage",
        "min_ready_members",
        "ready_check_max_wait",
        "optimizer_exploit_strategy",
    )

    population_size: Positive = 10
    """Number of members."""
    checkpoint_dir: str | Path = "pbt_checkpoints"
    """Folder of the members' checkpoints; made when the first one is written."""
    metric_name: str = "mean_reward"
    """What a performance is, for the log."""
    optimizer_exploit_strategy: OptimizerStrategy = "reset"
    """As in the engine, where it is `copy`: here a donor's file may hold weights alone, and `reset` suits them all."""

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


class SAPPOConfig(AdversaryConfig):
    """State-adversarial PPO of a model that is trained elsewhere."""

    in_order: ClassVar[tuple[str, ...]] = (
        "enabled",
        "perturbation",
        "adversarial_ratio",
        "robust_kl_coef",
        "warmup_updates",
        "attack_policy",
        "attack_value",
        "adaptive_epsilon",
        "epsilon_schedule",
        "epsilon_final",
        "max_updates",
    )

    attack_policy: StrictBool = True
    """Whether the loss has the robust term of the policy."""
    attack_value: StrictBool = True
    """Whether the value loss is taken at attacked observations; for a trainer of your own (`attacked_values`)."""
    adaptive_epsilon: StrictBool = False
    """Whether `epsilon` follows `epsilon_schedule`."""

    @model_validator(mode="after")
    def _has_an_end(self) -> "SAPPOConfig":
        if self.course != "constant" and self.max_updates is None:
            raise ValueError(
                f"epsilon_schedule={self.epsilon_schedule!r} needs an end; set max_updates to the updates of the "
                "whole training"
            )
        return self

    @property
    def course(self) -> Course:
        """Course of the radius."""
        return self.epsilon_schedule if self.adaptive_epsilon else "constant"
