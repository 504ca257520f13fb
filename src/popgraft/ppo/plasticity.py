"""How much a network can still learn, measured once a generation from a part of a rollout."""

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.nn import Policy
from popgraft.ops.plasticity import dormant, effective_rank
from popgraft.rollout.acting import Actor
from popgraft.rollout.collector import Excerpt
from popgraft.state import Member

NAMES = ("plasticity/dormant", "plasticity/rank_actor", "plasticity/rank_critic", "plasticity/churn")


@torch.no_grad()
def plasticity(
    policy: Policy, member: Member, before: Float[Tensor, "pop n"], seen: Excerpt, unseen: Excerpt | None
) -> dict[str, Float[Tensor, "pop"]]:
    """What an update has left of a network's plasticity.

        churn = E[KL(π ‖ π′)]   over states that the update from π to π′ has not learned from

    Tang & Berseth 2024 (arXiv:2409.04792), of the policy.

    Args:
        policy: the network.
        member: as the update left them.
        before: their parameters before it.
        seen: of the rollout that it learned from.
        unseen: of an earlier one; None: churn is not known.

    Returns:
        `NAMES`: the share of dormant units among the outputs of the encoder, the memories and the last hidden layers;
        effective ranks of what the action head and the critic read; churn, in nats.
    """
    params = policy.views(member.params)
    hidden = policy.hidden(params, _normalized(policy, member, seen), seen.state, seen.start)
    units = [layer for name, layer in hidden.items() if params.get(name)]  # the identity has no units of its own
    asleep = [dormant(layer) for layer in units]
    unknown = torch.full_like(member.params[:, 0], float("nan"))
    churn = unknown
    if unseen is not None:
        obs = _normalized(policy, member, unseen)
        old, new = (
            policy.outputs(policy.views(flat), obs, unseen.state, unseen.start) for flat in (before, member.params)
        )
        churn = policy.head.kl(params["head"], old, new).mean((1, 2))
    acting, valuing = hidden["actor_mlp"], hidden["critic_mlp"]
    rank = effective_rank(acting)
    found = (
        torch.cat(asleep, 1).to(unknown.dtype).mean(1) if asleep else unknown,
        rank,
        rank if acting is valuing else effective_rank(valuing),
        churn,
    )
    return dict(zip(NAMES, found, strict=True))


def _normalized(policy: Policy, member: Member, part: Excerpt) -> dict[str, Tensor]:
    flat = Actor.of(policy, member).normalized({key: x.flatten(1, 2) for key, x in part.obs.items()})
    return {key: x.unflatten(1, part.start.shape[1:]) for key, x in flat.items()}
