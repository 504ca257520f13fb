"""Normal draws at half the price of torch.randn, one generator per member."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LEVELS = 2**16
DRAWS_PER_WORD = 4
"""16-bit draws in one 64-bit word of a generator."""


@functools.cache
def _quantiles(dtype: torch.dtype, device: torch.device) -> Tensor:
    """The normal distribution's quantiles at the middle of 2¹⁶ equal shares, scaled to a variance of one."""
    middles = (torch.arange(LEVELS, dtype=torch.float64) + 0.5) / LEVELS
    table: Tensor = torch.special.ndtri(middles)
    return table.div_(table.square().mean().sqrt()).to(dtype).to(device)


def draw_noise_(out: Float[Tensor, "pop n"], generators: Sequence[torch.Generator]) -> None:
    """Fills `out` with independent standard normal numbers, row i from generator i.

        ξ = Φ⁻¹((k + ½)/2¹⁶),  k uniform on 0…2¹⁶−1

    Φ⁻¹ is read from a table. Its distribution function is within 2⁻¹⁷ of the normal one; no draw exceeds 4.2.

    Args:
        out: contiguous rows to fill.
        generators: one CPU generator per member; all devices see the same draws.
    """
    table, n = _quantiles(out.dtype, out.device), out.shape[1]
    words = torch.empty(-(-n // DRAWS_PER_WORD), dtype=torch.int64)
    for row, generator in zip(out, generators, strict=True):
        words.random_(-(2**63), None, generator=generator)
        index = words.view(torch.uint16)[:n].to(out.device).int()
        torch.index_select(table, 0, index, out=row)
