"""Settings of environments: where they come from, and what is different about those that agents are scored in."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from popgraft.config.fields import Kwargs, Number, Positive, Reference, Section

TRAINING_ONLY = ("episodic_life", "reward_clip")
"""Arguments of EnvPool's environments that are for learning: an episode per life, and only the sign of a reward."""


class WrapperConfig(Section):
    """One observation wrapper."""

    name: str
    """`hide`, `flicker`, or `module:Class` of a Gymnasium wrapper, see docs/environments.md."""
    kwargs: Kwargs = {}
    """Keyword arguments of the wrapper."""


class EnvConfig(Section):
    """The environments of every member."""

    source: Literal["gymnasium", "tensor", "python"] = "gymnasium"
    """What `id` names: an environment of Gymnasium or EnvPool, or a tensor environment; `python`: environments come
    from the factory that is passed in Python, as `train(config, factory=make)`, whatever else is named here."""
    id: str | None = None
    """A registered Gymnasium id, or `module:Id`, which imports the module first; of a tensor environment its name, or
    `module:Class`."""
    factory: Reference | None = None
    """`module:function` that is called as f(num_envs=..., **kwargs) and returns a Gymnasium VectorEnv, a
    Stable-Baselines3 VecEnv or a popgraft.rollout.MemberEnv."""
    kwargs: Kwargs = {}
    """Keyword arguments of the environment."""
    num_envs: Positive = 8
    """Environments per member."""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point", "envpool"] = "auto"
    """How a member's environments are stepped together; `auto` takes the vector entry point where there is one,
    else sync."""
    autoreset: Literal["same_step", "next_step"] = "same_step"
    """When a finished sync or async environment starts its next episode; a vector entry point has a mode of its own."""
    step_timeout: Annotated[Number, Field(gt=0)] | None = 300.0
    """Seconds that an environment has for a step or a reset; null: no limit. After them a member of asynchronous
    environments is lost as if it had died; where environments run in a shard's own process, the run ends."""
    wrappers: list[WrapperConfig] = []
    """Observation wrappers, applied in this order."""

    @model_validator(mode="after")
    def _one_source(self) -> "EnvConfig":
        if self.source != "python" and bool(self.id) == bool(self.factory):
            raise ValueError(f"give either env.id or env.factory, not id={self.id!r} and factory={self.factory!r}")
        return self

    @model_validator(mode="after")
    def _tensors_alone(self) -> "EnvConfig":
        if self.source == "tensor":
            for name in ("factory", "vectorization", "autoreset", "wrappers"):
                value = getattr(self, name)
                if value != type(self).model_fields[name].default:
                    raise ValueError(
                        f"env.{name}={value!r} has no effect on a tensor environment; remove it, or set "
                        "env.source: gymnasium"
                    )
        return self


class EvaluationEnvConfig(Section):
    """What is different about the environments that agents are scored in; everything else is as under `env`."""

    source: Literal["gymnasium", "tensor"] | None = None
    """As under `env`."""
    id: str | None = None
    """Takes the place of the source of training, whatever that is."""
    factory: Reference | None = None
    """Takes the place of the source of training, whatever that is."""
    kwargs: Kwargs = {}
    """Arguments that are different or more; null takes one of `env.kwargs` away."""
    vectorization: Literal["auto", "sync", "async", "vector_entry_point", "envpool"] | None = None
    """As under `env`."""
    autoreset: Literal["same_step", "next_step"] | None = None
    """As under `env`."""
    wrappers: list[WrapperConfig] | None = None
    """All wrappers, in place of those of `env`; an empty list: none."""

    @property
    def names_source(self) -> bool:
        """Whether these environments come from somewhere else than those of training."""
        return bool(self.id or self.factory)
