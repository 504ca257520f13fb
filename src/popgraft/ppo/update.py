"""One PPO update: statistics, advantages, then epochs of minibatch steps, each member by itself."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.config import ModelConfig
from popgraft.nn import Policy
from popgraft.ops import moments
from popgraft.ops.reduce import explained_variance
from popgraft.ops.returns import discounted_sums, gae
from popgraft.optim import adam_, clip_gradient_
from popgraft.ppo.loss import Metrics, ppo_loss
from popgraft.rollout.batch import Rollout, Samples, minibatches
from popgraft.state import Member, Seat

KL_TOLERANCE = 1.5
"""An update stops once the KL divergence exceeds this multiple of target_kl, as in Stable-Baselines3."""


def learn_(
    policy: Policy,
    member: Member,
    seat: Seat,
    rollout: Rollout,
    config: ModelConfig,
    generators: list[torch.Generator],
) -> Metrics:
    """Updates every member from its own rollout, in place.

    Args:
        policy: the network.
        member: weights, optimizer and statistics.
        seat: holds the running discounted return.
        rollout: what the members did.
        config: the agent's settings.
        generators: one per member, from which the order of its sequences is drawn.

    Returns:
        What to log, [pop] each, averaged over the optimizer steps.
    """
    samples = prepare_(member, seat, rollout, config)
    for key, stats in member.normalizer.obs.items():
        moments.update_(stats, rollout.raw_obs[key].flatten(1, 2), rollout.valid.flatten(1))
    metrics = optimise_(policy, member, samples, rollout.state, config, generators)
    member.age += 1
    explained = explained_variance(rollout.value, samples.target, rollout.valid)
    return {**metrics, "explained_variance": explained, **member.hyperparams}


def prepare_(member: Member, seat: Seat, rollout: Rollout, config: ModelConfig) -> Samples:
    """Scales rewards by the running spread of the discounted return, and computes advantages and targets."""
    gamma, reward = member.hyperparams["gamma"], rollout.reward
    if config.normalize_reward:
        sums, seat.discounted_return = discounted_sums(reward, rollout.end, gamma, seat.discounted_return)
        moments.update_(member.normalizer.returns, sums.flatten(1), rollout.valid.flatten(1))
        reward = moments.scale(member.normalizer.returns, reward)
    advantage = gae(reward, rollout.value, rollout.next_value, rollout.end, gamma, member.hyperparams["gae_lambda"])
    return Samples(
        obs=rollout.obs,
        action=rollout.action,
        log_prob=rollout.log_prob,
        advantage=advantage,
        target=advantage + rollout.value,
        start=rollout.start,
        valid=rollout.valid,
    )


def optimise_(
    policy: Policy,
    member: Member,
    samples: Samples,
    state: Float[Tensor, "pop sequence env state"],
    config: ModelConfig,
    generators: list[torch.Generator],
) -> Metrics:
    """Epochs of minibatch steps. A member whose policy has moved too far, or whose gradient is not finite, rests."""
    hyperparams, device = member.hyperparams, member.params.device
    constants = config.optimizer_kwargs
    sequences = state.shape[1] * state.shape[2]
    close = torch.ones(len(generators), dtype=torch.bool, device=device)
    steps = torch.zeros(len(generators), device=device)
    sums: Metrics = {}
    for _ in range(config.n_epochs):
        order = torch.stack([torch.randperm(sequences, generator=generator) for generator in generators]).to(device)
        for batch in minibatches(samples, state, order, config.n_minibatches):
            flat = member.params.detach().requires_grad_()
            loss, metrics = ppo_loss(policy, policy.views(flat), batch, hyperparams, config.normalize_advantage)
            close = close & (metrics["approx_kl"] <= KL_TOLERANCE * hyperparams["target_kl"])
            (grad,) = torch.autograd.grad(loss.sum(), flat)
            norm = clip_gradient_(grad, hyperparams["max_grad_norm"])
            active = close & norm.isfinite()
            adam_(
                member.params,
                grad,
                member.optimizer,
                hyperparams["learning_rate"],
                active,
                betas=constants.betas,
                eps=constants.eps,
                weight_decay=constants.weight_decay,
                decoupled=config.optimizer == "adamw",
            )
            steps += active
            for name, value in {**metrics, "grad_norm": norm}.items():
                sums[name] = sums[name] + value if name in sums else value
    count = config.n_epochs * config.n_minibatches
    return {**{name: total / count for name, total in sums.items()}, "optimizer_steps": steps}
