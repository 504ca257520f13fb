"""Compiled layers against torch.nn.LSTM and torch.nn.GRU, with products in float32 and in bfloat16."""

import pytest
import torch

from popgraft import tree
from popgraft.native import native
from popgraft.nn.compiled import rounding_pays, unrolls
from popgraft.nn.gru import GRU
from popgraft.nn.lstm import LSTM
from popgraft.nn.precision import rounded_to

POP, N_IN = 3, 5
NAMES = {LSTM: ("weight_ih", "weight_hh", "bias"), GRU: ("weight_ih", "weight_hh", "bias", "bias_n")}
THEIRS = {LSTM: torch.nn.LSTM, GRU: torch.nn.GRU}
kinds = pytest.mark.parametrize("kind", NAMES)
compiled = pytest.mark.skipif(native().library is None, reason=native().reason)
rounds = pytest.mark.skipif(not native().rounds, reason="the processor does not multiply bfloat16 numbers")
sizes = pytest.mark.parametrize(
    ("time", "batch", "hidden"), [(6, 4, 64), (1, 1, 16), (5, 9, 48), (3, 7, 80), (4, 2, 128)]
)
either = pytest.mark.parametrize("factors", [None, torch.bfloat16], ids=["float32", "bfloat16"])


def make(time, batch, hidden, scale=1.0, n_in=N_IN, kind=LSTM):
    """A memory in float32, with parameters and inputs that need gradients."""
    memory, generator = kind(n_in, hidden), torch.Generator().manual_seed(1)
    rows = memory.matrices * hidden
    shapes = {"weight_ih": (rows, n_in), "weight_hh": (rows, hidden), "bias": (rows,), "bias_n": (hidden,)}
    draw = {name: torch.randn(POP, *shapes[name], generator=generator) / hidden**0.5 for name in NAMES[kind]}
    x = scale * torch.randn(POP, time, batch, n_in, generator=generator)
    state = torch.randn(POP, batch, memory.state_size, generator=generator)
    start = torch.rand(POP, time, batch, generator=generator) < 0.3
    return memory, {"layer0": draw}, x, state, start


def run(memory, params, x, state, start, factors=None):
    """Output, final state, and the gradient of a weighted sum of both in every input."""
    names = NAMES[type(memory)]
    leaves = [
        leaf.detach().clone().requires_grad_() for leaf in (x, state, *(params["layer0"][name] for name in names))
    ]
    named = {"layer0": dict(zip(names, leaves[2:], strict=True))}
    with rounded_to(factors):
        y, final = memory(named, leaves[0], leaves[1], start)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape[1:], generator=generator).to(t.dtype) for t in (y, final)]
    return y, final, *torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), leaves)


def theirs(memory, params, x, state, start, member):
    """The same of one member, by torch.nn in double precision."""
    hidden, kind = memory.n_out, type(memory)
    with torch.random.fork_rng(devices=[]):
        net = THEIRS[kind](x.shape[-1], hidden).double()
    p = {name: leaf[member].double() for name, leaf in params["layer0"].items()}
    net.weight_ih_l0.data, net.weight_hh_l0.data, net.bias_ih_l0.data = p["weight_ih"], p["weight_hh"], p["bias"]
    net.bias_hh_l0.data.zero_()
    if kind is GRU:
        net.bias_hh_l0.data[2 * hidden :] = p["bias_n"]
    x, state = (t[member].double().requires_grad_() for t in (x, state))
    parts = [part[None] for part in state.split(hidden, dim=-1)]
    outputs = []
    for x_t, start_t in zip(x, start[member], strict=True):
        keep = start_t.logical_not().double()[None, :, None]
        parts = [part * keep for part in parts]
        y, after = net(x_t[None], tuple(parts) if kind is LSTM else parts[0])
        parts = list(after) if kind is LSTM else [after]
        outputs.append(y[0])
    y, final = torch.stack(outputs), torch.cat([part[0] for part in parts], dim=-1)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape, generator=generator).double() for t in (y, final)]
    sources = [x, state, net.weight_ih_l0, net.weight_hh_l0, net.bias_ih_l0, net.bias_hh_l0]
    found = torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), sources)
    biases = found[4:5] if kind is LSTM else (found[4], found[5][2 * hidden :])
    return y, final, *found[:4], *biases


@compiled
@kinds
@sizes
def test_equals_torch(time, batch, hidden, kind):
    given = make(time, batch, hidden, kind=kind)
    assert unrolls(hidden)
    found = run(*given)
    for member in range(POP):
        for ours, expected in zip(found, theirs(*given, member), strict=True):
            torch.testing.assert_close(ours[member].double(), expected, atol=1e-5, rtol=1e-5)


@compiled
@kinds
def test_saturated_gates_equal_torch(kind):
    given = make(6, 4, 64, scale=300.0, kind=kind)
    found = run(*given)
    for ours, expected in zip(found[:2], theirs(*given, 0)[:2], strict=True):
        torch.testing.assert_close(ours[0].double(), expected, atol=1e-5, rtol=1e-5)
    assert all(each.isfinite().all() for each in found)


def with_rounded_factors(params, x, state, start, member):
    """Output of one member by the equations, in double precision but for the factors of products."""
    w_ih, w_hh, bias = (params["layer0"][name][member].double() for name in NAMES[LSTM])
    h, c = state[member].double().chunk(2, dim=-1)
    outputs = []
    for x_t, start_t in zip(x[member], start[member], strict=True):
        keep = start_t.logical_not().double().unsqueeze(-1)
        gates = rounded(x_t) @ rounded(w_ih).mT + rounded(h * keep) @ rounded(w_hh).mT + bias
        i, f, g, o = gates.chunk(4, dim=-1)
        c = f.sigmoid() * c * keep + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    return torch.stack(outputs)


def rounded(factor):
    return factor.bfloat16().double()


@rounds
@sizes
@pytest.mark.parametrize("n_in", [N_IN, 6, 32])
def test_factors_are_rounded_sums_are_not(time, batch, hidden, n_in):
    given = make(time, batch, hidden, n_in=n_in)
    found, exact = run(*given, factors=torch.bfloat16)[0], run(*given)[0]
    if hidden < 32:  # too small to be worth it
        assert torch.equal(found, exact)
        return
    for member in range(POP):
        expected = with_rounded_factors(*given[1:], member)
        # Now and then a factor's last digit decides to which side it is rounded.
        assert (found[member] - expected).norm() < 0.1 * (exact[member] - expected).norm()


@compiled
@kinds
@sizes
def test_rounding_changes_little(time, batch, hidden, kind):
    given = make(time, batch, hidden, kind=kind)
    exact, found = run(*given), run(*given, factors=torch.bfloat16)
    for member in range(POP):
        for ours, expected in zip(found, theirs(*given, member), strict=True):
            # A factor is off by 2⁻⁹ of itself at most; sums of many and steps in time keep about that share.
            assert (ours[member] - expected).norm() <= 2**-7 * expected.norm()
    if hidden >= 32 and native().rounds:
        assert all((ours != expected).any() for ours, expected in zip(found, exact, strict=True))


@compiled
@either
@kinds
@sizes
def test_a_step_at_a_time_is_the_whole_to_the_bit(time, batch, hidden, kind, factors):
    """Who acts is exactly who learns: step by step with packed weights, and over time with weights as they are."""
    memory, params, x, state, start = make(time, batch, hidden, kind=kind)
    with torch.no_grad(), rounded_to(factors):
        whole, last = memory(params, x, state, start)
        packed, outputs = memory.prepared(params), []
        for t in range(time):
            y, state = memory(packed, x[:, t : t + 1], state, start[:, t : t + 1])
            outputs.append(y)
    assert "panels" in packed["layer0"]
    assert torch.equal(torch.cat(outputs, dim=1), whole)
    assert torch.equal(state, last)


@compiled
@either
@kinds
@sizes
def test_stacked_is_a_loop_of_singles(time, batch, hidden, kind, factors):
    memory, params, x, state, start = make(time, batch, hidden, kind=kind)
    whole = run(memory, params, x, state, start, factors)
    rounding = 2**-8 if factors else 1e-6  # of a sum whose order is the library's that multiplies
    for m in range(POP):
        own = [tree.slice(part, m, m + 1) for part in (params, x, state, start)]
        y, final, dx, dstate, *dweights = zip(whole, run(memory, *own, factors), strict=True)
        for stacked, single in (y, final, dstate):  # from the loop over time
            assert torch.equal(stacked[m : m + 1], single)
        for stacked, single in (dx, *dweights):
            torch.testing.assert_close(
                stacked[m : m + 1], single, atol=rounding * float(single.abs().max()), rtol=rounding
            )


@compiled
@either
@kinds
def test_a_member_that_is_not_finite_stays_so_and_spoils_nobody(kind, factors):
    memory, params, *given = make(5, 4, 64, kind=kind)
    whole = run(memory, params, *given, factors)
    for spoilt in (torch.nan, torch.inf):
        broken = tree.map(torch.clone, params)
        broken["layer0"]["weight_hh"][1, 7, 3] = spoilt
        after = run(memory, broken, *given, factors)
        assert after[2][1].isnan().any()
        assert after[0][1].isnan().any()  # an infinite weight times the zero state of a new episode is none either
        for a, b in zip(whole, after, strict=True):
            assert torch.equal(a[[0, 2]], b[[0, 2]])


@compiled
@either
@kinds
def test_observations_alone_can_be_differentiated(kind, factors):
    memory, params, x, state, start = make(5, 4, 64, kind=kind)
    expected = run(memory, params, x, state, start, factors)[2]
    x = x.requires_grad_()
    with rounded_to(factors):
        y, final = memory(params, x, state, start)
    generator = torch.Generator().manual_seed(5)
    weights = [torch.randn(t.shape[1:], generator=generator) for t in (y, final)]
    (gradient,) = torch.autograd.grad((y * weights[0]).sum() + (final * weights[1]).sum(), x)
    assert torch.equal(gradient, expected)


@compiled
def test_the_same_without_a_gradient():
    memory, params, *given = make(5, 4, 64)
    with torch.no_grad():
        found = memory(params, *given)
    for ours, expected in zip(found, run(memory, params, *given), strict=False):
        assert torch.equal(ours, expected)


@compiled
def test_what_cannot_be_unrolled_here():
    assert not unrolls(6)


@rounds
def test_whether_rounding_pays_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    cache = tmp_path / "popgraft"
    assert not rounding_pays.__wrapped__()  # there is no folder to keep it in
    cache.mkdir()
    found = rounding_pays.__wrapped__()
    (kept,) = cache.iterdir()
    assert kept.read_text() == ("faster" if found else "slower")
    for word in ("slower", "faster"):  # whatever another process has found counts
        kept.write_text(word)
        assert rounding_pays.__wrapped__() == (word == "faster")
