"""Weights that a graft between models of other libraries renews; each model draws its initial ones itself."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from popgraft.errors import ConfigError
from popgraft.inheritance import renewed
from popgraft.state import Renewal

METHOD = "initial_parameters"
"""Of a model or its policy: from a seed to freshly drawn initial weights, by the names of the policy's state dict."""


def drawer_of(model: Any) -> Callable[[int], Mapping[str, Tensor]]:
    """What draws a model's initial weights.

    Raises:
        ConfigError: nothing does.
    """
    for owner in (model, getattr(model, "policy", None)):
        found = getattr(owner, METHOD, None)
        if callable(found):
            return found  # type: ignore[no-any-return]
    raise ConfigError(
        f"graft_shrink and graft_perturb mix inherited weights with freshly drawn ones, which a {type(model).__name__} "
        f"cannot draw; give it or its policy a method {METHOD}(seed) that returns them by the names of the policy's "
        "state dict, or leave both settings out"
    )


def renew(model: Any, weights: Mapping[str, Any], renewal: Renewal, seed: int) -> dict[str, Any]:
    """A donor's weights as its heir gets them; what is not drawn at birth, such as statistics, is the donor's.

    Raises:
        ConfigError: the model draws nothing, or something else than weights of its own.
    """
    new = dict(weights)
    for name, drawn in drawer_of(model)(seed).items():
        own = new.get(name)
        if not (isinstance(own, Tensor) and isinstance(drawn, Tensor) and own.shape == drawn.shape):
            raise ConfigError(
                f"{METHOD}: {name!r} is not a weight of the policy's state dict with its shape; return freshly drawn "
                "weights by the names there"
            )
        with torch.no_grad():
            new[name] = renewed(own.unsqueeze(0), drawn.unsqueeze(0), [renewal])[0]
    return new
