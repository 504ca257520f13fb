"""The robust term of the loss: how far the policy moves when its observations are attacked.

    L = L_PPO + κ · mean max KL(π(s) ‖ π(s + δ)) over ‖δ‖ ≤ ε

(Zhang et al. 2020, arXiv:2003.08938.) The clean side π(s) is a constant; the perturbed side is differentiated at the δ
that the attack has found, on the same sequences.
"""

import dataclasses
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.adversary.attack import Objective, Vectors, perturb
from popgraft.config.adversary import AdversaryConfig
from popgraft.nn import Params, Policy
from popgraft.ops import losses
from popgraft.ops.reduce import mean


@dataclasses.dataclass
class Sequences:
    """Training sequences of every member, [pop, time, batch, ...], with `state` [pop, 1, batch, state] before them.

    Attributes:
        obs: normalised observations.
        log_prob: log-probability of the action when it was taken, nats.
        valid: 1 for steps that count.
    """

    obs: dict[str, Tensor]
    action: Tensor
    log_prob: Float[Tensor, "pop time batch"]
    advantage: Float[Tensor, "pop time batch"]
    start: Bool[Tensor, "pop time batch"]
    valid: Float[Tensor, "pop time batch"]
    state: Float[Tensor, "pop 1 batch state"]


@dataclasses.dataclass
class Draws:
    """The randomness of one attack, U[0, 1).

    Attributes:
        offset: decides whether a fraction of a sequence counts as one.
        order: puts the sequences in order.
        start: starting points of the perturbations, for every restart.
    """

    offset: Float[Tensor, "pop"]
    order: Float[Tensor, "pop batch"]
    start: Float[Tensor, "pop restarts time batch n"]


def choose(
    ratio: Float[Tensor, "pop"], draws: Draws, limit: int
) -> tuple[Int[Tensor, "pop limit"], Float[Tensor, "pop limit"]]:
    """Draws a share of the sequences: of `batch`, ⌈ratio · batch − offset⌉, which is ratio · batch on average.

    Args:
        ratio: share of every member.
        draws: the randomness.
        limit: most sequences that any member attacks; at least ⌈ratio · batch⌉.

    Returns:
        Indices of sequences, and 1 for those that are chosen: a member's first ones.
    """
    batch = draws.order.shape[1]
    place = torch.arange(limit, device=ratio.device) + draws.offset.unsqueeze(1)
    chosen = place < (ratio * batch).unsqueeze(1)
    return draws.order.argsort(1)[:, :limit], chosen.to(ratio.dtype)


def pick(sequences: Sequences, index: Int[Tensor, "pop limit"]) -> Sequences:
    """Some sequences of every member."""
    members = torch.arange(len(index), device=index.device).view(-1, 1, 1)

    def rows(leaf: Tensor) -> Tensor:
        time, batch = leaf.shape[1:3]
        steps = torch.arange(time, device=index.device).view(1, -1, 1)
        flat = (members * time + steps) * batch + index.unsqueeze(1)
        chosen: Tensor = leaf.flatten(0, 2).index_select(0, flat.flatten()).unflatten(0, flat.shape)
        return chosen

    return tree.map(rows, sequences)


class Adversary:
    """Attacks the policy of every member, and measures how far it moves.

    Images are left as they are; everything else is attacked as one vector.

    Args:
        policy: the network.
        config: kind of attack and what it increases.

    Raises:
        ConfigError: there is nothing to attack.
    """

    def __init__(self, policy: Policy, config: AdversaryConfig) -> None:
        self.policy, self.config = policy, config
        self.vectors = Vectors(policy.specs)

    def draw(self, generators: list[torch.Generator], like: Float[Tensor, "pop time batch"]) -> Draws:
        """The randomness of one attack on sequences with the shape of `like`, each member's from its own generator."""
        _, time, batch = like.shape
        shape = (self.config.perturbation.restarts, time, batch, self.vectors.size)
        sizes = [1, batch, math.prod(shape)]
        rows = torch.stack([torch.rand(sum(sizes), generator=generator) for generator in generators])
        offset, order, start = rows.to(like.device).split(sizes, dim=1)
        return Draws(offset.squeeze(1), order, start.unflatten(1, shape).to(like.dtype))

    def outputs(
        self, params: Params, sequences: Sequences, x: Float[Tensor, "pop time batch n"]
    ) -> Float[Tensor, "pop time batch outputs"]:
        """Parameters of the action distribution at observations `x`, unrolled from the stored states."""
        obs = self.vectors.split(x, sequences.obs)
        return self.policy.outputs(params, obs, sequences.state.squeeze(1), sequences.start)

    def penalty(
        self,
        params: Params,
        sequences: Sequences,
        values: dict[str, Float[Tensor, "pop"]],
        draws: Draws,
        share: float,
    ) -> tuple[Float[Tensor, "pop"], dict[str, Float[Tensor, "pop"]]]:
        """κ times the mean divergence over the attacked steps.

        Args:
            params: parameters of the policy; the gradient of the result reaches them through the perturbed side only.
            sequences: of which some are attacked.
            values: hyperparameters in force: `adversarial_epsilon`, `adversarial_ratio`, `robust_kl_coef`, and
                `clip_range` for the surrogate objective.
            draws: the randomness.
            share: at least the largest `adversarial_ratio` of all members; 0: nobody is attacked.

        Returns:
            The term of every member, nats, and what to log of it, detached.
        """
        steps, zero = sequences.valid.sum((1, 2)), torch.zeros_like(values["robust_kl_coef"])
        limit = math.ceil(share * sequences.valid.shape[2])
        attacked = count = norm = divergence = zero
        if limit:
            index, chosen = choose(values["adversarial_ratio"], draws, limit)
            picked = pick(sequences, index)
            weight = picked.valid * chosen.unsqueeze(1)
            frozen, x = tree.map(torch.detach, params), self.vectors.join(picked.obs)
            with torch.no_grad():
                clean = self.outputs(frozen, picked, x)
            delta = self._attack(frozen, picked, x, clean, values, draws.start[:, :, :, :limit])
            perturbed = self.outputs(params, picked, x + delta)
            divergence = mean(self.policy.head.kl(params["head"], clean, perturbed), weight)
            norm = mean(self._norm(delta), weight)
            attacked, count = weight.sum((1, 2)), chosen.sum(1)
        penalty = values["robust_kl_coef"] * divergence
        metrics = {
            "sa_ppo/robust_kl_penalty": penalty.detach(),
            "sa_ppo/adversarial_samples": attacked,
            "sa_ppo/clean_samples": steps - attacked,
            "sa_ppo/adversarial_ratio": attacked / steps.clamp(min=1),
            "sa_ppo/current_epsilon": values["adversarial_epsilon"],
            "sa_ppo/attack_count": count,
            "sa_ppo/avg_perturbation_norm": norm,
        }
        return penalty, metrics

    def _norm(self, delta: Float[Tensor, "pop time batch n"]) -> Float[Tensor, "pop time batch"]:
        order = math.inf if self.config.perturbation.norm_type == "linf" else 2
        length: Tensor = torch.linalg.vector_norm(delta, order, dim=-1)
        return length

    def _attack(
        self,
        params: Params,
        sequences: Sequences,
        x: Float[Tensor, "pop time batch n"],
        clean: Float[Tensor, "pop time batch outputs"],
        values: dict[str, Float[Tensor, "pop"]],
        start: Float[Tensor, "pop restarts time batch n"],
    ) -> Float[Tensor, "pop time batch n"]:
        name = self.config.attack_objective
        objective: Objective
        match name:
            case "kl":
                objective = self._divergence(params, sequences, clean)
            case "surrogate":
                objective = self._surrogate(params, sequences, values["clip_range"])
            case "value":
                objective = self._value_change(params, sequences, x)
        radius, config = values["adversarial_epsilon"], self.config.perturbation
        return perturb(objective, x, radius, start.transpose(0, 1), config, divergence=name != "surrogate")

    def _divergence(self, params: Params, sequences: Sequences, clean: Tensor) -> Objective:
        """Σ_t KL(π(s) ‖ π(x)), nats."""

        def objective(x: Tensor) -> Tensor:
            kl = self.policy.head.kl(params["head"], clean, self.outputs(params, sequences, x))
            return (kl * sequences.valid).sum(1)

        return objective

    def _surrogate(self, params: Params, sequences: Sequences, clip_range: Float[Tensor, "pop"]) -> Objective:
        """PPO's policy loss −Σ_t min(ρA, clip(ρ, 1 − c, 1 + c)A) with ρ = π(a | x)/π_old(a | s)."""
        clip = clip_range.view(-1, 1, 1)

        def objective(x: Tensor) -> Tensor:
            log_prob = self.policy.head.log_prob(params["head"], self.outputs(params, sequences, x), sequences.action)
            ratio = losses.log_ratio(log_prob, sequences.log_prob).exp()
            clipped = torch.clamp(ratio, 1 - clip, 1 + clip)
            gain = torch.minimum(ratio * sequences.advantage, clipped * sequences.advantage)
            return -(gain * sequences.valid).sum(1)

        return objective

    def _value_change(
        self, params: Params, sequences: Sequences, clean: Float[Tensor, "pop time batch n"]
    ) -> Objective:
        """½ Σ_t (V(x) − V(s))², in the critic's units of return."""

        def value(x: Tensor) -> Tensor:
            obs = self.vectors.split(x, sequences.obs)
            out = self.policy.unroll(params, obs, sequences.state.squeeze(1), sequences.start)
            return self.policy.critic.value(self.policy.predict(params, out.critic))

        with torch.no_grad():
            before = value(clean)
        return lambda x: 0.5 * ((value(x) - before).square() * sequences.valid).sum(1)
