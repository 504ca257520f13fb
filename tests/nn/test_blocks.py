"""Layout, activations and initialisation."""

import pytest
import torch

from popgraft import tree
from popgraft.nn.blocks import ACTIVATIONS, Layout, initialise, orthogonal, tanh
from popgraft.nn.dense import MLP


def example(start=0.0):
    matrix, vector = torch.arange(start, start + 6).view(2, 3), torch.arange(start + 6, start + 10)
    return {"b": {"scalar": torch.tensor(start - 1), "matrix": matrix}, "a": vector, "none": torch.zeros(0, 2)}


def test_layout_round_trip():
    members = [example(10.0 * m) for m in range(3)]
    params = tree.stack(members)
    layout = Layout(members[0])
    flat = layout.flatten(params)
    assert layout.size == 1 + 6 + 4
    assert flat.shape == (3, 11)
    back = layout.views(flat)
    for (path, leaf), (other, named) in zip(tree.items(params), tree.items(back), strict=True):
        assert path == other
        assert torch.equal(leaf, named)
    assert torch.equal(layout.flatten(back), flat)


def test_layout_keeps_save_order():
    layout = Layout(example())
    assert list(layout.shapes) == ["a", "b.matrix", "b.scalar", "none"]
    views = layout.views(torch.arange(11.0).expand(2, 11))
    assert views["a"][1].tolist() == [0, 1, 2, 3]
    assert views["b"]["matrix"][1].tolist() == [[4, 5, 6], [7, 8, 9]]
    assert views["b"]["scalar"].tolist() == [10, 10]


def test_layout_views_share_memory():
    layout = Layout(example())
    flat = torch.zeros(2, layout.size)
    layout.views(flat)["b"]["matrix"][1] = 1
    assert flat.sum() == 6
    assert flat[0].sum() == 0


def test_layout_gradient_is_flat():
    layout = Layout(example())
    flat = torch.ones(2, layout.size, requires_grad=True)
    views = layout.views(flat)
    loss = (
        2 * views["a"].sum()
        + (views["b"]["matrix"] * torch.arange(6.0).view(2, 3)).sum()
        + 7 * views["b"]["scalar"].sum()
    )
    (grad,) = torch.autograd.grad(loss, flat)
    assert grad.tolist() == [[2, 2, 2, 2, 0, 1, 2, 3, 4, 5, 7]] * 2


def test_tanh_equals_torch():
    x = torch.linspace(-30, 30, 1001, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(tanh(x), torch.tanh(x), atol=1e-14, rtol=0)
    (ours,) = torch.autograd.grad(tanh(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(torch.tanh(x).square().sum(), x)
    torch.testing.assert_close(ours, theirs, atol=1e-14, rtol=0)
    assert torch.autograd.gradcheck(tanh, (torch.linspace(-3, 3, 9, dtype=torch.float64, requires_grad=True),))


@pytest.mark.parametrize("n", [1, 15, 16, 1000])
def test_tanh_in_single_precision_equals_torch(n):
    x = torch.linspace(-20, 20, n).requires_grad_()
    torch.testing.assert_close(tanh(x), torch.tanh(x), atol=2e-7, rtol=0)
    (ours,) = torch.autograd.grad(tanh(x).square().sum(), x)
    (theirs,) = torch.autograd.grad(torch.tanh(x).square().sum(), x)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=0)
    across = torch.randn(5, n, generator=torch.Generator().manual_seed(1)).T
    torch.testing.assert_close(tanh(across), torch.tanh(across), atol=2e-7, rtol=0)


def test_tanh_leaves_its_input_alone_and_passes_infinities_and_nan():
    x = torch.tensor([-torch.inf, -0.5, 0.0, torch.inf, torch.nan])
    kept = x.clone()
    y = tanh(x)
    torch.testing.assert_close(x, kept, equal_nan=True)
    torch.testing.assert_close(y, torch.tanh(x), equal_nan=True)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_by_name(name):
    x = torch.linspace(-4, 4, 41, dtype=torch.float64)
    modules = {
        "tanh": torch.nn.Tanh,
        "relu": torch.nn.ReLU,
        "leaky_relu": torch.nn.LeakyReLU,
        "elu": torch.nn.ELU,
        "silu": torch.nn.SiLU,
        "gelu": torch.nn.GELU,
    }
    module = modules[name]()
    torch.testing.assert_close(ACTIVATIONS[name](x), module(x), atol=1e-14, rtol=0)


@pytest.mark.parametrize(("rows", "columns"), [(3, 5), (5, 3)])
def test_orthogonal(rows, columns):
    weight = orthogonal(rows, columns, 2.0, torch.Generator().manual_seed(0)).double()
    gram = weight @ weight.T if rows < columns else weight.T @ weight
    torch.testing.assert_close(gram, 4 * torch.eye(3, dtype=torch.float64), atol=1e-5, rtol=0)


def test_initialise_depends_on_the_generators_alone():
    block = MLP(3, [4, 2], layer_norm=True)
    state = torch.get_rng_state()
    three = initialise(block, [torch.Generator().manual_seed(i) for i in range(3)])
    assert torch.equal(state, torch.get_rng_state())
    one = initialise(block, [torch.Generator().manual_seed(2)])
    assert torch.equal(three["linear0"]["weight"][2], one["linear0"]["weight"][0])
    assert not torch.equal(three["linear0"]["weight"][0], three["linear0"]["weight"][1])
