"""What critics are trained on: the mean of their losses over samples and critics, one number per member."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.ops.reduce import mean
from popgraft.tree import wide

SampleLoss = Callable[[Tensor, Tensor], Tensor]
"""Loss of predictions [pop, *batch, atoms] at targets [pop, *batch], per sample: [pop, *batch]."""


def critic_loss(
    sample_loss: SampleLoss,
    predictions: Float[Tensor, "pop *batch critics atoms"],
    target: Float[Tensor, "pop *batch"],
    valid: Float[Tensor, "pop *batch"],
    old: Float[Tensor, "pop *batch critics atoms"] | None = None,
    clip: Float[Tensor, "pop"] | None = None,
) -> Float[Tensor, "pop"]:
    """E[1/C Σ_c max(ℓ(q_c, G), ℓ(q′_c, G))] over C critics and one target G, with clipped predictions

        q′ = q_old + clamp(q − q_old, ±clip)

    so that a step gains nothing by moving a prediction further than `clip` (Schulman et al. 2017, as in the authors'
    code). Every critic is held to its own old predictions. Without `old` the loss is E[1/C Σ_c ℓ(q_c, G)], and so it is
    for a member whose `clip` is infinite.

    Args:
        sample_loss: ℓ.
        predictions: q, normalised units.
        target: G, normalised units.
        valid: 1 for samples that count.
        old: predictions at the time of acting; None turns clipping off.
        clip: largest change of a prediction, normalised units; given with `old`.
    """
    target = target.unsqueeze(-1).expand(predictions.shape[:-1])
    loss = sample_loss(predictions, target)
    if old is not None:
        assert clip is not None, "old predictions come with a clip"
        reach = wide(clip, old)
        loss = torch.maximum(loss, sample_loss(predictions.clamp(old - reach, old + reach), target))
    return mean(loss.mean(-1), valid)
