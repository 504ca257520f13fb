"""The linear recurrence against a loop, in complex numbers where they are pairs."""

import pytest
import torch

from popgraft.nn.scan import scan

POP, BATCH, N = 2, 3, 4


def loop(b, a, start, state, pairs):
    """h of every step, and the last, one step after the other under autograd."""

    def numbers(x):
        return torch.complex(*x.chunk(2, dim=-1)) if pairs else x

    h, found = numbers(state), []
    for t in range(b.shape[1]):
        h = torch.where(start[:, t].unsqueeze(-1), torch.zeros_like(h), h)
        h = numbers(a[:, t if a.shape[1] > 1 else 0]) * h + numbers(b[:, t])
        found.append(torch.cat([h.real, h.imag], dim=-1) if pairs else h)
    return torch.stack(found, dim=1), found[-1]


@pytest.mark.parametrize("time", [1, 2, 7, 8, 21])
@pytest.mark.parametrize("pairs", [False, True], ids=["real", "complex"])
@pytest.mark.parametrize("fixed", [False, True], ids=["every step", "fixed"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["definition", "compiled"])
def test_equals_a_loop_forward_and_backward(time, pairs, fixed, dtype, normal):
    own = (1, 1) if fixed else (time, BATCH)
    b, a, state = normal(POP, time, BATCH, N), normal(POP, *own, N), normal(POP, BATCH, N)
    start = normal(POP, time, BATCH) < -0.5
    weights = normal(POP, time, BATCH, N), normal(POP, BATCH, N)

    def run(form, dtype):
        leaves = [x.to(dtype).requires_grad_() for x in (b, a, state)]
        found = form(*leaves[:2], start, leaves[2], pairs)
        return *found, *torch.autograd.grad(found, leaves, [x.to(dtype) for x in weights])

    exact = dtype == torch.float64
    for ours, expected in zip(run(scan, dtype), run(loop, torch.float64), strict=True):
        rounding = 1e-11 if exact else 1e-5
        torch.testing.assert_close(
            ours.double(), expected, rtol=rounding, atol=rounding * (1 + float(expected.detach().abs().max()))
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["definition", "compiled"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_reset_hides_whatever_was_before(dtype, value, normal):
    b, a, state = (normal(*shape).to(dtype) for shape in ((1, 9, 2, N), (1, 9, 2, N), (1, 2, N)))
    start = torch.zeros(1, 9, 2, dtype=torch.bool)
    start[:, 5, 1] = True
    spoilt = [x.clone() for x in (b, a, state)]
    spoilt[0][:, 1, 1], spoilt[1][:, 2, 1], spoilt[1][:, 5, 1], spoilt[2][:, 1] = value, value, value, value
    for pairs in (False, True):
        sound, after = (scan(*given[:2], start, given[2], pairs)[0] for given in ((b, a, state), spoilt))
        assert not after[:, 1:5, 1].isfinite().any()
        assert torch.equal(after[:, 5:, 1], sound[:, 5:, 1])
        assert torch.equal(after[:, :, 0], sound[:, :, 0])


def test_nothing_happens_in_no_time(normal):
    state = normal(POP, BATCH, N).float()
    none = torch.empty(POP, 0, BATCH, N)
    h, last = scan(none, none, none[..., 0] > 0, state)
    assert h.shape == none.shape
    assert torch.equal(last, state)
