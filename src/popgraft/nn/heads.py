"""Action heads: the distribution of the policy, one final class per family of action spaces.

A head keeps its distribution as one tensor of outputs [pop, *batch, n_outputs] (logits, or means and what belongs to
them), which a buffer can store. Sampling takes its noise as an argument, so that it can be drawn in one block per seat.
Log-probabilities and entropies are in nats and summed over sub-actions.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import reduce
from typing import Literal

import torch
from jaxtyping import Float, Int, Real
from torch import Tensor
from torch.nn.functional import logsigmoid

from popgraft.errors import ConfigError
from popgraft.nn.blocks import Params
from popgraft.nn.dense import Linear
from popgraft.nn.draws import by_choice, draw
from popgraft.spaces import ActionSpec

HALF_LOG_2PI = 0.5 * math.log(2 * math.pi)


class ActionHead(ABC):
    """Distribution over the actions of one environment.

    Args:
        n_in: features of the latent.
        n_outputs: logits or means.
        noise_dims: noise values per action.
    """

    noise: Literal["uniform", "normal"]
    """Distribution of the noise that `sample` takes: U[0, 1) or N(0, 1)."""
    hold: int | None = 1
    """Steps of a rollout for which a draw of the noise holds; None: all of them."""

    def __init__(self, n_in: int, n_outputs: int, noise_dims: int) -> None:
        self.linear = Linear(n_in, n_outputs, gain=0.01)
        self.n_outputs, self.noise_dims = n_outputs, noise_dims

    def init(self, generator: torch.Generator) -> Params:
        """A nearly uniform or centred policy: small weights, zero bias."""
        return {"linear": self.linear.init(generator)} | self.init_extra()

    def init_extra(self) -> Params:
        """Parameters of one member beside the linear layer's."""
        return {}

    def __call__(self, params: Params, latent: Float[Tensor, "pop *batch n_in"]) -> Float[Tensor, "pop *batch outputs"]:
        """Logits or means."""
        return self.linear(params["linear"], latent)

    @abstractmethod
    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Real[Tensor, "pop *batch dims"]:
        """Draws an action as a function of the noise; it is in range even where outputs are not finite."""

    @abstractmethod
    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Real[Tensor, "pop *batch dims"]:
        """The most likely action."""

    @abstractmethod
    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], action: Real[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Logarithm of the probability, or of the density, of an action."""

    @abstractmethod
    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch"]:
        """Entropy, differential for a density."""

    @abstractmethod
    def kl(
        self,
        params: Params,
        outputs_p: Float[Tensor, "pop *batch outputs"],
        outputs_q: Float[Tensor, "pop *batch outputs"],
    ) -> Float[Tensor, "pop *batch"]:
        """Divergence KL(p ‖ q) of the distributions of two outputs, with the same parameters beside them."""


class Categorical(ActionHead):
    """One softmax per sub-action; their logits lie side by side.

    PyTorch's reductions over a short last axis are several times slower on a CPU than those over the first axis, so all
    of them work on the logits with the choices first.

    Args:
        n_in: features of the latent.
        sizes: choices of every sub-action.
    """

    noise = "uniform"

    def __init__(self, n_in: int, sizes: Sequence[int]) -> None:
        super().__init__(n_in, sum(sizes), len(sizes))
        self.sizes = tuple(sizes)

    def _split(self, outputs: Float[Tensor, "pop *batch outputs"]) -> tuple[Float[Tensor, "_ pop *batch"], ...]:
        """Logits of every sub-action, choices first."""
        return by_choice(outputs, self.sizes)

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Int[Tensor, "pop *batch dims"]:
        """Inverse of the cumulative distribution: the first choice whose cumulative probability exceeds the noise."""
        return draw(outputs, noise, self.sizes)

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Int[Tensor, "pop *batch dims"]:
        """The largest logit of every sub-action."""
        return torch.stack([logits.argmax(0) for logits in self._split(outputs)], dim=-1)

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], action: Int[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Σ log softmax(logits)[action]."""
        choices = action.movedim(-1, 0).split(1)
        pairs = zip(self._split(outputs), choices, strict=True)
        return reduce(torch.add, [logits.log_softmax(0).gather(0, choice) for logits, choice in pairs]).squeeze(0)

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch"]:
        """−Σ p log p."""
        log_p = [logits.log_softmax(0) for logits in self._split(outputs)]
        return -reduce(torch.add, [(each.exp() * each).sum(0) for each in log_p])

    def kl(
        self,
        params: Params,
        outputs_p: Float[Tensor, "pop *batch outputs"],
        outputs_q: Float[Tensor, "pop *batch outputs"],
    ) -> Float[Tensor, "pop *batch"]:
        """Σ p (log p − log q)."""
        log_p, log_q = (
            [logits.log_softmax(0) for logits in self._split(outputs)] for outputs in (outputs_p, outputs_q)
        )
        return reduce(torch.add, [(p.exp() * (p - q)).sum(0) for p, q in zip(log_p, log_q, strict=True)])


class Bernoulli(ActionHead):
    """One independent coin per sub-action; the output is the logit of 1.

    Args:
        n_in: features of the latent.
        dims: number of coins.
    """

    noise = "uniform"

    def __init__(self, n_in: int, dims: int) -> None:
        super().__init__(n_in, dims, dims)

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Int[Tensor, "pop *batch dims"]:
        """1 where the noise falls below the probability."""
        return (noise < outputs.sigmoid()).long()

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Int[Tensor, "pop *batch dims"]:
        """1 where its probability exceeds ½."""
        return (outputs > 0).long()

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], action: Int[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Σ log σ(±logit)."""
        return logsigmoid((2 * action - 1) * outputs).sum(-1)

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *batch"]:
        """Σ −log σ(−x) − x σ(x)."""
        return -torch.addcmul(logsigmoid(-outputs), outputs, outputs.sigmoid()).sum(-1)

    def kl(
        self, params: Params, outputs_p: Float[Tensor, "pop *batch dims"], outputs_q: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """Σ σ(x)(x − y) + log σ(−x) − log σ(−y) of logits x and y."""
        change = logsigmoid(-outputs_p) - logsigmoid(-outputs_q)
        return torch.addcmul(change, outputs_p.sigmoid(), outputs_p - outputs_q).sum(-1)


class DiagonalGaussian(ActionHead):
    """Independent normal distributions; the outputs are the means, the log standard deviations are parameters.

    Args:
        n_in: features of the latent.
        dims: sub-actions.
        log_std_init: initial logarithm of the standard deviations.
    """

    noise = "normal"

    def __init__(self, n_in: int, dims: int, log_std_init: int | float = 0.0) -> None:
        super().__init__(n_in, dims, dims)
        self.log_std_init = log_std_init

    def init_extra(self) -> Params:
        """The same standard deviation for all sub-actions."""
        return {"log_std": torch.full((self.noise_dims,), float(self.log_std_init))}

    @staticmethod
    def _log_std(params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *one dims"]:
        log_std: Tensor = params["log_std"]
        return log_std.view(len(log_std), *(1,) * (outputs.dim() - 2), -1)

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], noise: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch dims"]:
        """mean + std · noise, not clipped to the box."""
        return torch.addcmul(outputs, self._log_std(params, outputs).exp(), noise)

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *batch dims"]:
        """The mean."""
        return outputs

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch dims"], action: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """−½ Σ ((a − mean)/std)² − Σ log std − ½ d log 2π."""
        log_std = self._log_std(params, outputs)
        z = (action - outputs) * (-log_std).exp()
        return -0.5 * z.square().sum(-1) - (log_std.sum(-1) + self.noise_dims * HALF_LOG_2PI)

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch dims"]) -> Float[Tensor, "pop *batch"]:
        """Σ log std + ½ d (1 + log 2π), the same in every state."""
        entropy = self._log_std(params, outputs).sum(-1) + self.noise_dims * (0.5 + HALF_LOG_2PI)
        return entropy.expand(outputs.shape[:-1])

    def kl(
        self, params: Params, outputs_p: Float[Tensor, "pop *batch dims"], outputs_q: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """½ Σ ((mean_p − mean_q)/std)²: the standard deviations are the same."""
        return 0.5 * ((outputs_p - outputs_q) * (-self._log_std(params, outputs_p)).exp()).square().sum(-1)


class StateDependentGaussian(ActionHead):
    """Normal distributions whose noise is a function of the state: generalised state-dependent exploration.

    a = W x + (σ ∘ ε)ᵀ x with the latent x, ε ~ N(0, 1) [n_in, dims] held for some steps, so that the same state meets
    the same noise. As seen by one step, a ~ N(W x, (x²)ᵀ σ² + 1e-6). The latent learns nothing from its variance. The
    outputs are means, standard deviations, and the latent (Raffin et al. 2021, arXiv:2005.05719).

    Args:
        n_in: features of the latent.
        dims: sub-actions.
        log_std_init: initial logarithm of σ.
        hold: steps for which ε holds; None: a whole rollout.
    """

    noise = "normal"

    def __init__(self, n_in: int, dims: int, log_std_init: int | float = 0.0, hold: int | None = None) -> None:
        super().__init__(n_in, dims, n_in * dims)
        self.n_in, self.dims, self.log_std_init, self.hold = n_in, dims, log_std_init, hold
        self.n_outputs = 2 * dims + n_in

    def init_extra(self) -> Params:
        """The same σ for every weight of the noise."""
        return {"log_std": torch.full((self.n_in, self.dims), float(self.log_std_init))}

    def __call__(self, params: Params, latent: Float[Tensor, "pop *batch n_in"]) -> Float[Tensor, "pop *batch outputs"]:
        """Means, standard deviations, and the latent without its gradient."""
        weighed = latent.detach()
        variance = weighed.flatten(1, -2).square() @ params["log_std"].mul(2).exp() + 1e-6
        mean = super().__call__(params, latent)
        return torch.cat([mean, variance.sqrt().view_as(mean), weighed], dim=-1)

    def _split(self, outputs: Float[Tensor, "pop *batch outputs"]) -> tuple[Tensor, Tensor, Tensor]:
        mean, std, latent = outputs.split([self.dims, self.dims, self.n_in], dim=-1)
        return mean, std, latent

    def sample(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], noise: Float[Tensor, "pop *batch weights"]
    ) -> Float[Tensor, "pop *batch dims"]:
        """mean + (σ ∘ ε)ᵀ x, not clipped to the box."""
        mean, _, latent = self._split(outputs)
        sigma: Tensor = params["log_std"].exp().view(len(mean), *(1,) * (mean.dim() - 2), self.n_in, self.dims)
        weights = sigma * noise.unflatten(-1, (self.n_in, self.dims))
        shift: Tensor = (latent.unsqueeze(-2) @ weights).squeeze(-2)
        return mean + shift

    def mode(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch dims"]:
        """The mean."""
        return self._split(outputs)[0]

    def log_prob(
        self, params: Params, outputs: Float[Tensor, "pop *batch outputs"], action: Float[Tensor, "pop *batch dims"]
    ) -> Float[Tensor, "pop *batch"]:
        """−½ Σ ((a − mean)/std)² − Σ log std − ½ d log 2π."""
        mean, std, _ = self._split(outputs)
        return -(0.5 * ((action - mean) / std).square() + std.log()).sum(-1) - self.dims * HALF_LOG_2PI

    def entropy(self, params: Params, outputs: Float[Tensor, "pop *batch outputs"]) -> Float[Tensor, "pop *batch"]:
        """Σ log std + ½ d (1 + log 2π)."""
        return self._split(outputs)[1].log().sum(-1) + self.dims * (0.5 + HALF_LOG_2PI)

    def kl(
        self,
        params: Params,
        outputs_p: Float[Tensor, "pop *batch outputs"],
        outputs_q: Float[Tensor, "pop *batch outputs"],
    ) -> Float[Tensor, "pop *batch"]:
        """Σ log(std_q/std_p) + (std_p² + (mean_p − mean_q)²)/(2 std_q²) − ½."""
        (mean_p, std_p, _), (mean_q, std_q, _) = self._split(outputs_p), self._split(outputs_q)
        ratio = std_p / std_q
        return (0.5 * (ratio.square() + ((mean_p - mean_q) / std_q).square() - 1) - ratio.log()).sum(-1)


def make_head(
    spec: ActionSpec, n_in: int, log_std_init: int | float = 0.0, use_sde: bool = False, hold: int | None = None
) -> ActionHead:
    """The head for an action space.

    Args:
        spec: the action.
        n_in: features of the latent.
        log_std_init: initial logarithm of the standard deviations of a continuous action.
        use_sde: whether a continuous action's noise is a function of the state.
        hold: steps for which that function stays the same; None: a whole rollout.

    Raises:
        ConfigError: state-dependent exploration of an action that is not continuous.
    """
    if use_sde and spec.kind != "box":
        raise ConfigError(f"use_sde=True needs a continuous action, and this one is {spec.kind}; set use_sde: false")
    match spec.kind:
        case "discrete" | "multi_discrete":
            return Categorical(n_in, spec.sizes)
        case "multi_binary":
            return Bernoulli(n_in, spec.dims)
        case "box" if use_sde:
            return StateDependentGaussian(n_in, spec.dims, log_std_init, hold)
        case "box":
            return DiagonalGaussian(n_in, spec.dims, log_std_init)
