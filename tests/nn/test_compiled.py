"""The compiled layer against torch.nn.LSTM, with products of the gradient in float32 and in bfloat16."""

import pytest
import torch

from popgraft import tree
from popgraft.native import native
from popgraft.nn import gradient_factors
from popgraft.nn.compiled import unrolls
from popgraft.nn.lstm import LSTM

POP, N_IN = 3, 5
NAMES = "weight_ih", "weight_hh", "bias"
compiled = pytest.mark.skipif(native().library is None, reason=native().reason)
sizes = pytest.mark.parametrize(
    ("time", "batch", "hidden"), [(6, 4, 64), (1, 1, 16), (5, 9, 48), (3, 7, 80), (4, 2, 128)]
)
either = pytest.mark.parametrize("factors", [None, torch.bfloat16], ids=["float32", "bfloat16"])


def make(time, batch, hidden, scale=1.0):
    """An LSTM in float32, with parameters and inputs that need gradients."""
    lstm, generator = LSTM(N_IN, hidden), torch.Generator().manual_seed(1)
    shapes = {"weight_ih": (4 * hidden, N_IN), "weight_hh": (4 * hidden, hidden), "bias": (4 * hidden,)}
    draw = {name: torch.randn(POP, *shape, generator=generator) / hidden**0.5 for name, shape in shapes.items()}
    x = scale * torch.randn(POP, time, batch, N_IN, generator=generator)
    state = torch.randn(POP, batch, lstm.state_size, generator=generator)
    start = torch.rand(POP, time, batch, generator=generator) < 0.3
    return lstm, {"layer0": draw}, x, state, start


def run(lstm, params, x, state, start, factors=None):
    """Output, final state, and the gradient of a weighted sum of both in every input."""
    leaves = [
        leaf.detach().clone().requires_grad_() for leaf in (x, state, *(params["layer0"][name] for name in NAMES))
    ]
    named = {"layer0": dict(zip(NAMES, leaves[2:], strict=True))}
    with gradient_factors(factors):
        y, final = lstm(named, leaves[0], leaves[1], start)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape[1:], generator=generator).to(t.dtype) for t in (y, final)]
    return y, final, *torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), leaves)


def theirs(params, x, state, start, member):
    """The same of one member, by torch.nn.LSTM in double precision."""
    hidden = state.shape[-1] // 2
    with torch.random.fork_rng(devices=[]):
        net = torch.nn.LSTM(N_IN, hidden).double()
    p = {name: leaf[member].double() for name, leaf in params["layer0"].items()}
    for name, value in {
        "weight_ih_l0": p["weight_ih"],
        "weight_hh_l0": p["weight_hh"],
        "bias_ih_l0": p["bias"],
    }.items():
        getattr(net, name).data = value
    net.bias_hh_l0.data.zero_()
    x, state = (t[member].double().requires_grad_() for t in (x, state))
    h, c = (part[None] for part in state.split(hidden, dim=-1))
    outputs = []
    for x_t, start_t in zip(x, start[member], strict=True):
        keep = start_t.logical_not().double()[None, :, None]
        y, (h, c) = net(x_t[None], (h * keep, c * keep))
        outputs.append(y[0])
    y, final = torch.stack(outputs), torch.cat([h[0], c[0]], dim=-1)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator).double() for t in (y, final)]
    sources = [x, state, net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0]
    return y, final, *torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), sources)


@compiled
@sizes
def test_equals_torch(time, batch, hidden):
    given = make(time, batch, hidden)
    assert unrolls(torch.empty(POP, time, batch, N_IN), hidden)
    found = run(*given)
    for member in range(POP):
        for ours, expected in zip(found, theirs(*given[1:], member), strict=True):
            torch.testing.assert_close(ours[member].double(), expected, atol=1e-5, rtol=1e-5)


@compiled
def test_saturated_gates_equal_torch():
    given = make(6, 4, 64, scale=300.0)
    found = run(*given)
    for ours, expected in zip(found[:2], theirs(*given[1:], 0)[:2], strict=True):
        torch.testing.assert_close(ours[0].double(), expected, atol=1e-5, rtol=1e-5)
    assert all(each.isfinite().all() for each in found)


@compiled
@sizes
def test_rounded_factors_change_the_gradient_alone_and_little(time, batch, hidden):
    given = make(time, batch, hidden)
    exact, found = run(*given), run(*given, factors=torch.bfloat16)
    for ours, expected in zip(found[:2], exact[:2], strict=True):
        assert torch.equal(ours, expected)
    for member in range(POP):
        for ours, expected in zip(found[2:], theirs(*given[1:], member)[2:], strict=True):
            # A factor is off by 2⁻⁹ of itself at most; sums of many and steps back in time keep about that share.
            assert (ours[member] - expected).norm() < 2**-7 * expected.norm()
    if hidden >= 32:
        assert all((ours != expected).any() for ours, expected in zip(found[2:], exact[2:], strict=True))


@compiled
@either
@sizes
def test_stacked_is_a_loop_of_singles(time, batch, hidden, factors):
    lstm, params, x, state, start = make(time, batch, hidden)
    whole = run(lstm, params, x, state, start, factors)
    rounding = 2**-8 if factors else 1e-6  # of a sum whose order is the library's that multiplies
    for m in range(POP):
        own = [tree.slice(part, m, m + 1) for part in (params, x, state, start)]
        y, final, dx, dstate, *dweights = zip(whole, run(lstm, *own, factors), strict=True)
        for stacked, single in (y, final, dstate):  # from the loop over time
            assert torch.equal(stacked[m : m + 1], single)
        for stacked, single in (dx, *dweights):
            torch.testing.assert_close(
                stacked[m : m + 1], single, atol=rounding * float(single.abs().max()), rtol=rounding
            )


@compiled
@either
def test_a_member_that_is_not_finite_stays_so_and_spoils_nobody(factors):
    lstm, params, *given = make(5, 4, 64)
    whole = run(lstm, params, *given, factors)
    for spoilt in (torch.nan, torch.inf):
        broken = tree.map(torch.clone, params)
        broken["layer0"]["weight_hh"][1, 7, 3] = spoilt
        after = run(lstm, broken, *given, factors)
        assert after[2][1].isnan().any()
        assert after[0][1].isnan().any()  # an infinite weight times the zero state of a new episode is none either
        for a, b in zip(whole, after, strict=True):
            assert torch.equal(a[[0, 2]], b[[0, 2]])


@compiled
@either
def test_observations_alone_can_be_differentiated(factors):
    lstm, params, x, state, start = make(5, 4, 64)
    expected = run(lstm, params, x, state, start, factors)[2]
    x = x.requires_grad_()
    with gradient_factors(factors):
        y, final = lstm(params, x, state, start)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape[1:], generator=generator) for t in (y, final)]
    (gradient,) = torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), x)
    assert torch.equal(gradient, expected)


@compiled
def test_the_same_without_a_gradient():
    lstm, params, *given = make(5, 4, 64)
    with torch.no_grad():
        found = lstm(params, *given)
    for ours, expected in zip(found, run(lstm, params, *given), strict=False):
        assert torch.equal(ours, expected)


@compiled
def test_what_cannot_be_unrolled_here():
    assert not unrolls(torch.empty(1, 1, 1, N_IN, dtype=torch.float64), 64)
    assert not unrolls(torch.empty(1, 1, 1, N_IN), 6)
