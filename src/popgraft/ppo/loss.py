"""The PPO loss of a minibatch, one number per member."""

from jaxtyping import Float
from torch import Tensor

from popgraft.nn import Params, Policy
from popgraft.ops import losses
from popgraft.ops.reduce import mean, standardize
from popgraft.rollout.batch import Minibatch

Metrics = dict[str, Float[Tensor, "pop"]]


def ppo_loss(
    policy: Policy,
    params: Params,
    batch: Minibatch,
    hyperparams: dict[str, Float[Tensor, "pop"]],
    normalize_advantage: bool,
) -> tuple[Float[Tensor, "pop"], Metrics]:
    """L = L_clip − ent_coef · H + vf_coef · L_quantile (Schulman et al. 2017, eq. 9, with a quantile critic).

    Returns:
        The loss of every member, and what to log of it, detached.
    """
    samples, valid = batch.samples, batch.samples.valid
    out = policy.unroll(params, samples.obs, batch.state, samples.start)
    log_prob = policy.head.log_prob(params["head"], out.outputs, samples.action)
    entropy = mean(policy.head.entropy(params["head"], out.outputs), valid)
    log_ratio = losses.log_ratio(log_prob, samples.log_prob)
    advantage = standardize(samples.advantage, valid) if normalize_advantage else samples.advantage
    policy_loss = losses.clipped_surrogate(log_ratio, advantage, hyperparams["clip_range"], valid)
    value_loss = losses.quantile_huber(policy.quantiles(params, out.critic), samples.target, valid)
    loss = policy_loss - hyperparams["ent_coef"] * entropy + hyperparams["vf_coef"] * value_loss
    log_ratio = log_ratio.detach()
    metrics = {
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy_loss": -entropy.detach(),
        "approx_kl": losses.approx_kl(log_ratio, valid),
        "clip_fraction": losses.clip_fraction(log_ratio, hyperparams["clip_range"], valid),
    }
    return loss, metrics
