"""One PPO update: advantages and targets, then epochs of minibatch steps, then statistics; each member by itself."""

import functools
import math

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.adversary import Adversary, Sequences, scheduled_radius
from popgraft.config import Config
from popgraft.nn import Params, Policy
from popgraft.ops import entropy_schedule, kl_control, moments, return_scale
from popgraft.ops.diagnostics import recurrent_statistics
from popgraft.ops.reduce import explained_variance
from popgraft.ops.returns import discounted_sums, gae
from popgraft.ops.risk import cvar_advantage
from popgraft.optim import clip_gradient_, make_rule, make_scaler, momentum_of
from popgraft.ppo.loss import LossForm, Metrics, advantages, ppo_loss
from popgraft.rng import to_device
from popgraft.rollout.batch import Minibatch, Rollout, Samples, minibatches
from popgraft.state import Member, Seat

KL_TOLERANCE = 1.5
"""An update stops once the KL divergence exceeds this multiple of target_kl, as in Stable-Baselines3."""


class Learner:
    """Updates every member from its own rollout, in place.

    Args:
        policy: the network.
        config: the run.
    """

    def __init__(self, policy: Policy, config: Config) -> None:
        self.policy, self.config = policy, config.model
        self.rule = make_rule(config.model, policy.layout.sizes)
        self.scaler = make_scaler(config.model, policy.layout.sizes)
        self.bounds_values, self.weighs_risk = config.uses("clip_range_vf"), config.uses("cvar_weight")
        adversary, updates = config.model.adversary, config.generations * config.pbt.perturbation_interval
        self.adversary = Adversary(policy, adversary) if adversary.enabled else None
        self.attacks = (adversary.warmup_updates, adversary.max_updates or updates)
        self.attacked = _largest(config, "adversarial_ratio")
        self.form = LossForm(policy.critic.kind.loss, config.model.normalize_advantage, config.model.kl_penalty)

    def learn_(
        self, member: Member, seat: Seat, rollout: Rollout, generators: list[torch.Generator]
    ) -> tuple[Metrics, Float[Tensor, "pop time env"]]:
        """One update.

        Args:
            member: weights, optimizer and statistics.
            seat: holds the running discounted return.
            rollout: what the members did.
            generators: one per member, from which the order of its sequences and its noise are drawn.

        Returns:
            What to log, [pop] each, averaged over the optimizer steps; and the targets of the critic in raw units.
        """
        metrics, target = self.improve_(member, seat, rollout, generators)
        if self.config.normalize_returns:
            self.rescale_(member, target, rollout.valid)
        return metrics, target

    def improve_(
        self, member: Member, seat: Seat, rollout: Rollout, generators: list[torch.Generator]
    ) -> tuple[Metrics, Float[Tensor, "pop time env"]]:
        """One update up to the return statistics: what `learn_` returns, and the targets in raw units."""
        values = self.in_force(member)
        samples, target = self.prepare_(member, seat, rollout)
        for key, stats in member.normalizer.obs.items():
            moments.update_(stats, rollout.raw_obs[key].flatten(1, 2), rollout.valid.flatten(1))
        metrics = self.optimise_(member, samples, rollout.state, values, generators)
        self.control_(member, metrics)
        member.age += 1
        explained = explained_variance(rollout.value, target, rollout.valid)
        recurrent = recurrent_statistics(seat.carry, self.policy.hidden_parts)
        return {**metrics, "explained_variance": explained, **recurrent, **values}, target

    def in_force(self, member: Member) -> dict[str, Float[Tensor, "pop"]]:
        """Every hyperparameter as this update uses it: what decays, rises or waits is worked out here, each time."""
        config, given, age = self.config, member.hyperparams, member.age
        rise = ((age - config.cvar_start + 1) / max(config.cvar_ramp, 1)).clamp(0, 1)
        bound = given["clip_range_vf"].masked_fill(age < config.clip_range_vf_warmup, math.inf)
        entropy = entropy_schedule.coefficient(
            member.entropy,
            given["ent_coef"],
            given["ent_coef_final"],
            config.ent_coef_decay_steps,
            given["ent_coef_min"],
        )
        now = {"ent_coef": entropy, "clip_range_vf": bound, "cvar_weight": given["cvar_weight"] * rise}
        if self.adversary:
            course, final = config.adversary.epsilon_schedule, config.adversary.epsilon_final
            now["adversarial_epsilon"] = scheduled_radius(
                given["adversarial_epsilon"], final, age, self.attacks, course
            )
            now["adversarial_ratio"] = given["adversarial_ratio"].masked_fill(age < self.attacks[0], 0)
        return {**given, **now, "kl_penalty_beta": member.kl.beta.clone()}

    def prepare_(self, member: Member, seat: Seat, rollout: Rollout) -> tuple[Samples, Float[Tensor, "pop time env"]]:
        """Scales rewards by the running spread of the discounted return, and computes advantages and targets.

        Returns:
            What the update learns from, with targets in the critic's units, and the targets in raw units.
        """
        config, reward = self.config, rollout.reward
        gamma, decay = member.hyperparams["gamma"], member.hyperparams["gae_lambda"]
        if config.normalize_reward:
            sums, seat.discounted_return = discounted_sums(reward, rollout.end, gamma, seat.discounted_return)
            moments.update_(member.normalizer.returns, sums.flatten(1), rollout.valid.flatten(1))
            reward = moments.scale(member.normalizer.returns, reward)
        estimate = functools.partial(gae, reward, rollout.value, rollout.next_value, rollout.end, gamma)
        advantage = estimate(decay)
        whole = estimate(torch.ones_like(decay)) if config.quantile_target == "mc" else advantage
        target = whole + rollout.value
        extras = {"prediction": rollout.prediction} if self.bounds_values else {}
        if self.weighs_risk:
            quantiles = return_scale.denormalize(member.returns, self.policy.critic.quantiles(rollout.prediction))
            extras["risk"] = cvar_advantage(target, quantiles, member.hyperparams["cvar_alpha"])
        samples = Samples(
            obs=rollout.obs,
            action=rollout.action,
            log_prob=rollout.log_prob,
            advantage=advantage,
            target=return_scale.normalize(member.returns, target),
            start=rollout.start,
            valid=rollout.valid,
            extras=extras,
        )
        return samples, target

    def optimise_(
        self,
        member: Member,
        samples: Samples,
        state: Float[Tensor, "pop sequence env state"],
        values: dict[str, Float[Tensor, "pop"]],
        generators: list[torch.Generator],
    ) -> Metrics:
        """Epochs of minibatch steps: gradient, its variance, its norm, step.

        A member whose policy has moved too far, or whose gradient is not finite, rests.
        """
        config, device = self.config, member.params.device
        sequences = state.shape[1] * state.shape[2]
        close = torch.ones(len(generators), dtype=torch.bool, device=device)
        steps = torch.zeros(len(generators), device=device)
        sums: Metrics = {}
        first: Metrics = {}
        attacked = float(values["adversarial_ratio"].max()) if self.adversary else 0.0
        if attacked:  # what may be, not what is: shapes decide how products are rounded, and neighbours must not
            attacked = max(attacked, self.attacked)
        for _ in range(config.n_epochs):
            drawn = torch.stack([torch.randperm(sequences, generator=generator) for generator in generators])
            order = to_device(drawn, device)
            for batch in minibatches(samples, state, order, config.n_minibatches):
                flat = member.params.detach().requires_grad_()
                params = self.policy.views(flat)
                kept = self.policy.draw_kept(generators, batch.samples.valid)
                loss, metrics = ppo_loss(self.policy, params, batch, values, self.form, kept)
                if self.adversary:
                    penalty, found = self.robust_term(self.adversary, params, batch, values, generators, attacked)
                    begun = {"sa_ppo/enabled": member.age >= self.attacks[0], "sa_ppo/update_count": member.age}
                    metrics |= found | {name: value.to(loss.dtype) for name, value in begun.items()}
                    loss = loss + penalty
                close = close & (metrics["approx_kl"] <= KL_TOLERANCE * values["target_kl"])
                (grad,) = torch.autograd.grad(loss.sum(), flat)
                if not sums and (momentum := momentum_of(self.rule, member.optimizer)) is not None:
                    first = {"momentum_cosine": torch.cosine_similarity(momentum, grad)}
                rate = values["learning_rate"]
                if config.vgs.enabled:
                    rate, scaled = self.scaler.scale_(grad, member.vgs, rate, close, values["vgs_alpha"])
                    metrics |= scaled
                metrics["grad_norm"] = clip_gradient_(grad, values["max_grad_norm"])
                finite = metrics["grad_norm"].isfinite()
                active = close & finite
                member.optimizer.skipped += close & finite.logical_not()
                logged = self.rule.step_(member.params, grad, member.optimizer, rate, active, values, generators)
                metrics |= logged or {}
                steps += active
                for name, value in metrics.items():
                    sums[name] = sums[name] + value if name in sums else value
        count = config.n_epochs * config.n_minibatches
        return {**{name: total / count for name, total in sums.items()}, **first, "optimizer_steps": steps}

    def robust_term(
        self,
        adversary: Adversary,
        params: Params,
        batch: Minibatch,
        values: dict[str, Float[Tensor, "pop"]],
        generators: list[torch.Generator],
        attacked: float,
    ) -> tuple[Float[Tensor, "pop"], Metrics]:
        """What the loss gains by attacks on a minibatch, of which nobody attacks more than the share `attacked`."""
        samples = batch.samples
        sequences = Sequences(
            obs=samples.obs,
            action=samples.action,
            log_prob=samples.log_prob,
            advantage=advantages(batch, values, self.form),
            start=samples.start,
            valid=samples.valid,
            state=batch.state.unsqueeze(1),
        )
        return adversary.penalty(params, sequences, values, adversary.draw(generators, samples.valid), attacked)

    def control_(self, member: Member, metrics: Metrics) -> None:
        """Moves the entropy schedule and the KL penalty's weight by what the update has shown."""
        config, values = self.config, member.hyperparams
        tolerance, least = config.ent_coef_plateau_tolerance, config.ent_coef_plateau_min_updates
        entropy_schedule.observe_(member.entropy, -metrics["entropy_loss"], tolerance, least)
        if config.kl_penalty:
            gains = kl_control.Gains(values["kl_pid_p"], values["kl_pid_i"], values["kl_pid_d"])
            kl, moved = metrics["approx_kl"], metrics["optimizer_steps"] > 0
            kl_control.update_(member.kl, kl, values["target_kl"], gains, (0.0, config.kl_beta_max), moved)

    def rescale_(self, member: Member, target: Float[Tensor, "pop time env"], valid: Tensor) -> None:
        """Enters the update's targets into the return statistics, and moves the critic to the new units."""
        self.finalize_returns_(member, target, valid)
        self.activate_returns_(member)

    def finalize_returns_(self, member: Member, target: Float[Tensor, "pop time env"], valid: Tensor) -> None:
        """Enters the update's targets into the return statistics.

        A critic that cannot be moved to new units keeps those that the first update found.
        """
        frozen = {"decay": 1.0} if self.policy.critic.kind.rescale_ is None else {}
        return_scale.finalize_(member.returns, target, valid, **frozen)

    def activate_returns_(self, member: Member) -> None:
        """Makes the statistics' units the critic's own, without moving its predictions in raw units (PopArt)."""
        scale, critic = member.returns, self.policy.critic.kind
        new = return_scale.latest(scale)
        if critic.rescale_ is not None:
            critic.rescale_(self.policy.views(member.params)["critic"], scale.mean, scale.std, *new)
        return_scale.activate_(scale, *new)


def _largest(config: Config, name: str) -> float:
    """Largest value, in single precision, that a tunable number can have in any member at any time of the run."""
    scheduled = [entry.hyperparams[name] for entry in config.pbt.schedule if name in entry.hyperparams]
    spaces = [space for space in config.pbt.hyperparams if space.name == name]
    tuned = [value for space in spaces for value in space.values or space.bounds]
    return float(torch.tensor(scheduled or tuned or [config.model.hyperparams()[name]]).max())
