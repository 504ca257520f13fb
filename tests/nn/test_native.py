"""The compiled unroll against torch.nn.LSTM, and what happens where it cannot be compiled."""

import os
import stat

import pytest
import torch

from popgraft import tree
from popgraft.nn.lstm import LSTM
from popgraft.nn.native import native, serves, unroll

POP, N_IN = 3, 5
NAMES = "weight_ih", "weight_hh", "bias"
compiled = pytest.mark.skipif(native().library is None, reason=native().reason)
sizes = pytest.mark.parametrize(
    ("time", "batch", "hidden"), [(6, 4, 64), (1, 1, 16), (5, 9, 48), (3, 7, 80), (4, 2, 128)]
)


def make(time, batch, hidden, scale=1.0):
    """An LSTM in float32, with parameters and inputs that need gradients."""
    lstm, generator = LSTM(N_IN, hidden), torch.Generator().manual_seed(1)
    shapes = {"weight_ih": (4 * hidden, N_IN), "weight_hh": (4 * hidden, hidden), "bias": (4 * hidden,)}
    draw = {name: torch.randn(POP, *shape, generator=generator) / hidden**0.5 for name, shape in shapes.items()}
    x = scale * torch.randn(POP, time, batch, N_IN, generator=generator)
    state = torch.randn(POP, batch, lstm.state_size, generator=generator)
    start = torch.rand(POP, time, batch, generator=generator) < 0.3
    return lstm, {"layer0": draw}, x, state, start


def run(lstm, params, x, state, start):
    """Output, final state, and the gradient of a weighted sum of both in every input."""
    leaves = [
        leaf.detach().clone().requires_grad_() for leaf in (x, state, *(params["layer0"][name] for name in NAMES))
    ]
    named = {"layer0": dict(zip(NAMES, leaves[2:], strict=True))}
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
    assert serves(torch.empty(POP, time, batch, 4 * hidden))
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
def test_stacked_is_a_loop_of_singles_to_the_bit(time, batch, hidden):
    _, params, _, state, start = make(time, batch, hidden)
    gates = torch.randn(POP, time, batch, 4 * hidden, generator=torch.Generator().manual_seed(2))
    weight, keep = params["layer0"]["weight_hh"], start.logical_not().float().unsqueeze(-1)
    h0, c0 = state.split(hidden, dim=-1)
    whole = unroll(gates.clone(), weight, h0, c0, keep)
    for m in range(POP):
        own = [part[m : m + 1] for part in (gates, weight, h0, c0, keep)]
        for stacked, single in zip(whole, unroll(own[0].clone(), *own[1:]), strict=True):
            assert torch.equal(stacked[m : m + 1], single)


@compiled
def test_a_member_that_is_not_finite_stays_so_and_spoils_nobody():
    lstm, params, *given = make(5, 4, 64)
    whole = run(lstm, params, *given)
    for spoilt in (torch.nan, torch.inf):
        broken = tree.map(torch.clone, params)
        broken["layer0"]["weight_hh"][1, 7, 3] = spoilt
        after = run(lstm, broken, *given)
        assert after[0][1].isnan().any()  # an infinite weight times the zero state of a new episode is none either
        for a, b in zip(whole, after, strict=True):
            assert torch.equal(a[[0, 2]], b[[0, 2]])


@compiled
def test_observations_alone_can_be_differentiated():
    lstm, params, x, state, start = make(5, 4, 64)
    expected = run(lstm, params, x, state, start)[2]
    x = x.requires_grad_()
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


def test_what_the_library_does_not_serve():
    assert not serves(torch.empty(1, 1, 1, 4 * 64, dtype=torch.float64))
    assert not serves(torch.empty(1, 1, 1, 4 * 6))


@pytest.mark.parametrize(
    ("variables", "reason"),
    [
        ({"POPGRAFT_NATIVE": "0"}, "POPGRAFT_NATIVE=0"),
        ({"CC": "no-such-compiler"}, "no C compiler; install one"),
        ({"CC": "false"}, "false failed: exit status 1"),
    ],
)
def test_without_a_compiler_pytorch_takes_over(variables, reason, monkeypatch):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = native.__wrapped__()
    assert found.library is None
    assert reason in found.reason


@compiled
def test_it_is_compiled_once_for_the_user_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert native.__wrapped__().library is not None
    (file,) = (tmp_path / "cache" / "popgraft").iterdir()
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    written = file.stat().st_mtime_ns
    assert native.__wrapped__().library is not None
    assert file.stat().st_mtime_ns == written
    assert [*file.parent.iterdir()] == [file]


@compiled
def test_a_cache_that_cannot_be_written_is_no_error(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = native.__wrapped__()
    assert found.library is None
    assert os.fspath(tmp_path) in found.reason
