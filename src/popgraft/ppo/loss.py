"""The PPO loss of a minibatch, one number per member."""

import dataclasses

from jaxtyping import Float
from torch import Tensor

from popgraft.nn import Kept, Params, Policy
from popgraft.ops import losses
from popgraft.ops.critic_loss import SampleLoss, critic_loss
from popgraft.ops.kl_control import kl_penalty
from popgraft.ops.reduce import mean, standardize
from popgraft.rollout.batch import Minibatch

Metrics = dict[str, Float[Tensor, "pop"]]


@dataclasses.dataclass(frozen=True)
class LossForm:
    """What the loss consists of, the same for all members.

    Attributes:
        critic: loss of a predicted return.
        standardized: whether advantages are standardised within the minibatch.
        penalized: whether there is a KL penalty.
    """

    critic: SampleLoss
    standardized: bool
    penalized: bool


def ppo_loss(
    policy: Policy,
    params: Params,
    batch: Minibatch,
    values: dict[str, Float[Tensor, "pop"]],
    form: LossForm,
    kept: Kept = ((), ()),
) -> tuple[Float[Tensor, "pop"], Metrics]:
    """L = L_clip − ent_coef · H + vf_coef · L_critic + β · E_old[log π_old − log π] (Schulman et al. 2017, eqs. 8, 9).

    With a risk advantage Aᶜ in the batch, the advantage is (1 − w)A + wAᶜ, each standardised by itself.

    Args:
        policy: the network.
        params: its parameters.
        batch: sequences of a rollout.
        values: hyperparameters as they are in force.
        form: what the loss consists of.
        kept: dropout.

    Returns:
        The loss of every member, and what to log of it, detached.
    """
    samples, valid = batch.samples, batch.samples.valid
    out = policy.unroll(params, samples.obs, batch.state, samples.start, kept)
    log_prob = policy.head.log_prob(params["head"], out.outputs, samples.action)
    entropy = mean(policy.head.entropy(params["head"], out.outputs), valid)
    log_ratio = losses.log_ratio(log_prob, samples.log_prob)
    policy_loss = losses.clipped_surrogate(log_ratio, advantages(batch, values, form), values["clip_range"], valid)
    predictions, old = policy.predict(params, out.critic), samples.extras.get("prediction")
    value_loss = critic_loss(form.critic, predictions, samples.target, valid, old, values["clip_range_vf"])
    loss = policy_loss - values["ent_coef"] * entropy + values["vf_coef"] * value_loss
    if form.penalized:
        loss = loss + values["kl_penalty_beta"] * kl_penalty(log_ratio, valid)
    log_ratio = log_ratio.detach()
    metrics = {
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy_loss": -entropy.detach(),
        "approx_kl": losses.approx_kl(log_ratio, valid),
        "clip_fraction": losses.clip_fraction(log_ratio, values["clip_range"], valid),
    }
    return loss, metrics


def advantages(
    batch: Minibatch, values: dict[str, Float[Tensor, "pop"]], form: LossForm
) -> Float[Tensor, "pop time batch"]:
    """The advantages that the policy learns from."""
    samples = batch.samples

    def scaled(advantage: Tensor) -> Tensor:
        return standardize(advantage, samples.valid) if form.standardized else advantage

    risk = samples.extras.get("risk")
    if risk is None:
        return scaled(samples.advantage)
    return scaled(samples.advantage).lerp(scaled(risk), values["cvar_weight"].view(-1, 1, 1))
