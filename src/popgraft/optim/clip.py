"""Gradient clipping within each member."""

from jaxtyping import Float
from torch import Tensor


def clip_gradient_(grad: Float[Tensor, "pop n"], max_norm: Float[Tensor, "pop"]) -> Float[Tensor, "pop"]:
    """Scales each member's gradient to a Euclidean norm of at most `max_norm`, in place.

    The same rule as torch.nn.utils.clip_grad_norm_: g ← g · min(1, max_norm/(‖g‖ + 1e-6)).

    Returns:
        The norms before clipping.
    """
    norm: Tensor = grad.norm(dim=1)
    grad.mul_((max_norm / (norm + 1e-6)).clamp(max=1).unsqueeze(1))
    return norm
