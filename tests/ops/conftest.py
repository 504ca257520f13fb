"""The population laws, for functions of [pop, ...] tensors that have no parameters."""

import pytest
import torch

from popgraft import tree


def _check_laws(function, *inputs, atol=1e-12):
    """`function(*inputs)` of three members: singles, isolation, permutation, graft; the first input is differentiated.

    Stacked and single runs reduce the same numbers in the same order up to the kernel's choice of blocks, hence a
    tolerance of float64 rounding; everything else is exact.
    """

    def run(*inputs):
        first = inputs[0].detach().clone().requires_grad_()
        y = function(first, *inputs[1:])
        if not y.requires_grad:
            return [y]
        weight = torch.arange(1, y[0].numel() + 1, dtype=y.dtype).view(y.shape[1:])
        return [y.detach(), *torch.autograd.grad((y * weight).sum(), first)]

    whole = run(*inputs)
    assert len(whole[0]) == 3

    singles = [run(*(tree.slice(x, m, m + 1) for x in inputs)) for m in range(3)]
    for stacked, *parts in zip(whole, *singles, strict=True):
        torch.testing.assert_close(stacked, torch.cat(parts), atol=atol, rtol=0)

    disturbed = inputs[0].clone()
    disturbed[1] = float("nan")
    for before, after in zip(whole, run(disturbed, *inputs[1:]), strict=True):
        assert torch.equal(before[[0, 2]], after[[0, 2]])

    order = torch.tensor([2, 0, 1])
    for before, after in zip(whole, run(*(tree.gather(x, order) for x in inputs)), strict=True):
        torch.testing.assert_close(before[order], after, atol=atol, rtol=0)

    for leaf in run(*(tree.gather(x, torch.tensor([0, 0, 2])) for x in inputs)):
        assert torch.equal(leaf[0], leaf[1])


@pytest.fixture
def check_laws():
    return _check_laws


@pytest.fixture
def normal():
    """Draws float64 normal numbers, always the same."""
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
