"""The attack on agents that act: step by step, each step from the recurrent state that the attacked past has led to.

    pgd, fgsm:  max KL(π(s, h) ‖ π(s + δ, h))    the maximal action difference of Zhang et al. 2020
    critic:     min V(s + δ, h)                  after Pattanaik et al. 2018, arXiv:1712.03632
    random:     δ uniform in the ball

over ‖δ‖ ≤ ε in normalised observations (Zhang et al. 2020, arXiv:2003.08938, §3.5). The attacker knows the agent, does
not look ahead, and moves what actor and critic see alike.
"""

import copy
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.adversary.attack import Objective, Vectors, perturb
from popgraft.config.adversary import AttackConfig
from popgraft.nn import Params, Policy
from popgraft.rng import torch_generator


class OnlineAttack:
    """Perturbs what every member sees while it acts. Images are left as they are.

    Args:
        policy: the network.
        config: the attack, the same for all members.
        seeds: of every member's own generator, which starting points are drawn from.

    Raises:
        ConfigError: there is nothing to attack.
    """

    def __init__(self, policy: Policy, config: AttackConfig, seeds: Sequence[int]) -> None:
        self.vectors, self.config = Vectors(policy.specs), config
        self.policy = copy.copy(policy)
        self.policy.critic_detached = False  # that stops the critic from training a shared memory, not an attacker
        self.generators = [torch_generator(seed, "attack") for seed in seeds]

    def __call__(
        self,
        params: Params,
        obs: dict[str, Tensor],
        state: Float[Tensor, "pop env state"],
        start: Bool[Tensor, "pop env"],
    ) -> dict[str, Tensor]:
        """One step.

        Args:
            params: of the policies that are attacked.
            obs: every key [pop, env, *shape], normalised.
            state: recurrent state before the step.
            start: where an episode begins.

        Returns:
            What the agents see in place of `obs`.
        """
        step = {key: x.unsqueeze(1) for key, x in obs.items()}
        x = self.vectors.join(step)
        shape = (self.config.restarts, *x.shape[1:])
        noise = torch.stack([torch.rand(shape, generator=generator) for generator in self.generators], dim=1).to(x)
        objective = self._objective(params, step, state, start.unsqueeze(1))
        radius = x.new_full((len(x),), self.config.epsilon)
        divergence = self.config.method != "critic"
        delta = perturb(objective, x, radius, noise, self.config.perturbation, divergence=divergence)
        return {key: seen.squeeze(1) for key, seen in self.vectors.split(x + delta, step).items()}

    def _objective(
        self,
        params: Params,
        step: dict[str, Tensor],
        state: Float[Tensor, "pop env state"],
        start: Bool[Tensor, "pop 1 env"],
    ) -> Objective:
        """What the attack increases: −V(x, h) in the critic's units of return, or KL(π(s, h) ‖ π(x, h)) in nats."""
        policy = self.policy

        def fall_of_value(x: Tensor) -> Tensor:
            out = policy.unroll(params, self.vectors.split(x, step), state, start)
            return -policy.critic.value(policy.predict(params, out.critic)).squeeze(1)

        if self.config.method == "critic":
            return fall_of_value
        clean = policy.outputs(params, step, state, start)

        def divergence(x: Tensor) -> Tensor:
            outputs = policy.outputs(params, self.vectors.split(x, step), state, start)
            return policy.head.kl(params["head"], clean, outputs).squeeze(1)

        return divergence
