"""What an action is drawn from, as Stable-Baselines3's distributions."""

from jaxtyping import Float
from stable_baselines3.common.distributions import (
    BernoulliDistribution,
    CategoricalDistribution,
    DiagGaussianDistribution,
    Distribution,
    MultiCategoricalDistribution,
)
from torch import Tensor

from popgraft.nn import Params
from popgraft.spaces import ActionSpec


def distribution_of(spec: ActionSpec, head: Params, outputs: Float[Tensor, "batch outputs"]) -> Distribution:
    """The distribution that a head's outputs stand for; choices count from 0, whatever the space's `start` is.

    Args:
        spec: the action.
        head: the head's parameters, of a population of one.
        outputs: what it makes of a latent.
    """
    match spec.kind:
        case "discrete":
            return CategoricalDistribution(spec.sizes[0]).proba_distribution(outputs)
        case "multi_discrete":
            return MultiCategoricalDistribution(list(spec.sizes)).proba_distribution(outputs)
        case "multi_binary":
            return BernoulliDistribution(spec.dims).proba_distribution(outputs)
        case "box":
            mean = outputs[:, : spec.dims]
            state_dependent = outputs.shape[1] > spec.dims  # then standard deviations and the latent follow
            log_std = outputs[:, spec.dims : 2 * spec.dims].log() if state_dependent else head["log_std"][0]
            return DiagGaussianDistribution(spec.dims).proba_distribution(mean, log_std)
