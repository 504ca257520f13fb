"""Products with rounded factors, against the same products in float64."""

import pytest
import torch

from popgraft import tree
from popgraft.nn.gru import GRU
from popgraft.nn.lstm import LSTM
from popgraft.nn.precision import affine, rounded_to

POP, ROWS, N_IN, N_OUT = 3, 40, 32, 48


def draw(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def gradients(x, weight, bias, dy, factors):
    leaves = [leaf.clone().requires_grad_() for leaf in (x, weight, bias)]
    with rounded_to(factors):
        y = affine(*leaves)
    return y, *torch.autograd.grad((y * dy).sum(), leaves)


def rounded(x):
    return x.bfloat16().double()


def test_factors_are_rounded_sums_are_not():
    x, weight, bias, dy = draw(POP, ROWS, N_IN), draw(POP, N_OUT, N_IN), draw(POP, N_OUT), draw(POP, ROWS, N_OUT)
    y, *found = gradients(x, weight, bias, dy, torch.bfloat16)
    assert torch.equal(y, gradients(x, weight, bias, dy, None)[0])
    expected = rounded(dy) @ rounded(weight), rounded(dy).mT @ rounded(x), dy.double().sum(1)
    for ours, theirs in zip(found, expected, strict=True):
        # Only the result is rounded once more, by half a unit in its last of eight bits.
        torch.testing.assert_close(ours.double(), theirs, rtol=2**-8, atol=1e-4)
    plain = dy.double() @ weight.double()
    assert (found[0] - plain).norm() > 1e-4 * plain.norm()  # the rounding of the factors is seen


def test_a_narrow_layer_is_left_alone():
    x, weight, bias, dy = draw(POP, ROWS, 31), draw(POP, N_OUT, 31), draw(POP, N_OUT), draw(POP, ROWS, N_OUT)
    for ours, theirs in zip(
        gradients(x, weight, bias, dy, torch.bfloat16), gradients(x, weight, bias, dy, None), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_what_is_computed_outside_is_left_alone():
    x, weight, bias, dy = draw(POP, ROWS, N_IN), draw(POP, N_OUT, N_IN), draw(POP, N_OUT), draw(POP, ROWS, N_OUT)
    with pytest.raises(ZeroDivisionError), rounded_to(torch.bfloat16):
        _ = 1 / 0
    ours, weight_gradient = gradients(x, weight, bias, dy, None)[1:3]
    torch.testing.assert_close(ours.double(), dy.double() @ weight.double(), rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(weight_gradient.double(), dy.mT.double() @ x.double(), rtol=1e-5, atol=1e-4)


def test_only_what_is_asked_for():
    x, weight, bias, dy = draw(POP, ROWS, N_IN), draw(POP, N_OUT, N_IN), draw(POP, N_OUT), draw(POP, ROWS, N_OUT)
    whole = gradients(x, weight, bias, dy, torch.bfloat16)[1]
    seen = x.clone().requires_grad_()
    with rounded_to(torch.bfloat16):
        (found,) = torch.autograd.grad((affine(seen, weight, bias) * dy).sum(), seen)
    assert torch.equal(found, whole)


@pytest.mark.parametrize("make", [LSTM, GRU])
def test_memories_in_pytorch_round_the_same_products(make):
    memory, hidden = make(N_IN, 32), 32
    params = tree.stack([memory.init(torch.Generator().manual_seed(m)) for m in range(POP)])
    x, state = draw(POP, 5, 4, N_IN).double(), draw(POP, 4, memory.state_size).double()
    start = draw(POP, 5, 4) < -0.5

    def run(factors):
        leaves = tree.map(lambda leaf: leaf.double().requires_grad_(), params)
        with rounded_to(factors):
            y, _ = memory(leaves, x, state, start)
        named = dict(tree.items(leaves))
        return y, dict(
            zip(named, torch.autograd.grad((y * torch.arange(hidden)).sum(), list(named.values())), strict=True)
        )

    (y, exact), (same, found) = run(None), run(torch.bfloat16)
    assert torch.equal(y, same)
    for name, gradient in found.items():
        error = float((gradient - exact[name]).norm() / exact[name].norm())
        assert error < 2**-7, name
        assert ("weight" in name) == (error > 1e-4), name


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("n_out", [*range(32, 40), 42, 48, 63, 67, 100])
def test_what_is_not_finite_stays_in_its_row_and_member(n_out, value):
    """A kernel that reads past the end of a row meets the next row, or the first one of the next member."""
    x, weight, bias, dy = draw(POP, ROWS, N_IN), draw(POP, n_out, N_IN), draw(POP, n_out), draw(POP, ROWS, n_out)
    sound = gradients(x, weight, bias, dy, torch.bfloat16)
    dy[1, [0, 7, ROWS - 1]] = value
    y, dx, dweight, dbias = gradients(x, weight, bias, dy, torch.bfloat16)
    spoilt = dy.isnan().any(-1) | dy.isinf().any(-1)
    assert torch.equal(y, sound[0])
    assert torch.equal(dx[~spoilt], sound[1][~spoilt])
    assert not dx[spoilt].isfinite().any()
    for ours, expected in ((dweight, sound[2]), (dbias, sound[3])):
        assert torch.equal(ours[[0, 2]], expected[[0, 2]])
        assert not ours[1].isfinite().any()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_and_inputs_that_are_not_finite_stay_in_their_member(value):
    for spoilt in range(POP):
        x, weight, bias, dy = draw(POP, ROWS, N_IN), draw(POP, N_OUT, N_IN), draw(POP, N_OUT), draw(POP, ROWS, N_OUT)
        sound = gradients(x, weight, bias, dy, torch.bfloat16)
        weight[spoilt, 5, 3] = x[spoilt, ROWS - 1, 7] = value
        others = [member for member in range(POP) if member != spoilt]
        found = gradients(x, weight, bias, dy, torch.bfloat16)
        for ours, expected in zip(found, sound, strict=True):
            assert torch.equal(ours[others], expected[others])
        assert not found[1][spoilt].isfinite().all()
        assert not found[2][spoilt].isfinite().all()
