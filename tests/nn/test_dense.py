"""Dense layers against torch.nn, member by member, and the population laws."""

import pytest
import torch

from popgraft import tree
from popgraft.nn.dense import MLP, LayerNorm, Linear

BATCHES = [(), (4,), (2, 3)]


def assert_equals_modules(block, params, x, modules):
    """Outputs and all gradients against one torch.nn module per member."""
    params = tree.map(lambda p: p.requires_grad_(), params)
    weight = torch.randn_like(block(params, x))
    leaves = dict(tree.items(params))
    x = x.clone().requires_grad_()
    y = block(params, x)
    dx, *grads = torch.autograd.grad((y * weight).sum(), [x, *leaves.values()])
    for m, module in enumerate(modules):
        own = x[m].detach().clone().requires_grad_()
        expected = module(own)
        torch.testing.assert_close(y[m], expected, atol=1e-12, rtol=0)
        (expected * weight[m]).sum().backward()
        torch.testing.assert_close(dx[m], own.grad, atol=1e-12, rtol=0)
        theirs = dict(module.named_parameters())
        assert len(theirs) == len(leaves)
        for path, grad in zip(leaves, grads, strict=True):
            torch.testing.assert_close(grad[m], theirs[path].grad, atol=1e-12, rtol=0)


def loaded(module, params, member):
    module = module.double()
    with torch.no_grad():
        module.load_state_dict({path: leaf[member] for path, leaf in tree.items(params)})
    return module


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("batch", BATCHES)
def test_linear_equals_torch(batch, stacked, normal):
    block = Linear(5, 4)
    params = stacked(block)
    modules = [loaded(torch.nn.Linear(5, 4), params, m) for m in range(3)]
    assert_equals_modules(block, params, normal(3, *batch, 5), modules)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("batch", BATCHES)
def test_layer_norm_equals_torch(batch, stacked, normal):
    block = LayerNorm(5)
    params = stacked(block)
    modules = [loaded(torch.nn.LayerNorm(5), params, m) for m in range(3)]
    assert_equals_modules(block, params, 3 + 2 * normal(3, *batch, 5), modules)


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("layer_norm", [False, True])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_mlp_equals_torch(batch, layer_norm, activation, stacked, normal):
    block = MLP(5, [4, 6], activation, layer_norm)
    params = stacked(block)
    nonlinearity = torch.nn.Tanh if activation == "tanh" else torch.nn.ReLU

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear0, self.linear1 = torch.nn.Linear(5, 4), torch.nn.Linear(4, 6)
            if layer_norm:
                self.norm0, self.norm1 = torch.nn.LayerNorm(4), torch.nn.LayerNorm(6)

        def forward(self, x):
            x = self.linear0(x)
            x = nonlinearity()(self.norm0(x) if layer_norm else x)
            x = self.linear1(x)
            return nonlinearity()(self.norm1(x) if layer_norm else x)

    assert block.n_out == 6
    assert_equals_modules(block, params, normal(3, *batch, 5), [loaded(Net(), params, m) for m in range(3)])


def test_mlp_without_layers_is_the_identity(normal):
    block = MLP(5, [])
    x = normal(3, 2, 5)
    assert block.n_out == 5
    assert block.init(torch.Generator()) == {}
    assert torch.equal(block({}, x), x)


def test_linear_takes_an_input_that_is_not_contiguous(stacked, normal):
    block = Linear(5, 4)
    params, x = stacked(block), normal(3, 5, 2, 6)
    expected = block(params, x.permute(0, 2, 3, 1).contiguous())
    torch.testing.assert_close(block(params, x.permute(0, 2, 3, 1)), expected, atol=1e-14, rtol=0)


@pytest.mark.parametrize(
    "block", [Linear(5, 4), LayerNorm(5), MLP(5, [4, 3], layer_norm=True)], ids=lambda b: type(b).__name__
)
def test_population_laws(block, stacked, normal, check_laws):
    check_laws(block, stacked(block), normal(3, 2, 4, 5))
