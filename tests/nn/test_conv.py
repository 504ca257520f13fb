"""The population CNN against torch.nn.Conv2d, member by member, and the population laws."""

import pytest
import torch
from torch import nn

from popgraft import tree
from popgraft.errors import ConfigError
from popgraft.nn.conv import CNN

NATURE, SMALL = [(8, 4, 0), (4, 2, 0), (3, 1, 0)], [(3, 1, 1), (3, 2, 1), (3, 2, 1)]
CASES = [((3, 36, 44), NATURE), ((2, 7, 9), SMALL), ((1, 1, 1), SMALL), ((2, 40, 20), SMALL)]


def pixels(*shape):
    return torch.randint(256, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def small_cnn(shape):
    return CNN(shape, widths=(4, 5, 6), n_out=8)


def reference(channels, kernels, params, member):
    layers = []
    for i, (kernel, a, b) in enumerate(zip(kernels, [channels, 4, 5], [4, 5, 6], strict=True)):
        conv = nn.Conv2d(a, b, *kernel)
        conv.weight.data, conv.bias.data = (
            params[f"conv{i}"][name][member].detach().clone() for name in ("weight", "bias")
        )
        layers += [conv, nn.ReLU()]
    weight, bias = (params["dense"][name][member].detach().clone() for name in ("weight", "bias"))
    dense = nn.Linear(weight.shape[1], 8)
    dense.weight.data, dense.bias.data = weight, bias
    return nn.Sequential(*layers, nn.Flatten(), dense, nn.ReLU())


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize(("shape", "kernels"), CASES)
def test_equals_torch_member_by_member(shape, kernels, stacked, normal):
    cnn = small_cnn(shape)
    params = tree.map(lambda p: p.requires_grad_(), stacked(cnn, scale=0.1))
    x, weight = pixels(3, 2, 3, *shape), normal(3, 2, 3, 8)
    y = cnn(params, x)
    leaves = dict(tree.items(params))
    grads = dict(zip(leaves, torch.autograd.grad((y * weight).sum(), list(leaves.values())), strict=True))
    assert y.abs().max() > 0
    for m in range(3):
        net = reference(shape[0], kernels, params, m)
        expected = net(x[m].flatten(0, 1).double() / 255).unflatten(0, (2, 3))
        torch.testing.assert_close(y[m], expected, atol=1e-10, rtol=0)
        (expected * weight[m]).sum().backward()
        for name, layer in (("conv0", net[0]), ("conv1", net[2]), ("conv2", net[4]), ("dense", net[7])):
            for part in ("weight", "bias"):
                torch.testing.assert_close(
                    grads[f"{name}.{part}"][m], getattr(layer, part).grad, atol=1e-10, rtol=1e-10
                )


@pytest.mark.usefixtures("forked")
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float64])
def test_raw_pixels_are_convolved_as_they_are(dtype, stacked):
    cnn, x = CNN((2, 7, 9), widths=(4, 5, 6), n_out=8, normalize=False), pixels(3, 2, 2, 7, 9).to(dtype)
    params, kept = stacked(cnn, scale=0.1), x.clone()
    y = cnn(params, x)
    assert torch.equal(x, kept)
    assert y.abs().max() > 0
    for m in range(3):
        torch.testing.assert_close(y[m], reference(2, SMALL, params, m)(x[m].double()), atol=1e-9, rtol=1e-12)


def test_nature_cnn_has_the_published_size():
    params = CNN((4, 84, 84)).init(torch.Generator().manual_seed(0))
    shapes = {path: tuple(leaf.shape) for path, leaf in tree.items(params) if path.endswith("weight")}
    assert shapes == {
        "conv0.weight": (32, 4, 8, 8),
        "conv1.weight": (64, 32, 4, 4),
        "conv2.weight": (64, 64, 3, 3),
        "dense.weight": (512, 3136),
    }


def test_the_activation_is_configurable(stacked):
    relu, tanh = small_cnn((1, 5, 5)), CNN((1, 5, 5), widths=(4, 5, 6), n_out=8, activation="tanh")
    params, x = stacked(relu), pixels(3, 2, 1, 5, 5)
    assert (relu(params, x) >= 0).all()
    assert (tanh(params, x) < 0).any()


def test_the_image_is_left_alone(stacked):
    cnn, x = small_cnn((1, 5, 5)), pixels(3, 2, 1, 5, 5)
    kept = x.clone()
    cnn(stacked(cnn), x)
    assert torch.equal(x, kept)


@pytest.mark.parametrize("shape", [(), (7,), (7, 7), (3, 0, 7), (1, 3, 7, 7)])
def test_a_shape_that_is_not_an_image_is_refused(shape):
    with pytest.raises(ConfigError, match=r"needs \(channels, height, width\).*encoder: mlp"):
        CNN(shape)


@pytest.mark.parametrize("shape", [(2, 7, 7), (1, 36, 36)])
def test_population_laws(shape, stacked, check_laws):
    cnn = small_cnn(shape)
    check_laws(cnn, stacked(cnn, scale=0.1), pixels(3, 4, *shape), atol=1e-10)
