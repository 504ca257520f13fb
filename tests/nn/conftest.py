"""The four population laws, for any function of stacked parameters and inputs."""

import pytest
import torch

from popgraft import tree
from popgraft.nn.blocks import initialise


def _run(block, params, *inputs):
    """Outputs, and the gradient of their squared sum in every parameter."""
    params = tree.map(lambda p: p.detach().clone().requires_grad_(), params)
    y = block(params, *inputs)
    leaves = [leaf for _, leaf in tree.items(params)]
    return [y.detach(), *torch.autograd.grad(y.square().sum(), leaves, materialize_grads=True)]


def _check_laws(block, params, *inputs, atol=1e-12):
    """`block(params, *inputs)` of three members: singles, isolation, permutation, graft."""
    trees = (params, *inputs)
    whole = _run(block, *trees)
    assert all(len(leaf) == 3 for leaf in whole)
    singles = [_run(block, *(tree.slice(t, m, m + 1) for t in trees)) for m in range(3)]
    for stacked, *parts in zip(whole, *singles, strict=True):
        torch.testing.assert_close(stacked, torch.cat(parts), atol=atol, rtol=0)

    disturbed = tree.map(torch.clone, params)
    tree.map(lambda p: p[1].fill_(float("nan")), disturbed)
    after = _run(block, disturbed, *inputs)
    assert after[0][1].isnan().any()
    for a, b in zip(whole, after, strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])

    order = torch.tensor([2, 0, 1])
    for a, b in zip(whole, _run(block, *(tree.gather(t, order) for t in trees)), strict=True):
        torch.testing.assert_close(a[order], b, atol=atol, rtol=0)

    own, *grafted_inputs = (tree.gather(t, torch.tensor([0, 0, 2])) for t in trees)
    first = _run(block, own, *grafted_inputs)
    tree.map(lambda p: p[0].zero_(), params)
    for leaf, again in zip(first, _run(block, own, *grafted_inputs), strict=True):
        torch.testing.assert_close(leaf[0], leaf[1], atol=atol, rtol=0)
        assert torch.equal(leaf, again)


@pytest.fixture
def check_laws():
    return _check_laws


@pytest.fixture
def forked():
    """For references that draw from PyTorch's global generator, such as torch.nn.Linear."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        yield


@pytest.fixture
def stacked():
    """Makes perturbed float64 parameters of three members."""

    def make(block, scale=0.3):
        params = initialise(block, [torch.Generator().manual_seed(i) for i in range(3)])
        generator = torch.Generator().manual_seed(99)
        return tree.map(lambda p: p.double() + scale * torch.randn(p.shape, generator=generator).double(), params)

    return make


@pytest.fixture
def normal():
    """Draws float64 normal numbers, always the same."""
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)
