"""What an action is drawn from, as Stable-Baselines3's distributions."""

from collections.abc import Callable

from jaxtyping import Float
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from torch import Tensor

from popgraft.errors import ConfigError
from popgraft.nn import ActionHead, Params
from popgraft.nn.heads.bernoulli import Bernoulli
from popgraft.nn.heads.categorical import Categorical
from popgraft.nn.heads.gaussian import DiagonalGaussian
from popgraft.nn.heads.state_dependent import StateDependentGaussian
from popgraft.spaces import ActionSpec


def _choices(spec: ActionSpec, params: Params, outputs: Tensor) -> Distribution:
    if spec.kind == "discrete":
        return CategoricalDistribution(spec.sizes[0]).proba_distribution(outputs)
    return MultiCategoricalDistribution(list(spec.sizes)).proba_distribution(outputs)


def _coins(spec: ActionSpec, params: Params, outputs: Tensor) -> Distribution:
    return BernoulliDistribution(spec.dims).proba_distribution(outputs)


def _normal(spec: ActionSpec, params: Params, outputs: Tensor) -> Distribution:
    return DiagGaussianDistribution(spec.dims).proba_distribution(outputs, params["log_std"][0])


def _state_dependent(spec: ActionSpec, params: Params, outputs: Tensor) -> Distribution:
    mean, std, _ = outputs.split([spec.dims, spec.dims, outputs.shape[1] - 2 * spec.dims], dim=1)
    return DiagGaussianDistribution(spec.dims).proba_distribution(mean, std.log())


DISTRIBUTIONS: dict[type[ActionHead], Callable[[ActionSpec, Params, Tensor], Distribution]] = {
    Categorical: _choices,
    Bernoulli: _coins,
    DiagonalGaussian: _normal,
    StateDependentGaussian: _state_dependent,
}
"""Stable-Baselines3's distributions by heads."""


def distribution_of(
    head: ActionHead, spec: ActionSpec, params: Params, outputs: Float[Tensor, "batch outputs"]
) -> Distribution:
    """The distribution that a head's outputs stand for; choices count from 0, whatever the space's `start` is.

    Args:
        head: of the policy.
        spec: the action.
        params: the head's parameters, of a population of one.
        outputs: what it makes of a latent.

    Raises:
        ConfigError: Stable-Baselines3 has no such distribution.
    """
    if type(head) not in DISTRIBUTIONS:
        raise ConfigError(
            f"Stable-Baselines3 has no distribution for the action head {type(head).__name__}; ask "
            "policy.network.head itself, or evaluate_actions for log-probabilities and entropies"
        )
    return DISTRIBUTIONS[type(head)](spec, params, outputs)
