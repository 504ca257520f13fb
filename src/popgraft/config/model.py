"""Settings of the agent: how it learns, and what a population may tune of it."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, SerializeAsAny, StrictBool, field_validator, model_validator

from popgraft.config.adversary import AdversaryConfig
from popgraft.config.fields import Integer, Number, Positive, Section
from popgraft.config.network import NetworkConfig
from popgraft.config.optimizer import OPTIMIZERS, OptimizerKwargs, OwnKwargs, VGSConfig, check_read, make_rule

HYPERPARAMS: dict[str, tuple[float, float]] = {
    "learning_rate": (0.0, 10.0),
    "clip_range": (1e-6, 1e6),
    "clip_range_vf": (1e-6, 1e6),
    "ent_coef": (0.0, 1e6),
    "ent_coef_final": (0.0, 1e6),
    "ent_coef_min": (0.0, 1e6),
    "vf_coef": (0.0, 1e6),
    "gamma": (0.0, 1.0),
    "gae_lambda": (0.0, 1.0),
    "max_grad_norm": (1e-12, 1e12),
    "target_kl": (1e-12, 1e6),
    "kl_pid_p": (0.0, 1e6),
    "kl_pid_i": (0.0, 1e6),
    "kl_pid_d": (0.0, 1e6),
    "cvar_weight": (0.0, 1.0),
    "cvar_alpha": (1e-6, 1.0),
    "sigma": (0.0, 1e6),
    "weight_decay": (0.0, 1e6),
    "vgs_alpha": (0.0, 1e6),
    "adversarial_epsilon": (0.0, 1e6),
    "adversarial_ratio": (0.0, 1.0),
    "robust_kl_coef": (0.0, 1e6),
}
"""Names that a population may tune, each with the widest range in which it has a meaning."""

BY_RULE = ("learning_rate", "weight_decay")
"""Of these the ones for which the update rule has a value where none is given."""

ALIASES = {"entropy_coef": "ent_coef"}
"""Other names under which a hyperparameter is known."""

NESTED = {
    "sigma": ("optimizer_kwargs", "sigma"),
    "weight_decay": ("optimizer_kwargs", "weight_decay"),
    "vgs_alpha": ("vgs", "alpha"),
    "adversarial_epsilon": ("adversary", "perturbation", "epsilon"),
    "adversarial_ratio": ("adversary", "adversarial_ratio"),
    "robust_kl_coef": ("adversary", "robust_kl_coef"),
}
"""Where under `model` the value of a hyperparameter stands, if not under its own name."""


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
    optimizer: Annotated[str, OPTIMIZERS] = "adam"
    """Update rule; an own one is a popgraft.optim.UpdateRule, made as Class(sizes, **optimizer_kwargs)."""
    learning_rate: Number | None = Field(default_factory=lambda given: _default_rate(given.get("optimizer", "adam")))
    """Step size; where none is given 3e-4, and 0.3 for upgd, whose steps are as long as the gradient; null: what an own
    rule says."""
    clip_range: Number = 0.2
    """Clipping of the probability ratio."""
    clip_range_vf: Number | None = None
    """Largest change of a predicted value, in the critic's units; null: unbounded."""
    clip_range_vf_warmup: Annotated[Integer, Field(ge=0)] = 0
    """Updates of a member before predicted values are bounded."""
    ent_coef: Number = 0.0
    """Weight of the entropy bonus, per nat; the first one where `ent_coef_final` is given."""
    ent_coef_final: Number | None = None
    """Weight that the entropy bonus decays to linearly; null: no decay."""
    ent_coef_min: Number = 0.0
    """Floor of the entropy bonus's weight."""
    ent_coef_decay_steps: Positive = 100
    """Length of the decay, updates."""
    ent_coef_plateau_window: Annotated[Integer, Field(ge=0)] = 0
    """Updates over which entropy must have been level before the decay begins; 0: it begins at once."""
    ent_coef_plateau_tolerance: Annotated[Number, Field(ge=0)] = 1e-3
    """Largest slope of entropy that counts as level, nats per update."""
    ent_coef_plateau_min_updates: Annotated[Integer, Field(ge=0)] = 0
    """Updates of a member before a plateau counts."""
    vf_coef: Number = 0.5
    """Weight of the value loss."""
    gamma: Number = 0.99
    """Discount per step."""
    gae_lambda: Number = 0.95
    """Decay of generalised advantage estimation."""
    quantile_target: Literal["lambda", "mc"] = "lambda"
    """What the critic learns: λ-returns, or Monte Carlo returns, whose spread is the return's own (for risk)."""
    cvar_weight: Number = 0.0
    """Share of the advantage that counts the worst outcomes only; needs a quantile critic."""
    cvar_alpha: Number = 0.25
    """Share of outcomes that are the worst."""
    cvar_start: Annotated[Integer, Field(ge=0)] = 0
    """Updates of a member before `cvar_weight` sets in."""
    cvar_ramp: Annotated[Integer, Field(ge=0)] = 0
    """Updates over which it then rises to its full value."""
    max_grad_norm: Number = 0.5
    """Largest Euclidean norm of a member's gradient."""
    target_kl: Number | None = None
    """An update stops for a member before the step at which its KL divergence exceeds 1.5 times this (nats);
    null: never."""
    kl_penalty: StrictBool = False
    """Whether the loss has a KL penalty, whose weight a controller moves until updates reach target_kl."""
    kl_beta: Annotated[Number, Field(ge=0)] = 0.0
    """Weight of the KL penalty at birth, per nat."""
    kl_beta_max: Annotated[Number, Field(gt=0)] = 10.0
    """Largest weight of the KL penalty."""
    kl_pid_p: Number = 0.1
    """Proportional gain of the controller."""
    kl_pid_i: Number = 0.05
    """Integral gain of the controller, per update."""
    kl_pid_d: Number = 0.0
    """Derivative gain of the controller, in updates."""
    normalize_obs: StrictBool = True
    """Whether float observations are standardised by running statistics."""
    normalize_reward: StrictBool = True
    """Whether rewards are divided by the running spread of the discounted return."""
    normalize_returns: StrictBool = False
    """Whether the critic predicts returns in units of their running mean and spread (PopArt), in place of
    `normalize_reward`."""
    normalize_advantage: StrictBool = True
    """Whether advantages are standardised within a minibatch."""
    optimizer_kwargs: SerializeAsAny[OptimizerKwargs] = Field(
        default_factory=lambda given: OwnKwargs() if _is_own(given.get("optimizer", "adam")) else OptimizerKwargs()
    )
    """Constants of the update rule."""
    vgs: VGSConfig = VGSConfig()
    """The variance gradient scaler."""
    adversary: AdversaryConfig = AdversaryConfig()
    """State-adversarial training."""

    @field_validator(*(name for name in HYPERPARAMS if name not in NESTED), mode="after")
    @classmethod
    def _in_domain(cls, value: float | None, info: Any) -> float | None:
        low, high = HYPERPARAMS[info.field_name]
        if value is not None and not low <= value <= high:
            raise ValueError(f"must lie in [{low:g}, {high:g}]")
        return value

    @field_validator("optimizer_kwargs", mode="wrap")
    @classmethod
    def _of_this_rule(cls, value: Any, handler: Callable[[Any], Any], info: Any) -> Any:
        if not _is_own(info.data.get("optimizer", "adam")):
            return handler(value)
        return OwnKwargs.model_validate(
            value.model_dump(exclude_unset=True) if isinstance(value, OptimizerKwargs) else value
        )

    @model_validator(mode="after")
    def _parts_that_go_together(self) -> "ModelConfig":
        if self.normalize_reward and self.normalize_returns:
            raise ValueError(
                "normalize_reward and normalize_returns scale the same thing twice; set one of them to false"
            )
        given, defaults = self.optimizer_kwargs, OptimizerKwargs()
        changed = [key for key in type(defaults).model_fields if getattr(given, key) != getattr(defaults, key)]
        if changed and not _is_own(self.optimizer):
            check_read(self.optimizer, changed)
        if self.kl_beta > self.kl_beta_max:
            raise ValueError(f"kl_beta={self.kl_beta} exceeds kl_beta_max={self.kl_beta_max}; lower it")
        return self

    def said(self, name: str) -> float | None:
        """What the settings say of a tunable number; None where it is off, or what the update rule says."""
        *sections, field = path_of(name)
        value: float | None = getattr(functools.reduce(getattr, sections, self), field)
        return value

    def hyperparam(self, name: str) -> float | None:
        """Value of a tunable number as it is set; None where it is off.

        Raises:
            ConfigError: the update rule, which is to say it, cannot be imported.
        """
        value = self.said(name)
        if value is None and name in BY_RULE:
            value = float(getattr(OPTIMIZERS.load(self.optimizer), name))
        return value

    def sets(self, name: str) -> bool:
        """Whether a tunable number was given a value by the user."""
        *sections, field = path_of(name)
        return field in functools.reduce(getattr, sections, self).model_fields_set

    def hyperparams(self) -> dict[str, float]:
        """Initial value of every tunable number; a bound, target or final value of null is infinite."""
        values = {name: self.hyperparam(name) for name in HYPERPARAMS}
        return {name: math.inf if value is None else float(value) for name, value in values.items()}

    def update_rule(self, sizes: Sequence[int]) -> Any:
        """The `UpdateRule`, for flat parameters of which the named tensors have these sizes.

        Raises:
            ConfigError: there is no such rule, or not with these constants.
        """
        return make_rule(self.optimizer, self.optimizer_kwargs, sizes)


def _is_own(optimizer: str) -> bool:
    return optimizer not in OPTIMIZERS.table


def _default_rate(optimizer: str) -> float | None:
    """The learning rate of a rule; None for an own one, whose code is not run to read a configuration."""
    return None if _is_own(optimizer) else float(OPTIMIZERS.load(optimizer).learning_rate)


def path_of(name: str) -> tuple[str, ...]:
    """Where below `model` a tunable number stands."""
    return NESTED.get(name, (name,))
