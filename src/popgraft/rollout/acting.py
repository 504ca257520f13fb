"""From an observation to an action: normalise, unroll one step, choose."""

import dataclasses
import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from popgraft.nn import Params, Policy, Unrolled
from popgraft.ops import moments, return_scale
from popgraft.ops.moments import Standard
from popgraft.rng import to_device
from popgraft.state import Member, Normalizer, ReturnScale


@dataclasses.dataclass
class Actor:
    """A policy with the parameters and statistics it acts with; they are the member's own."""

    policy: Policy
    params: Params
    normalizer: Normalizer
    returns: ReturnScale
    device: torch.device
    standards: dict[str, Standard] | None = None

    @classmethod
    def of(cls, policy: Policy, member: Member) -> "Actor":
        """The members, as they are and will be."""
        return cls(policy, policy.views(member.params), member.normalizer, member.returns, member.params.device)

    def prepared(self) -> "Actor":
        """Who acts faster, and is the same for as long as nobody updates parameters or statistics."""
        return dataclasses.replace(self, params=self.policy.prepared(self.params), standards=self._standards())

    def normalized(self, obs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Standardises the keys that have statistics; [pop, env, *shape] each."""
        known = self._standards() if self.standards is None else self.standards
        return {key: moments.normalize(known[key], x) if key in known else x for key, x in obs.items()}

    def _standards(self) -> dict[str, Standard]:
        return {key: moments.standard(statistics) for key, statistics in self.normalizer.obs.items()}

    def step(
        self, obs: dict[str, Tensor], state: Float[Tensor, "pop env state"], start: Bool[Tensor, "pop env"]
    ) -> Unrolled:
        """Unrolls one step from normalised observations; the time axis of the result has length 1."""
        one_step = {key: x.unsqueeze(1) for key, x in obs.items()}
        return self.policy.unroll(self.params, one_step, state, start.unsqueeze(1))

    def act(
        self, obs: dict[str, Tensor], state: Float[Tensor, "pop env actor"], start: Bool[Tensor, "pop env"]
    ) -> tuple[Float[Tensor, "pop env outputs"], Float[Tensor, "pop env actor"]]:
        """The actor's part of `step` alone: the parameters of the action distribution, and its memory's state."""
        one_step = {key: x.unsqueeze(1) for key, x in obs.items()}
        outputs, state = self.policy.act(self.params, one_step, state, start.unsqueeze(1))
        return outputs.select(1, 0), state

    def predict(self, critic: Float[Tensor, "pop *batch critic"]) -> Float[Tensor, "pop *batch critics atoms"]:
        """Predictions of the return, in the critic's units."""
        return self.policy.predict(self.params, critic)

    def values(self, predictions: Float[Tensor, "pop *batch critics atoms"]) -> Float[Tensor, "pop *batch"]:
        """Predicted mean return, in raw units."""
        return return_scale.denormalize(self.returns, self.policy.critic.value(predictions))


def action_noise(
    policy: Policy, generators: list[torch.Generator], time: int, envs: int, device: torch.device
) -> Float[Tensor, "pop time env dims"]:
    """All the randomness of a rollout's actions in one block, each member's from its own generator."""
    draw = torch.rand if policy.head.noise == "uniform" else torch.randn
    hold = min(policy.head.hold or time, time)
    shape = (math.ceil(time / hold), envs, policy.head.noise_dims)
    noise = to_device(torch.stack([draw(shape, generator=generator) for generator in generators]), device)
    return noise if hold == 1 else noise.repeat_interleave(hold, dim=1)[:, :time]
