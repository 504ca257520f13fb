"""Settings of the population and its evolution."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from popgraft.config.fields import Integer, Number, Positive, Section
from popgraft.config.model import ALIASES, HYPERPARAMS
from popgraft.hyperparams import HyperparamConfig

ExploitMethod = Literal["truncation", "binary_tournament", "ttest", "backtracking", "none"]


GraftFault = Literal[
    "forget_vgs", "clear_vgs", "forget_normalizer", "forget_return_scale", "keep_optimizer", "overwrite_learning_rate"
]
"""What can be done wrong in a graft: a recipient keeps its own statistics or optimizer (`forget_…`, `keep_…`), loses
the scaler's (`clear_vgs`), or goes on with the donor's learning rate instead of the explored one."""


class EvolutionConfig(Section):
    """How a population evolves, whatever is trained."""

    population_size: Positive = 8
    """Number of members."""
    perturbation_interval: Positive = 5
    """Steps between two decisions."""
    hyperparams: list[HyperparamConfig] = []
    """Numbers that vary over the population, each with its space."""
    exploit_method: ExploitMethod = "truncation"
    """Who copies whom: the worst one of the best, everybody a better or significantly better opponent, or the worst the
    best state there ever was; `none` is random search."""
    explore_method: Literal["perturb", "resample", "both", "none"] = "both"
    """How a recipient's hyperparameters differ from its donor's; `none` freezes them."""
    explore_always: StrictBool = False
    """Whether survivors explore too, and not recipients alone."""
    truncation_ratio: Annotated[Number, Field(gt=0, le=0.5)] = 0.2
    """Share of the population that is replaced, and that is copied from."""
    metric_mode: Literal["max", "min"] = "max"
    """Whether high or low scores are good."""
    ready_percentage: Annotated[Number, Field(gt=0, le=1)] = 0.8
    """Share of members that must have a finite score before anyone copies."""
    min_ready_members: Annotated[Integer, Field(ge=2)] = 2
    """Members with a finite score that suffice once `ready_check_max_wait` decisions in a row have failed."""
    ready_check_max_wait: Positive = 10
    """Failed readiness checks in a row after which `min_ready_members` suffice."""

    @field_validator("hyperparams", mode="after")
    @classmethod
    def _distinct(cls, spaces: list[HyperparamConfig]) -> list[HyperparamConfig]:
        return _listed_once(spaces)

    @model_validator(mode="after")
    def _someone_to_copy(self) -> "EvolutionConfig":
        if self.population_size == 1 and self.exploit_method != "none":
            raise ValueError(
                f"a population of 1 has nobody to copy from, but exploit_method is {self.exploit_method!r}; "
                "raise pbt.population_size or set pbt.exploit_method: none"
            )
        if self.min_ready_members > self.population_size and self.exploit_method != "none":
            raise ValueError(
                f"min_ready_members={self.min_ready_members} exceeds population_size={self.population_size}, "
                "so nobody would ever copy after waiting; lower it"
            )
        return self


class PopulationConfig(EvolutionConfig):
    """The population and its evolution."""

    perturbation_interval: Positive = 5
    """Updates between two decisions, which is one generation."""
    hyperparams: list[HyperparamConfig] = []
    """Numbers under `model` that vary over the population, each with its space."""
    fitness: Literal["evaluation", "training"] = "evaluation"
    """Score: separate evaluation episodes, or the episodes that ended in training during the generation."""
    optimizer_exploit_strategy: Literal["copy", "reset", "partial", "adaptive"] = "copy"
    """Optimizer state of a recipient: its donor's, none, part of its donor's, or its donor's only where the explored
    values are near the donor's."""
    optimizer_partial: Literal["momentum", "scale"] = "momentum"
    """What `partial` keeps: the average gradient, or the second moment and the utility."""
    optimizer_adaptive_distance: Annotated[Number, Field(ge=0, le=1)] = 0.1
    """Largest change of an explored value at which `adaptive` copies, as a share of its range."""
    optimizer_rescale: StrictBool = False
    """Whether inherited momentum is multiplied by old/new learning rate, so that the velocity stays the donor's."""
    reset_envs_on_exploit: StrictBool = True
    """Whether a recipient's environments start new episodes."""
    lstm_reset_mode: Literal["zero", "burn_in", "keep"] = "zero"
    """Recurrent state of a recipient whose episodes go on: zero, recomputed from the latest rollout by the new weights,
    or (a fault, for ablations) its predecessor's."""
    graft_faults: list[GraftFault] = []
    """Faults to commit in every graft, for ablations only."""

    @model_validator(mode="after")
    def _a_state_to_recompute(self) -> "PopulationConfig":
        if self.lstm_reset_mode != "zero" and self.reset_envs_on_exploit:
            raise ValueError(
                f"lstm_reset_mode={self.lstm_reset_mode!r} is for episodes that go on, but new ones begin from zero; "
                "set reset_envs_on_exploit: false, or lstm_reset_mode: zero"
            )
        return self

    @property
    def faults(self) -> list[str]:
        """Everything that is done wrong on purpose."""
        return [*self.graft_faults, *(["keep_recurrent_state"] if self.lstm_reset_mode == "keep" else [])]

    @field_validator("hyperparams", mode="after")
    @classmethod
    def _known(cls, spaces: list[HyperparamConfig]) -> list[HyperparamConfig]:
        spaces = [
            dataclasses.replace(
                space,
                name=ALIASES.get(space.name, space.name),
                values=None if space.values is None else tuple(space.values),
            )
            for space in spaces
        ]
        for space in spaces:
            if space.name not in HYPERPARAMS:
                raise ValueError(
                    f"unknown hyperparameter {space.name!r}; a population may tune {', '.join(HYPERPARAMS)}"
                )
            low, high = HYPERPARAMS[space.name]
            for value in space.values if space.values is not None else space.bounds:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                    raise ValueError(f"{space.name}: {value!r} must be a number in [{low:g}, {high:g}]")
        return _listed_once(spaces)


def _listed_once(spaces: list[HyperparamConfig]) -> list[HyperparamConfig]:
    names = [space.name for space in spaces]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"hyperparameter {name!r} is listed twice; keep one")
    return spaces
