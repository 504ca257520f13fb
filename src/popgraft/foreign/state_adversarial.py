"""State-adversarial PPO for policies that are trained elsewhere: the same attacks, with a population of one."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributions import Distribution, kl_divergence

from popgraft.adversary.attack import perturb
from popgraft.adversary.radius import scheduled_radius
from popgraft.config.adversary import PerturbationConfig
from popgraft.errors import ConfigError
from popgraft.foreign.config import SAPPOConfig

HERITABLE = ("update_count", "adversarial_epsilon", "adversarial_ratio", "robust_kl_coef")
"""What a copy inherits; its generator and its counts of attacks stay with the place."""

LossFn = Callable[[Tensor], Tensor]
"""From observations [batch, *shape] to what an attack increases: one number, or one per row."""


class StatePerturbation:
    """Attacks batches of observations.

    Args:
        config: kind of attack.
        seed: of its own generator, which starting points are drawn from; None: a different one every time.
    """

    def __init__(self, config: PerturbationConfig, seed: int | None = None) -> None:
        self.config = config
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self.reset_stats()

    def generate_perturbation(
        self, observations: Tensor, loss_fn: LossFn, epsilon: int | float | None = None, divergence: bool = False
    ) -> Tensor:
        """Perturbations that increase a loss; parameters get no gradient from it.

        Args:
            observations: clean observations [batch, *shape], in the units of the ball's radius.
            loss_fn: what to increase, a function of perturbed observations.
            epsilon: radius of the ball; None: that of the configuration.
            divergence: the loss is 0 at the clean observations and positive elsewhere (see `perturb`).

        Returns:
            δ, to be added to the observations; detached.

        Raises:
            ConfigError: the loss does not depend on the observations, or has one number for each of other rows; a
                radius below 0, or none.
        """
        return self.perturb_sequences(
            observations.unsqueeze(1),
            lambda x: loss_fn(x.squeeze(1)),
            observations.new_ones(len(observations), 1),
            epsilon,
            divergence,
        ).squeeze(1)

    def perturb_sequences(
        self,
        observations: Tensor,
        loss_fn: LossFn,
        valid: Tensor,
        epsilon: int | float | None = None,
        divergence: bool = False,
    ) -> Tensor:
        """As `generate_perturbation`, with sequences in the place of rows: the ball is that of every observation.

        Args:
            observations: [batch, time, *shape].
            loss_fn: from those to one number, or one per sequence.
            valid: 1 for steps that count, [batch, time].
            epsilon: radius of the ball; None: that of the configuration.
            divergence: see `generate_perturbation`.
        """
        epsilon = self.config.epsilon if epsilon is None else epsilon
        if not 0 <= epsilon < math.inf:
            raise ConfigError(f"epsilon={epsilon!r} is no radius; give 0 or more, for example epsilon=0.1")
        batch, time = valid.shape
        x = observations.detach().reshape(batch, time, -1).transpose(0, 1).unsqueeze(0)

        def objective(x: Tensor) -> Tensor:
            loss = loss_fn(x.squeeze(0).transpose(0, 1).reshape(observations.shape))
            if torch.is_grad_enabled() and not loss.requires_grad:
                raise ConfigError(
                    "the loss that is attacked does not depend on the observations that it is given; compute it from "
                    "its argument, outside torch.no_grad()"
                )
            if loss.numel() not in (1, batch):
                raise ConfigError(
                    f"the loss that is attacked has the shape {tuple(loss.shape)} for {batch} "
                    "observations; return one number, or one for each"
                )
            return loss.reshape(1, -1).expand(1, batch)

        noise = torch.rand((self.config.restarts, *x.shape), generator=self.generator).to(x)
        delta = perturb(objective, x, x.new_tensor([epsilon]), noise, self.config, divergence)
        delta = delta.squeeze(0).transpose(0, 1)
        order = math.inf if self.config.norm_type == "linf" else 2
        self._attacks += 1
        self._rows += int(valid.sum())
        self._norms += float((torch.linalg.vector_norm(delta, order, dim=-1) * valid).sum())
        return delta.reshape(observations.shape)

    def reset_stats(self) -> None:
        """Forgets the attacks so far."""
        self._attacks, self._rows, self._norms = 0, 0, 0.0

    def get_stats(self) -> dict[str, float]:
        """Number of attacks, and the mean norm of all perturbations."""
        return {"attack_count": float(self._attacks), "avg_perturbation_norm": self._norms / max(self._rows, 1)}


class StateAdversarialPPO:
    """The robust term of the loss, for a PPO that is trained elsewhere.

        sa_ppo.on_update_start()
        for batch in minibatches:
            rows = sa_ppo.choose_rows(len(batch.observations))
            loss = ppo_loss(batch) + sa_ppo.robust_kl_penalty(batch.observations[rows])

    Args:
        config: kind of attack, its share and its course.
        distribution: from observations to the policy's distribution of actions: one of torch.distributions, or one of
            Stable-Baselines3.
        seed: of its own generator; None: a different one every time.

    Attributes:
        adversarial_epsilon: radius ε before the schedule; this and the next two may be changed at any time.
        adversarial_ratio: share of rows that are attacked.
        robust_kl_coef: κ, per nat.
        update_count: updates that have begun.
        is_used: whether the update that is running has asked for anything yet.
    """

    def __init__(self, config: SAPPOConfig, distribution: Callable[[Tensor], Any], seed: int | None = None) -> None:
        self.config, self.distribution = config, distribution
        self.perturbation = StatePerturbation(config.perturbation, seed)
        self.adversarial_epsilon = float(config.perturbation.epsilon)
        self.adversarial_ratio = float(config.adversarial_ratio)
        self.robust_kl_coef = float(config.robust_kl_coef)
        self.update_count = 0
        self._announced = self.is_used = False
        self.reset_stats()

    @property
    def is_adversarial_enabled(self) -> bool:
        """Whether the update that is running has attacks."""
        return self.config.enabled and self.update_count > self.config.warmup_updates

    @property
    def current_epsilon(self) -> float:
        """Radius in the update that is running."""
        config = self.config
        initial, age = torch.tensor([self.adversarial_epsilon]).double(), torch.tensor([max(self.update_count - 1, 0)])
        span = (config.warmup_updates, config.max_updates or config.warmup_updates)
        return float(scheduled_radius(initial, config.epsilon_final, age, span, config.course))

    def on_update_start(self) -> None:
        """Begins an update: moves the warm-up and the schedule on."""
        self.update_count += 1
        self._announced, self.is_used = True, False

    def on_train_start(self) -> None:
        """Begins the update that `on_update_start` has announced, or one that nobody has."""
        if not self._announced:
            self.on_update_start()
        self._announced = False

    def choose_rows(self, batch: int) -> Tensor:
        """Draws `adversarial_ratio` of the rows of a batch, without repetition; none before the warm-up is over.

        A fraction of a row is rounded up or down at random, so that the share is right on average.
        """
        return self.choose_sequences(torch.ones(batch, 1))

    def choose_sequences(self, valid: Tensor) -> Tensor:
        """As `choose_rows`, of sequences.

        Args:
            valid: 1 for steps that count, [batch, time].
        """
        generator, batch = self.perturbation.generator, len(valid)
        self.is_used = True
        offset = float(torch.rand((), generator=generator))
        share = self.adversarial_ratio if self.is_adversarial_enabled else 0.0
        rows = torch.randperm(batch, generator=generator)[: max(math.ceil(share * batch - offset), 0)]
        attacked = int(valid[rows.to(valid.device)].sum())
        self._attacked += attacked
        self._clean += int(valid.sum()) - attacked
        return rows

    def robust_kl_penalty(self, observations: Tensor, loss_fn: LossFn | None = None) -> Tensor:
        """κ · mean KL(π(s) ‖ π(s + δ)), to be added to the loss: π(s) is a constant, π(s + δ) is differentiated.

        Args:
            observations: the rows to attack [rows, *shape]; may be empty.
            loss_fn: what the attack increases (see `create_policy_loss_fn`); None: the divergence itself.
        """
        valid = observations.new_ones(len(observations), 1)
        return self.sequence_penalty(observations.unsqueeze(1), self.distribution, valid, loss_fn)

    def sequence_penalty(
        self,
        observations: Tensor,
        distribution: Callable[[Tensor], Any],
        valid: Tensor,
        loss_fn: LossFn | None = None,
    ) -> Tensor:
        """As `robust_kl_penalty`, for whole sequences, which are attacked together.

        Args:
            observations: [batch, time, *shape].
            distribution: from [batch · time, *shape] to the policy's distribution of actions.
            valid: 1 for steps that count, [batch, time].
            loss_fn: see `robust_kl_penalty`.
        """
        self.is_used = True
        if not (self.is_adversarial_enabled and self.config.attack_policy and len(observations)):
            return observations.new_zeros(())
        flat = observations.detach().flatten(0, 1)
        with torch.no_grad():
            clean = _distributions(distribution(flat))

        def divergence(x: Tensor) -> Tensor:
            pairs = zip(clean, _distributions(distribution(x.flatten(0, 1))), strict=True)
            rows = sum((_by_row(kl_divergence(p, q)) for p, q in pairs), valid.new_zeros(()))
            return (rows.view_as(valid) * valid).sum(1)

        def attacked(x: Tensor) -> Tensor:
            return divergence(x) if loss_fn is None else loss_fn(x.flatten(0, 1))

        delta = self.perturbation.perturb_sequences(
            observations, attacked, valid, self.current_epsilon, divergence=loss_fn is None
        )
        penalty = self.robust_kl_coef * divergence(observations.detach() + delta).sum() / valid.sum()
        self._penalties += float(penalty.detach())
        self._penalised += 1
        return penalty

    def attacked_values(self, observations: Tensor, loss_fn: LossFn) -> Tensor:
        """Observations at which to take the value loss: attacked by `loss_fn`, or as they are if `attack_value` is off.

        Args:
            observations: the rows to attack [rows, *shape]; may be empty.
            loss_fn: what the attack increases (see `create_value_loss_fn`).
        """
        self.is_used = True
        if not (self.is_adversarial_enabled and self.config.attack_value and len(observations)):
            return observations
        return observations + self.perturbation.generate_perturbation(observations, loss_fn, self.current_epsilon)

    def reset_stats(self) -> None:
        """Forgets all counts but that of updates."""
        self._attacked, self._clean, self._penalties, self._penalised = 0, 0, 0.0, 0
        self.perturbation.reset_stats()

    def heritable(self) -> dict[str, Any]:
        """What a copy inherits, as plain numbers."""
        return {name: getattr(self, name) for name in HERITABLE}

    def state_dict(self) -> dict[str, Any]:
        """Everything that a resumed one needs besides its configuration, in plain values."""
        generator = bytes(self.perturbation.generator.get_state().tolist()).hex()
        kept = {name: getattr(owner, name) for owner, names in self._kept() for name in names}
        return {**self.heritable(), **kept, "generator": generator}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        generator = torch.tensor(list(bytes.fromhex(state["generator"])), dtype=torch.uint8)
        self.perturbation.generator.set_state(generator)
        for owner, names in [(self, HERITABLE), *self._kept()]:
            for name in names:
                setattr(owner, name, state[name])

    def _kept(self) -> list[tuple[Any, tuple[str, ...]]]:
        """Attributes that stay with the place, by owner."""
        own = ("is_used", "_announced", "_attacked", "_clean", "_penalties", "_penalised")
        return [(self, own), (self.perturbation, ("_attacks", "_rows", "_norms"))]

    def get_stats(self) -> dict[str, float]:
        """What to log, under `sa_ppo/`."""
        attacks = self.perturbation.get_stats()
        return {
            "sa_ppo/enabled": float(self.is_adversarial_enabled),
            "sa_ppo/update_count": float(self.update_count),
            "sa_ppo/adversarial_samples": float(self._attacked),
            "sa_ppo/clean_samples": float(self._clean),
            "sa_ppo/adversarial_ratio": self._attacked / max(self._attacked + self._clean, 1),
            "sa_ppo/robust_kl_penalty": self._penalties / max(self._penalised, 1),
            "sa_ppo/current_epsilon": self.current_epsilon,
            "sa_ppo/attack_count": attacks["attack_count"],
            "sa_ppo/avg_perturbation_norm": attacks["avg_perturbation_norm"],
        }


def create_sappo_wrapper(model: Any, config: SAPPOConfig, seed: int | None = None) -> StateAdversarialPPO:
    """State-adversarial training for a model with `policy.get_distribution(observations)`, as in Stable-Baselines3.

    Raises:
        ConfigError: the model has no such method.
    """
    return StateAdversarialPPO(config, _method(model, "get_distribution"), seed)


def create_policy_loss_fn(
    model: Any, actions: Tensor, advantages: Tensor, old_log_probs: Tensor, clip_range: int | float = 0.2
) -> LossFn:
    """PPO's policy loss −min(ρA, clip(ρ, 1 − c, 1 + c)A) of every row, for an attack to increase.

    Args:
        model: has `policy.get_distribution(observations)`.
        actions: actions taken [rows, ...].
        advantages: their advantages [rows].
        old_log_probs: their log-probabilities when they were taken [rows], nats.
        clip_range: c.

    Raises:
        ConfigError: the model has no such method.
    """
    distribution = _method(model, "get_distribution")

    def loss(observations: Tensor) -> Tensor:
        ratio = (_by_row(distribution(observations).log_prob(actions)) - old_log_probs).exp()
        return -torch.minimum(ratio * advantages, ratio.clamp(1 - clip_range, 1 + clip_range) * advantages)

    return loss


def create_value_loss_fn(model: Any, returns: Tensor) -> LossFn:
    """The value loss (V − G)² of every row, for an attack to increase.

    Args:
        model: has `policy.predict_values(observations)`.
        returns: G [rows].

    Raises:
        ConfigError: the model has no such method.
    """
    values = _method(model, "predict_values")
    return lambda observations: (values(observations).flatten() - returns.flatten()).square()


def _method(model: Any, name: str) -> Callable[[Tensor], Any]:
    method = getattr(getattr(model, "policy", None), name, None)
    if not callable(method):
        raise ConfigError(
            f"{type(model).__name__} has no policy.{name}(observations); pass an object whose `policy` has it, "
            "or give StateAdversarialPPO a function of your own"
        )
    return method  # type: ignore[no-any-return]


def _distributions(found: Any) -> list[Distribution]:
    """The distributions of all sub-actions; Stable-Baselines3 keeps them in `distribution`."""
    inner = getattr(found, "distribution", found)
    return list(inner) if isinstance(inner, Iterable) else [inner]


def _by_row(x: Tensor) -> Tensor:
    """Sums over sub-actions."""
    return x.flatten(1).sum(1) if x.dim() > 1 else x
