"""Normal noise at a fraction of the price of torch.randn, one generator per member."""

import functools
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

LENGTH = 2**18
"""Places of a ring at which a piece of noise may begin."""

PIECE = 2**16
"""Elements that are read on from one place."""


@functools.cache
def _rings(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two rings of fixed normal numbers of mean 0 and variance ½, with the first `PIECE` of each repeated at its end.

    All frequencies have equal power, so that elements at different places of a ring are uncorrelated.
    """
    normal = torch.randn(2, LENGTH, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    spectrum = torch.fft.rfft(normal)
    spectrum = spectrum / spectrum.abs()
    spectrum[:, 0] = 0  # the mean
    rings = torch.fft.irfft(spectrum, n=LENGTH, norm="ortho") / 2**0.5
    first, second = torch.cat([rings, rings[:, :PIECE]], dim=1).to(device, dtype)
    return first, second


def draw_noise_(out: Float[Tensor, "pop n"], generators: Sequence[torch.Generator]) -> None:
    """Fills `out` with standard normal numbers, row i from generator i.

        ξₖ = aᵢ₊ₖ + bⱼ₊ₖ,  i, j uniform on the places of two fixed rings a, b of normal numbers

    Numbers are read from tables of noise, as in Salimans et al. 2017 (arXiv:1703.03864), section 2.1; every row, and
    every 2¹⁶ elements of a longer one, begin at places of their own. An element is independent of itself in other calls
    and of all other rows, and its distribution function is within 3·10⁻⁴ of the normal one. Elements of a row are
    uncorrelated but not independent: a piece as a whole is one of 2³⁶.

    Args:
        out: contiguous rows to fill.
        generators: one CPU generator per member; all devices see the same draws.
    """
    first, second = _rings(out.dtype, out.device)
    n = out.shape[1]
    for row, generator in zip(out.unbind(), generators, strict=True):
        for start in range(0, n, PIECE):
            piece = row[start : start + PIECE]
            i, j = torch.randint(LENGTH, (2,), generator=generator).tolist()
            torch.add(first[i : i + len(piece)], second[j : j + len(piece)], out=piece)
