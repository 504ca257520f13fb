"""Settings of the agent: its network, its learning rule, and what a population may tune of it."""

import math
from typing import Annotated, Any, Literal

from pydantic import Field, StrictBool, field_validator, model_validator

from popgraft.config.fields import DecayRate, Kwargs, Number, Positive, Section, reference

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
