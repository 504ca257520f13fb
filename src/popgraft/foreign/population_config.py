"""Settings of a population of models that are built and trained elsewhere, as one file.

pbt            the population and its evolution
adversarial    state-adversarial training
model          what all models have in common
env            the environment of the shipped trainer
"""

import difflib
import inspect
import pkgutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, get_args

import torch
from pydantic import Field, StrictBool, field_validator, model_validator

from popgraft.config.fields import Kwargs, Number, Positive, Section
from popgraft.config.load import load_as
from popgraft.config.optimizer import OPTIMIZERS, OptimizerKwargs, check_read, read_by
from popgraft.foreign.config import PBTConfig, SAPPOConfig
from popgraft.foreign.live import ADVERSARIAL, NAMES
from popgraft.foreign.transplant import GraftFault


def torch_class(optimizer: str) -> type[torch.optim.Optimizer]:
    """The optimizer of PyTorch's that does the same to one model as a built-in update rule."""
    cls: type[torch.optim.Optimizer] = pkgutil.resolve_name(OPTIMIZERS.load(optimizer).torch_class)
    return cls


class BaseModelConfig(Section):
    """What all models have in common, by the names of Stable-Baselines3; what the population tunes is drawn instead."""

    policy: str = "MlpPolicy"
    """Stable-Baselines3's name of the policy."""
    n_steps: Positive = 128
    """Environment steps per environment and update."""
    batch_size: Positive = 128
    """Environment steps per optimizer step."""
    n_epochs: Positive = 4
    """Passes over a rollout."""
    learning_rate: Annotated[Number, Field(ge=0)] = 3e-4
    """Step size."""
    clip_range: Annotated[Number, Field(gt=0)] = 0.2
    """Clipping of the probability ratio."""
    ent_coef: Annotated[Number, Field(ge=0)] = 0.0
    """Weight of the entropy bonus."""
    vf_coef: Annotated[Number, Field(ge=0)] = 0.5
    """Weight of the value loss."""
    gamma: Annotated[Number, Field(ge=0, le=1)] = 0.99
    """Discount per step."""
    gae_lambda: Annotated[Number, Field(ge=0, le=1)] = 0.95
    """Decay of generalised advantage estimation."""
    max_grad_norm: Annotated[Number, Field(gt=0)] = 0.5
    """Largest Euclidean norm of the gradient."""
    target_kl: Annotated[Number, Field(gt=0)] | None = None
    """Divergence beyond which an update stops; null: never."""
    optimizer: Annotated[str, OPTIMIZERS] = "adam"
    """Update rule."""
    optimizer_kwargs: OptimizerKwargs = OptimizerKwargs()
    """Constants of the update rule."""
    policy_kwargs: Kwargs = Field(default_factory=dict)
    """Further keyword arguments of the policy, such as `net_arch`."""

    @model_validator(mode="after")
    def _read(self) -> "BaseModelConfig":
        if self.optimizer not in OPTIMIZERS.table:
            raise ValueError(
                f"optimizer={self.optimizer!r} is a rule of the engine; models of other libraries take PyTorch's "
                f"optimizers: one of {', '.join(OPTIMIZERS.table)}, or policy_kwargs of your own where you make them"
            )
        if self.optimizer_kwargs.model_fields_set:
            check_read(self.optimizer, self.optimizer_kwargs.model_fields_set)
        taken = {"optimizer_class", "optimizer_kwargs"} & set(self.policy_kwargs)
        if taken:
            raise ValueError(f"policy_kwargs.{min(taken)} is set by model.optimizer and model.optimizer_kwargs")
        return self

    @property
    def keywords(self) -> dict[str, Any]:
        """Keyword arguments of Stable-Baselines3's PPO, or of sb3-contrib's RecurrentPPO."""
        own = {name: getattr(self, name) for name in type(self).model_fields}
        kind, constants, policy = (own.pop(name) for name in ("optimizer", "optimizer_kwargs", "policy_kwargs"))
        given = {name: value for name, value in constants.model_dump().items() if name in read_by(kind)}
        if given["weight_decay"] is None:
            given["weight_decay"] = OPTIMIZERS.load(kind).weight_decay
        cls = torch_class(kind)
        if "beta1" in inspect.signature(cls).parameters:
            given["beta1"], given["beta2"] = given.pop("betas")
        return {**own, "policy_kwargs": {**policy, "optimizer_class": cls, "optimizer_kwargs": given}}


class TrainerEnvConfig(Section):
    """The environment of the shipped trainer."""

    id: str = "CartPole-v1"
    """Gymnasium id."""
    num_envs: Positive = 4
    """Environments per member."""
    normalize_obs: StrictBool = True
    """Whether VecNormalize standardises observations."""
    normalize_reward: StrictBool = False
    """Whether VecNormalize scales rewards."""


class PBTAdversarialConfig(Section):
    """A population of models that are built and trained elsewhere."""

    in_order: ClassVar[tuple[str, ...]] = ("pbt", "adversarial")

    pbt: PBTConfig = PBTConfig()
    """The population and its evolution."""
    adversarial: SAPPOConfig = SAPPOConfig()
    """State-adversarial training."""
    model: BaseModelConfig = BaseModelConfig()
    """What all models have in common."""
    env: TrainerEnvConfig = TrainerEnvConfig()
    """The environment of the shipped trainer."""
    updates: Positive = 20
    """Updates of every member in the shipped trainer."""
    graft_faults: list[GraftFault] = Field(default_factory=list)
    """Mistakes that every graft makes on purpose, for experiments on what each of them costs."""

    @field_validator("graft_faults", mode="before")
    @classmethod
    def _known_fault(cls, faults: Any) -> Any:
        known = get_args(GraftFault)
        for fault in faults if isinstance(faults, list) else ():
            if fault not in known:
                near = difflib.get_close_matches(str(fault), known, n=1)
                hint = f"did you mean {near[0]!r}" if near else f"there are {', '.join(known)}"
                raise ValueError(f"unknown graft fault {fault!r}; {hint}")
        return faults

    @model_validator(mode="after")
    def _every_hyperparameter_is_read(self) -> "PBTAdversarialConfig":
        attributes: dict[str, str] = {}
        for space in self.pbt.hyperparams:
            check_name(space.name, self.adversarial.enabled)
            attribute = NAMES.get(space.name, space.name)
            if attribute in attributes:
                raise ValueError(f"{attributes[attribute]!r} and {space.name!r} are the same hyperparameter; keep one")
            attributes[attribute] = space.name
        return self

    @model_validator(mode="after")
    def _whole_minibatches(self) -> "PBTAdversarialConfig":
        steps = self.model.n_steps * self.env.num_envs
        if self.model.model_fields_set & {"n_steps", "batch_size"} and steps % self.model.batch_size:
            raise ValueError(
                f"model.batch_size={self.model.batch_size} must divide the {steps} steps of a rollout "
                f"(model.n_steps={self.model.n_steps} x env.num_envs={self.env.num_envs})"
            )
        return self


def check_name(name: str, adversarial: bool) -> None:
    """Refuses a hyperparameter that no model would read.

    Args:
        name: the hyperparameter's name.
        adversarial: whether state-adversarial training is on.

    Raises:
        ValueError: the name, with the nearest known one.
    """
    if name in NAMES or (name in ADVERSARIAL and adversarial):
        return
    if name in ADVERSARIAL:
        raise ValueError(f"{name!r} belongs to state-adversarial training; remove it, or set adversarial.enabled: true")
    near = difflib.get_close_matches(name, [*NAMES, *ADVERSARIAL], n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"a population may tune {', '.join([*NAMES, *ADVERSARIAL])}"
    raise ValueError(f"unknown hyperparameter {name!r}; {hint}")


def load_pbt_adversarial_config(
    source: str | Path | Mapping[str, Any] | PBTAdversarialConfig, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> PBTAdversarialConfig:
    """Builds a validated configuration.

    Args:
        source: path of a YAML file, a mapping of the same shape, or a `PBTAdversarialConfig`.
        overrides: settings that win over `source`: a mapping from dotted keys to values, or strings "updates=4".

    Raises:
        ConfigError: names every wrong setting, with the nearest valid name for an unknown key.
    """
    return load_as(PBTAdversarialConfig, source, overrides)
