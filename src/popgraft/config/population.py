"""Settings of the population and its evolution."""

import dataclasses
import math
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from popgraft.config.fields import Integer, Kwargs, Number, Positive, Reference, Section
from popgraft.config.kinds import Kinds
from popgraft.config.model import ALIASES, HYPERPARAMS, ModelConfig
from popgraft.hyperparams import HyperparamConfig

Mode = Literal["max", "min"]
OptimizerStrategy = Literal["reset", "copy", "partial", "adaptive", "relative"]

STRATEGY = Kinds(
    "pbt.strategy",
    ("popgraft.pbt.strategy:Strategy",),
    {
        "evolution": "popgraft.pbt.evolution:Evolution",
        "mf_pbt": "popgraft.pbt.mf_pbt:MFPBT",
        "pb2": "popgraft.pbt.pb2:PB2",
        "fire": "popgraft.pbt.fire:Fire",
        "ipbt": "popgraft.pbt.ipbt:IPBT",
    },
)
ARGUED = ("mf_pbt", "fire", "ipbt")
"""Strategies of the table that have arguments."""
EXPLOIT = Kinds(
    "pbt.exploit_method",
    ("popgraft.pbt.exploit:Exploit",),
    {
        "truncation": "popgraft.pbt.exploit:Truncation",
        "binary_tournament": "popgraft.pbt.tournament:BinaryTournament",
        "ttest": "popgraft.pbt.tournament:TTest",
        "backtracking": "popgraft.pbt.exploit:Backtracking",
        "none": None,
    },
)
EXPLORE = Kinds(
    "pbt.explore_method",
    ("popgraft.pbt.explore:Explore",),
    {
        "perturb": "popgraft.pbt.explore:Perturb",
        "resample": "popgraft.pbt.explore:Resample",
        "both": "popgraft.pbt.explore:Both",
        "none": None,
    },
)

GraftFault = Literal[
    "forget_vgs",
    "clear_vgs",
    "forget_normalizer",
    "forget_return_scale",
    "forget_kl_penalty",
    "keep_optimizer",
    "overwrite_learning_rate",
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
    strategy: Annotated[str, STRATEGY] = "evolution"
    """Who decides: `evolution` exploits and explores as the settings below say; `mf_pbt` has parts of the population
    evolve at intervals of their own; `pb2` explores with what a model of gains proposes; `fire` has a part evolve by
    how fast members improve; `ipbt` begins anew, with longer intervals, where it stagnates. An own one is a
    popgraft.pbt.Strategy, made as Class(pbt, seed, **strategy_kwargs)."""
    strategy_kwargs: Kwargs = {}
    """Arguments of the strategy, where it has any."""
    exploit_method: Annotated[str, EXPLOIT] = "truncation"
    """Who copies whom: the worst one of the best, everybody a better or significantly better opponent, or the worst the
    best state there ever was; `none` is random search. An own one is a popgraft.pbt.Exploit, made as
    Class(pbt, **exploit_method_kwargs)."""
    exploit_method_kwargs: Kwargs = {}
    """Keyword arguments of an own exploit method."""
    explore_method: Annotated[str, EXPLORE] = "both"
    """How a recipient's hyperparameters differ from its donor's; `none` freezes them. An own one is a
    popgraft.pbt.Explore, made as Class(pbt, **explore_method_kwargs)."""
    explore_method_kwargs: Kwargs = {}
    """Keyword arguments of an own explore method."""
    explore_always: StrictBool = False
    """Whether survivors explore too, and not recipients alone."""
    truncation_ratio: Annotated[Number, Field(gt=0, le=0.5)] = 0.2
    """Share of the population that is replaced, and that is copied from."""
    metric_mode: Mode = "max"
    """Whether high or low scores are good."""
    ready_percentage: Annotated[Number, Field(gt=0, le=1)] = 0.8
    """Share of members that must have a finite score before anyone copies."""
    min_ready_members: Annotated[Integer, Field(ge=2)] = 2
    """Members with a finite score that suffice once `ready_check_max_wait` decisions in a row have failed."""
    ready_check_max_wait: Positive = 10
    """Failed readiness checks in a row after which `min_ready_members` suffice."""
    optimizer_exploit_strategy: OptimizerStrategy = "copy"
    """Optimizer state of a recipient: its donor's, none, part of its donor's, its donor's only where the explored
    values are near the donor's, or (`relative`) its donor's moments with Adam's count of steps at 0."""
    optimizer_partial: Literal["momentum", "scale"] = "momentum"
    """What `partial` keeps: the average gradient, or the second moment and the utility."""
    optimizer_adaptive_distance: Annotated[Number, Field(ge=0, le=1)] = 0.1
    """Largest change of an explored value at which `adaptive` copies, as a share of its range."""
    optimizer_rescale: StrictBool = False
    """Whether inherited momentum is multiplied by old/new learning rate, so that the velocity stays the donor's."""
    graft_shrink: Annotated[Number, Field(ge=0, le=1)] = 1.0
    """Factor λ of the weights that a recipient inherits."""
    graft_perturb: Annotated[Number, Field(ge=0, le=1)] = 0.0
    """Factor σ of freshly drawn initial weights that are added to them: shrink and perturb. With σ = 1 − λ recipients
    are pulled towards initial weights."""

    @property
    def copies(self) -> bool:
        """Whether members become copies of others while they are healthy."""
        return EXPLOIT.table.get(self.exploit_method, "") is not None

    @property
    def renews(self) -> bool:
        """Whether the weights of every recipient are renewed."""
        return (self.graft_shrink, self.graft_perturb) != (1, 0)

    @property
    def explores(self) -> bool:
        """Whether a recipient's hyperparameters move."""
        return EXPLORE.table.get(self.explore_method, "") is not None

    @property
    def spaces(self) -> list[HyperparamConfig]:
        """Spaces in which hyperparameters vary."""
        return self.hyperparams

    @field_validator("hyperparams", mode="after")
    @classmethod
    def _distinct(cls, spaces: list[HyperparamConfig]) -> list[HyperparamConfig]:
        return _listed_once(spaces)

    @model_validator(mode="after")
    def _somebody_reads_the_kwargs(self) -> "EvolutionConfig":
        for name, kinds in (("strategy", STRATEGY), ("exploit_method", EXPLOIT), ("explore_method", EXPLORE)):
            if getattr(self, f"{name}_kwargs") and getattr(self, name) in kinds.table.keys() - ARGUED:
                raise ValueError(
                    f"{name}_kwargs are for an own {name}, and {name} is {getattr(self, name)!r}; "
                    f"remove them, or set {name} to module:Class"
                )
        return self

    @model_validator(mode="after")
    def _someone_to_copy(self) -> "EvolutionConfig":
        if self.population_size == 1 and self.copies:
            raise ValueError(
                f"a population of 1 has nobody to copy from, but exploit_method is {self.exploit_method!r}; "
                "raise pbt.population_size or set pbt.exploit_method: none"
            )
        if self.min_ready_members > self.population_size and self.copies:
            raise ValueError(
                f"min_ready_members={self.min_ready_members} exceeds population_size={self.population_size}, "
                "so nobody would ever copy after waiting; lower it"
            )
        return self


class ScheduledConfig(Section):
    """Values that hold from some step on."""

    steps: Annotated[Integer, Field(ge=0)]
    """Environment steps of one member after which they set in, rounded up to a full generation."""
    hyperparams: dict[str, Number]
    """Value of every number that the schedule moves."""
    graft: StrictBool = False
    """Whether everybody is grafted there: each member moves one place on and takes a fresh seat, with its optimizer
    state as `optimizer_exploit_strategy` says."""


class StageConfig(Section):
    """A population that has become smaller."""

    share: Annotated[Number, Field(gt=0, lt=1)]
    """Share of `total_timesteps` after which it is, rounded up to a full generation."""
    size: Positive
    """Members that train on, the best; all others end."""


class PopulationConfig(EvolutionConfig):
    """The population and its evolution."""

    perturbation_interval: Positive = 5
    """Updates between two decisions, which is one generation."""
    hyperparams: list[HyperparamConfig] = Field(default_factory=list)
    """Numbers under `model` that vary over the population, each with its space. Where the setting is left out: learning
    rate, clip range, entropy coefficient, γ and λ, but for those that `model` sets; with `[]`, and one member, none."""
    fitness: Literal["evaluation", "training"] = "evaluation"
    """Score: separate evaluation episodes, or the episodes that ended in training during the generation."""
    reset_envs_on_exploit: StrictBool = True
    """Whether a recipient's environments start new episodes."""
    lstm_reset_mode: Literal["zero", "burn_in", "keep"] = "zero"
    """Recurrent state of a recipient whose episodes go on: zero, recomputed from the latest rollout by the new weights,
    or (a fault, for ablations) its predecessor's."""
    graft_faults: list[GraftFault | Reference] = []
    """Faults to commit in every graft, for ablations only: named ones, or `module:function` of your own."""
    schedule: list[ScheduledConfig] = []
    """Hyperparameters over time that everybody follows, in place of exploit and explore: entries with `steps`,
    `hyperparams` and `graft`, as `popgraft replay RUN --export` writes them."""
    population_schedule: list[StageConfig] = []
    """Smaller populations over time, for which the worst end and leave their steps to the others: entries with `share`
    and `size`, or sizes alone, as `[16, 8, 4, 1]`, the first of which is `population_size`, for stages of as many steps
    each."""

    @model_validator(mode="before")
    @classmethod
    def _stages_of_equal_length(cls, given: Any) -> Any:
        """Sizes alone, as stages."""
        sizes = given.get("population_schedule") if isinstance(given, dict) else None
        if not (isinstance(sizes, list) and sizes and all(type(size) is int for size in sizes)):
            return given
        pop = given.get("population_size", cls.model_fields["population_size"].default)
        if sizes[0] != pop:
            raise ValueError(
                f"population_schedule={sizes} begins with {sizes[0]} members, but population_size is {pop}; "
                "set them to the same number"
            )
        stages = [{"share": stage / len(sizes), "size": size} for stage, size in enumerate(sizes) if stage]
        return {**given, "population_schedule": stages}

    def stages(self, total: int) -> list[tuple[int, int]]:
        """Step from which on the population has a size, and that size: of a run of `total` environment steps."""
        later = [(math.ceil(stage.share * total - 1e-6), stage.size) for stage in self.population_schedule]
        return [(0, self.population_size), *later]  # a share such as 1/3 is not exact in binary

    @model_validator(mode="after")
    def _fewer_and_fewer(self) -> "PopulationConfig":
        if not self.population_schedule:
            return self
        sizes = [self.population_size, *(stage.size for stage in self.population_schedule)]
        shares = [stage.share for stage in self.population_schedule]
        if sizes != sorted(set(sizes), reverse=True):
            raise ValueError(f"population_schedule: sizes must fall from population_size on, but they are {sizes}")
        if shares != sorted(set(shares)):
            raise ValueError(f"population_schedule: shares must rise, but they are {shares}")
        if self.schedule:
            raise ValueError(
                "population_schedule ends the worst members, but with schedule nobody is selected; remove one of them"
            )
        if self.explore_always and sizes[-1] == 1:
            raise ValueError(
                "explore_always would move the hyperparameters of the last member of population_schedule, whom nobody "
                "replaces where that was for the worse; set explore_always: false, or a last size of 2"
            )
        return self

    @model_validator(mode="after")
    def _a_state_to_recompute(self) -> "PopulationConfig":
        if self.lstm_reset_mode != "zero" and self.reset_envs_on_exploit:
            raise ValueError(
                f"lstm_reset_mode={self.lstm_reset_mode!r} is for episodes that go on, but new ones begin from zero; "
                "set reset_envs_on_exploit: false, or lstm_reset_mode: zero"
            )
        return self

    @property
    def spaces(self) -> list[HyperparamConfig]:
        """Spaces in which hyperparameters vary, of real numbers all of them."""
        return [space.real for space in self.hyperparams]

    @property
    def faults(self) -> list[str]:
        """Everything that is done wrong on purpose."""
        return [*self.graft_faults, *(["keep_recurrent_state"] if self.lstm_reset_mode == "keep" else [])]

    @property
    def varied(self) -> dict[str, str]:
        """Numbers that the population tunes or that its schedule moves, each with the setting that says so."""
        scheduled = dict.fromkeys(self.schedule[0].hyperparams, "pbt.schedule") if self.schedule else {}
        return scheduled | {space.name: "pbt.hyperparams" for space in self.hyperparams}

    @model_validator(mode="after")
    def _a_schedule_that_can_be_followed(self) -> "PopulationConfig":
        if not self.schedule:
            return self
        names, steps = list(self.schedule[0].hyperparams), [entry.steps for entry in self.schedule]
        if self.strategy != type(self).model_fields["strategy"].default:
            raise ValueError(
                f"schedule takes the place of a strategy, but strategy is {self.strategy!r}; remove one of them"
            )
        if self.copies or self.explore_always:
            raise ValueError(
                f"schedule takes the place of exploit and explore, but exploit_method is {self.exploit_method!r} and "
                f"explore_always {self.explore_always}; set exploit_method: none and explore_always: false"
            )
        if steps[0] != 0 or steps != sorted(set(steps)):
            raise ValueError(f"schedule: its steps must begin at 0 and rise, but they are {steps}")
        for entry in self.schedule:
            if set(entry.hyperparams) != set(names):
                raise ValueError(
                    f"schedule: every entry must set {', '.join(names) or 'nothing'}, as the first one does, but the "
                    f"one at step {entry.steps} sets {', '.join(entry.hyperparams) or 'nothing'}"
                )
            for name, value in entry.hyperparams.items():
                check_value(name, value, "schedule")
        if missing := [space.name for space in self.hyperparams if space.name not in names]:
            raise ValueError(
                f"schedule does not set {', '.join(missing)}, which hyperparams lists; add it to every entry"
            )
        if self.schedule[0].graft:
            raise ValueError("schedule: there is nobody to graft at step 0; set graft: false in the first entry")
        if self.population_size == 1 and any(entry.graft for entry in self.schedule):
            raise ValueError(
                "schedule has grafts, which move agents from place to place, but population_size is 1; raise it to 2, "
                "or set graft: false in every entry"
            )
        return self

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
            for value in space.values if space.values is not None else space.bounds:
                check_value(space.name, value)
        return _listed_once(spaces)


def check_value(name: str, value: object, place: str = "") -> None:
    """Refuses a hyperparameter that there is not, and a value without a meaning."""
    where = f"{place}: " if place else ""
    shared = name.removeprefix("model.")
    if name.startswith("env.") or (shared in ModelConfig.model_fields and shared not in HYPERPARAMS):
        raise ValueError(
            f"{where}{name} is the same for all members, who are one stacked program: their rollouts have one shape, "
            "and they take their steps of the optimizer together. Set it for the whole run, and compare runs of "
            "different values with popgraft compare"
        )
    if name not in HYPERPARAMS:
        raise ValueError(f"{where}unknown hyperparameter {name!r}; a population may tune {', '.join(HYPERPARAMS)}")
    low, high = HYPERPARAMS[name]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{where}{name}: {value!r} must be a number in [{low:g}, {high:g}]")


def _listed_once(spaces: list[HyperparamConfig]) -> list[HyperparamConfig]:
    names = [space.name for space in spaces]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"hyperparameter {name!r} is listed twice; keep one")
    return spaces
