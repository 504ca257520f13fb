"""Settings of state-adversarial training (Zhang et al., NeurIPS 2020, arXiv:2003.08938)."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StrictBool, model_validator

from popgraft.config.fields import Integer, Number, Positive, Section

Radius = Annotated[Number, Field(ge=0, le=1e6)]
DEFAULT_RADIUS = 0.075
Course = Literal["constant", "linear", "cosine"]


def _check_box(low: float | None, high: float | None) -> None:
    if low is not None and high is not None and low >= high:
        raise ValueError(f"clip_min={low} must be below clip_max={high}; swap them")


class PerturbationConfig(Section):
    """The attack on observations: a δ with ‖δ‖ ≤ epsilon, in units of normalised observations."""

    in_order: ClassVar[tuple[str, ...]] = (
        "epsilon",
        "attack_steps",
        "attack_lr",
        "random_init",
        "norm_type",
        "clip_min",
        "clip_max",
        "attack_method",
    )

    epsilon: Radius = DEFAULT_RADIUS
    """Radius of the ball that perturbations lie in."""
    attack_steps: Positive = 3
    """Gradient steps of `pgd`."""
    attack_lr: Annotated[Number, Field(gt=0)] = 0.03
    """Length of a step at the radius `epsilon`, or at 0.075 where that is 0; at another one (of a member, or by
    schedule) in proportion."""
    random_init: StrictBool = True
    """Whether `pgd` starts at a random point of the ball; a divergence, which has no gradient at δ = 0, always does."""
    restarts: Positive = 1
    """Random points that the attack starts at; each sequence gets the strongest of its perturbations."""
    norm_type: Literal["linf", "l2"] = "linf"
    """Norm of the ball, taken over one observation."""
    clip_min: Number | None = None
    """Least value of a perturbed observation; null: unbounded."""
    clip_max: Number | None = None
    """Largest value of a perturbed observation; null: unbounded."""
    attack_method: Literal["pgd", "fgsm", "random"] = "pgd"
    """Projected gradient ascent, one step of it of full length, or a random point of the ball."""

    @model_validator(mode="after")
    def _box(self) -> "PerturbationConfig":
        _check_box(self.clip_min, self.clip_max)
        return self

    @property
    def step(self) -> float:
        """Length of a step in radii; a step of very many radii is as long as any longer one."""
        return min(self.attack_lr / (self.epsilon or DEFAULT_RADIUS), 1e6)


class AttackConfig(Section):
    """An attack on what an agent sees in evaluation, step by step; its past stays attacked."""

    method: Literal["pgd", "fgsm", "random", "critic"] = "pgd"
    """Projected gradient ascent on the policy's divergence, one step of it of full length, a random point of the ball,
    or projected gradient descent on the predicted value."""
    epsilon: Radius = DEFAULT_RADIUS
    """Radius of the ball that perturbations lie in, in units of normalised observations."""
    steps: Positive = 10
    """Gradient steps of `pgd` and `critic`, of length 2.5 · epsilon/steps each."""
    restarts: Positive = 1
    """Random points that the attack starts at; the strongest perturbation counts."""
    norm: Literal["linf", "l2"] = "linf"
    """Norm of the ball, taken over one observation."""
    clip_min: Number | None = None
    """Least value of a perturbed observation; null: unbounded."""
    clip_max: Number | None = None
    """Largest value of a perturbed observation; null: unbounded."""

    @model_validator(mode="after")
    def _box(self) -> "AttackConfig":
        _check_box(self.clip_min, self.clip_max)
        return self

    @property
    def perturbation(self) -> PerturbationConfig:
        """The same in the terms of `perturb`, for a ball of radius 1."""
        return PerturbationConfig(
            epsilon=1.0,
            attack_steps=self.steps,
            attack_lr=2.5 / self.steps,
            restarts=self.restarts,
            norm_type=self.norm,
            clip_min=self.clip_min,
            clip_max=self.clip_max,
            attack_method="pgd" if self.method == "critic" else self.method,
        )


class AdversaryConfig(Section):
    """State-adversarial training: the loss gains κ · mean max KL(π(s) ‖ π(s + δ)) over ‖δ‖ ≤ epsilon."""

    enabled: StrictBool = False
    """Whether the loss has the robust term."""
    perturbation: PerturbationConfig = PerturbationConfig()
    """The attack."""
    adversarial_ratio: Annotated[Number, Field(ge=0, le=1)] = 0.5
    """Share of sequences that are attacked."""
    robust_kl_coef: Annotated[Number, Field(ge=0, le=1e6)] = 0.1
    """Weight κ of the robust term, per nat."""
    warmup_updates: Annotated[Integer, Field(ge=0)] = 10
    """Updates of a member before the first attack."""
    attack_objective: Literal["kl", "surrogate", "value"] = "kl"
    """What the attack increases: the policy's divergence, PPO's policy loss, or the change of the predicted value."""
    epsilon_schedule: Course = "constant"
    """Course of `epsilon` from the end of the warm-up to `max_updates`."""
    epsilon_final: Radius = 0.05
    """Radius at the end of a linear or cosine schedule."""
    max_updates: Positive | None = None
    """Updates of a member at which the schedule ends; null: with the run."""

    @model_validator(mode="after")
    def _spans(self) -> "AdversaryConfig":
        if self.max_updates is not None and self.max_updates <= self.warmup_updates:
            raise ValueError(
                f"max_updates={self.max_updates} ends before the warm-up of {self.warmup_updates} updates does; "
                "raise max_updates above warmup_updates"
            )
        return self
