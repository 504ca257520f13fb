"""Every setting of a run: one field each, with one sentence under it."""

import dataclasses
import math
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, field_validator, model_validator

from popgraft.config.fields import DecayRate, Integer, Kwargs, Number, Positive, Reference, reference
from popgraft.hyperparams import HyperparamConfig

HYPERPARAMS: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 10.0),
    "clip_range": (1e-6, 1e6),
    "ent_coef": (0.0, 1e6),
    "vf_coef": (0.0, 1e6),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "max_grad_norm": (1e-12, 1e12),
    "target_kl": (1e-12, 1e6),
}
"""Names that a population may tune, each with the widest range in which it has a meaning."""

ALIASES = {"entropy_coef": "ent_coef"}
"""Other names under which a hyperparameter is known."""


BUILT_IN_ENCODERS = ("auto", "mlp", "cnn")


class Section(BaseModel):
    """A frozen group of settings in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, ser_json_inf_nan="constants")


class WrapperConfig(Section):
    """One observation wrapper."""

    name: str
    """A built-in wrapper (see docs/usage.md), or `module:Class` of a Gymnasium wrapper."""
    kwargs: Kwargs = {}
    """Keyword arguments of the wrapper."""


class EnvConfig(Section):
    """The environments of every member."""

    id: str | None = None
    """A registered Gymnasium id, or `module:Id`, which imports the module first."""
    factory: Reference | None = None
    """`module:function` that is called as f(num_envs=..., **kwargs) and returns a Gymnasium VectorEnv or a
    Stable-Baselines3 VecEnv."""
    kwargs: Kwargs = {}
    """Keyword arguments of the environment."""
    num_envs: Positive = 8
    """Environments per member."""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point", "envpool"] = "auto"
    """How a member's environments are stepped together; `auto` takes the vector entry point where there is one,
    else sync."""
    autoreset: Literal["same_step", "next_step"] = "same_step"
    """When a finished sync or async environment starts its next episode; a vector entry point has a mode of its own."""
    wrappers: list[WrapperConfig] = []
    """Observation wrappers, applied in this order."""

    @model_validator(mode="after")
    def _one_source(self) -> "EnvConfig":
        if bool(self.id) == bool(self.factory):
            raise ValueError(f"give either env.id or env.factory, not id={self.id!r} and factory={self.factory!r}")
        return self


class NetworkConfig(Section):
    """The policy and value networks of every member."""

    encoder: str = "auto"
    """`mlp`, `cnn`, or `module:Class` of an nn.Module called as Class(observation_space, **encoder_kwargs);
    `auto` takes cnn for images."""
    encoder_kwargs: Kwargs = {}
    """Keyword arguments of an own encoder."""
    encoder_layers: list[Positive] = [64]
    """Widths of the encoder's dense layers, before the recurrent ones."""
    activation: Literal["tanh", "relu", "elu", "silu"] = "tanh"
    """Nonlinearity of dense layers."""
    layer_norm: StrictBool = False
    """Whether dense layers normalise before their nonlinearity."""
    recurrent: Literal["lstm", "gru", "none"] = "lstm"
    """Kind of memory; `none` gives a feed-forward agent."""
    hidden_size: Positive = 64
    """Width of a recurrent layer."""
    recurrent_layers: Positive = 1
    """Number of recurrent layers."""
    critic_recurrent: Literal["separate", "shared", "none"] = "separate"
    """Whether the critic has its own memory, reads the actor's, or has none."""
    head_layers: list[Positive] = []
    """Widths of dense layers between memory and output, in actor and critic alike."""
    n_quantiles: Positive = 21
    """Quantiles of the return that the critic predicts."""

    @field_validator("encoder", mode="after")
    @classmethod
    def _known_encoder(cls, encoder: str) -> str:
        if encoder not in BUILT_IN_ENCODERS and ":" not in encoder:
            raise ValueError(f"must be one of {', '.join(BUILT_IN_ENCODERS)}, or module:Class")
        return encoder if encoder in BUILT_IN_ENCODERS else reference(encoder)

    @model_validator(mode="after")
    def _somebody_reads_the_kwargs(self) -> "NetworkConfig":
        if self.encoder_kwargs and self.encoder in BUILT_IN_ENCODERS:
            raise ValueError(
                f"encoder_kwargs are for an own encoder, and encoder is {self.encoder!r}; "
                "remove them or set encoder: module:Class"
            )
        return self


class OptimizerKwargs(Section):
    """Constants of the optimizer; what a population may tune stands under `model`."""

    betas: tuple[DecayRate, DecayRate] = (0.9, 0.999)
    """Decay rates of the first and second moment."""
    eps: Annotated[Number, Field(gt=0)] = 1e-5
    """Added to the root of the second moment."""
    weight_decay: Annotated[Number, Field(ge=0)] = 0.0
    """Decoupled for adamw, added to the gradient for adam."""


class ModelConfig(Section):
    """The agent: its network, and how it learns. A number that `pbt.hyperparams` lists is drawn instead."""

    network: NetworkConfig = NetworkConfig()
    """The policy and value networks."""
    n_steps: Positive = 128
    """Environment steps per environment and update."""
    n_epochs: Positive = 4
    """Passes over a rollout."""
    n_minibatches: Positive = 4
    """Optimizer steps per pass."""
    learning_rate: Number = 3e-4
    """Step size."""
    clip_range: Number = 0.2
    """Clipping of the probability ratio."""
    ent_coef: Number = 0.0
    """Weight of the entropy bonus, per nat."""
    vf_coef: Number = 0.5
    """Weight of the value loss."""
    gamma: Number = 0.99
    """Discount per step."""
    gae_lambda: Number = 0.95
    """Decay of generalised advantage estimation."""
    max_grad_norm: Number = 0.5
    """Largest Euclidean norm of a member's gradient."""
    target_kl: Number | None = None
    """An update stops for a member before the step at which its KL divergence exceeds 1.5 times this (nats);
    null: never."""
    normalize_obs: StrictBool = True
    """Whether float observations are standardised by running statistics."""
    normalize_reward: StrictBool = True
    """Whether rewards are divided by the running spread of the discounted return."""
    normalize_advantage: StrictBool = True
    """Whether advantages are standardised within a minibatch."""
    optimizer: Literal["adam", "adamw"] = "adam"
    """Update rule."""
    optimizer_kwargs: OptimizerKwargs = OptimizerKwargs()
    """Constants of the update rule."""

    @field_validator(*HYPERPARAMS, mode="after")
    @classmethod
    def _in_domain(cls, value: float | None, info: Any) -> float | None:
        low, high = HYPERPARAMS[info.field_name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"must lie in [{low:g}, {high:g}]")
        return value

    def hyperparams(self) -> dict[str, float]:
        """Initial value of every tunable number; a target KL of null is infinite."""
        values = {name: getattr(self, name) for name in HYPERPARAMS}
        return {name: math.inf if value is None else float(value) for name, value in values.items()}


class EngineConfig(Section):
    """How the arithmetic is carried out; only `sequence_length` changes what is computed beyond rounding."""

    sequence_length: Positive | None = None
    """Steps of backpropagation through time; null: the whole rollout."""
    device: str = "auto"
    """A torch device; `auto` takes CUDA where there is one."""
    threads: Positive = 1
    """Threads inside operators; more than 1 pays only on cores that nothing else uses, and stalls on others."""


class PBTConfig(Section):
    """The population and its evolution."""

    population_size: Positive = 8
    """Number of members."""
    perturbation_interval: Positive = 5
    """Updates between two decisions, which is one generation."""
    hyperparams: list[HyperparamConfig] = []
    """Numbers under `model` that vary over the population, each with its space."""
    exploit_method: Literal["truncation", "none"] = "truncation"
    """Who copies whom; `none` is random search."""
    explore_method: Literal["perturb", "resample", "both", "none"] = "both"
    """How a recipient's hyperparameters differ from its donor's; `none` freezes them."""
    truncation_ratio: Annotated[Number, Field(gt=0, le=0.5)] = 0.2
    """Share of the population that is replaced, and that is copied from."""
    metric_mode: Literal["max", "min"] = "max"
    """Whether high or low scores are good."""
    fitness: Literal["evaluation", "training"] = "evaluation"
    """Score: separate evaluation episodes, or the episodes that ended in training during the generation."""
    ready_percentage: Annotated[Number, Field(gt=0, le=1)] = 0.8
    """Share of members that must have a finite score before anyone copies."""
    min_ready_members: Annotated[Integer, Field(ge=2)] = 2
    """Members with a finite score that suffice once `ready_check_max_wait` decisions in a row have failed."""
    ready_check_max_wait: Positive = 10
    """Failed readiness checks in a row after which `min_ready_members` suffice."""

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
        names = [space.name for space in spaces]
        for space in spaces:
            if space.name not in HYPERPARAMS:
                raise ValueError(
                    f"unknown hyperparameter {space.name!r}; a population may tune {', '.join(HYPERPARAMS)}"
                )
            if names.count(space.name) > 1:
                raise ValueError(f"hyperparameter {space.name!r} is listed twice; keep one")
            low, high = HYPERPARAMS[space.name]
            for value in space.values if space.values is not None else space.bounds:
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
                    raise ValueError(f"{space.name}: {value!r} must be a number in [{low:g}, {high:g}]")
        return spaces

    @model_validator(mode="after")
    def _someone_to_copy(self) -> "PBTConfig":
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


class EvaluationConfig(Section):
    """Separate evaluation episodes, on seeds that training never sees."""

    episodes: Positive = 10
    """Episodes per member and evaluation."""
    deterministic: StrictBool = True
    """Whether the most likely action is taken instead of a sampled one."""
    max_steps: Positive = 10_000
    """Steps after which an unfinished evaluation episode counts as it stands."""
    final_episodes: Positive = 20
    """Episodes of the best member's last evaluation, on fresh seeds."""


class ExecuteConfig(Section):
    """Where the population runs."""

    kind: Literal["local"] = "local"
    """`local`: on this machine."""
    shards: Positive = 1
    """Stacked sub-populations that the members are divided into."""


class Config(Section):
    """A whole run."""

    env: EnvConfig
    """The environments."""
    model: ModelConfig = ModelConfig()
    """The agent."""
    pbt: PBTConfig = PBTConfig()
    """The population."""
    evaluation: EvaluationConfig = EvaluationConfig()
    """Evaluation episodes."""
    engine: EngineConfig = EngineConfig()
    """The arithmetic."""
    execute: ExecuteConfig = ExecuteConfig()
    """The executor."""
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = 0
    """The root of all randomness."""
    total_timesteps: Positive = 1_000_000
    """Environment steps of the whole population, rounded up to full generations."""
    stop_at_score: Number | None = None
    """Training ends early once the best member's score reaches this; null: never."""
    run_dir: Path = Path("runs/popgraft")
    """Folder of the run; a folder that holds a run is refused."""

    @property
    def steps_per_generation(self) -> int:
        """Environment steps of the whole population between two decisions."""
        return self.pbt.population_size * self.env.num_envs * self.model.n_steps * self.pbt.perturbation_interval

    @property
    def generations(self) -> int:
        """Number of decisions in the run."""
        return math.ceil(self.total_timesteps / self.steps_per_generation)

    @property
    def sequence_length(self) -> int:
        """Steps of backpropagation through time."""
        return self.engine.sequence_length or self.model.n_steps

    @property
    def sequences(self) -> int:
        """Training sequences per member and rollout."""
        return self.env.num_envs * (self.model.n_steps // self.sequence_length)

    @model_validator(mode="after")
    def _divides(self) -> "Config":
        length, steps = self.sequence_length, self.model.n_steps
        if steps % length:
            raise ValueError(
                f"engine.sequence_length={length} must divide model.n_steps={steps}; "
                f"nearest: {_nearest_divisors(steps, length)}"
            )
        if self.sequences % self.model.n_minibatches:
            raise ValueError(
                f"model.n_minibatches={self.model.n_minibatches} must divide the {self.sequences} sequences of a "
                f"rollout (env.num_envs={self.env.num_envs} x n_steps/sequence_length={steps // length}); "
                f"nearest: {_nearest_divisors(self.sequences, self.model.n_minibatches)}"
            )
        if self.execute.shards > self.pbt.population_size:
            raise ValueError(
                f"execute.shards={self.execute.shards} exceeds pbt.population_size={self.pbt.population_size}; "
                "a shard holds at least one member"
            )
        for space in self.pbt.hyperparams:
            value = getattr(self.model, space.name)
            if space.name in self.model.model_fields_set and not space.contains(value):
                allowed = f"values {list(space.values)}" if space.values is not None else f"bounds {list(space.bounds)}"
                raise ValueError(f"model.{space.name}={value} is outside the {allowed} that pbt.hyperparams gives it")
        return self


def _nearest_divisors(n: int, value: int) -> str:
    """The divisors of `n` on either side of `value`."""
    small = [d for d in range(1, math.isqrt(n) + 1) if n % d == 0]
    divisors = sorted({*small, *(n // d for d in small)})
    below = [d for d in divisors if d < value][-1:]
    above = [d for d in divisors if d > value][:1]
    return " or ".join(str(d) for d in below + above)
