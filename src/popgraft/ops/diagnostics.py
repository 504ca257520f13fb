"""Numbers that show whether a recurrent state is alive: neither stuck at zero nor saturated."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor


def recurrent_statistics(
    carry: Float[Tensor, "pop env state"], parts: Mapping[str, slice]
) -> dict[str, Float[Tensor, "pop"]]:
    """Size and spread of every recurrent layer's hidden state h.

        norm = E_env ‖h‖₂,   mean = E h,   std = √E (h − mean)²   over environments and units

    Args:
        carry: recurrent state of every environment.
        parts: where each layer's h lies in it, by name; `Policy.hidden_parts`.

    Returns:
        `lstm/{part}_norm`, `lstm/{part}_mean` and `lstm/{part}_std` for every part.
    """
    statistics = {}
    for part, where in parts.items():
        hidden = carry[..., where]
        statistics[f"lstm/{part}_norm"] = torch.linalg.vector_norm(hidden, dim=-1).mean(1)
        statistics[f"lstm/{part}_mean"] = hidden.mean((1, 2))
        statistics[f"lstm/{part}_std"] = hidden.std((1, 2), correction=0)
    return statistics
