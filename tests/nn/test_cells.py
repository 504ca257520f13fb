"""Memories whose recurrence is a scan, against loops over time and members written out here."""

import pytest
import torch

from popgraft import ConfigError, tree
from popgraft.config import NetworkConfig
from popgraft.config.network import MEMORIES
from popgraft.nn import Policy
from popgraft.nn.blocks import initialise
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

POP, TIME, BATCH, HIDDEN = 3, 7, 4, 16


def mingru(params, x, h, start):
    """One layer of one member: x [time, batch, n_in], h [batch, hidden]."""
    outputs = []
    carried = params.get("carried")
    for x_t, start_t in zip(x, start, strict=True):
        h = torch.where(start_t.unsqueeze(-1), 0.0, h)
        z, p, n = (x_t @ params["weight_ih"].mT + params["bias"]).chunk(3, dim=-1)
        z, p = z.sigmoid(), p.sigmoid()
        h = (1 - z) * h + z * n
        way = x_t if carried is None else x_t @ carried["weight"].mT + carried["bias"]
        outputs.append(way + p * (h - way))
    return torch.stack(outputs), h


def summed(u, factor, h, start):
    """hₜ = Σₖ factorᵗ⁻ᵏ uₖ over the steps k of an episode, in complex numbers, and factorᵗ⁺¹ h where none has begun."""
    states = []
    for t in range(len(u)):
        found = []
        for e in range(u.shape[1]):
            begun = [k for k in range(t + 1) if start[k, e]]
            first = begun[-1] if begun else 0
            own = sum(factor ** (t - k) * u[k, e] for k in range(first, t + 1))
            found.append(own if begun else own + factor ** (t + 1) * h[e])
        states.append(torch.stack(found))
    return torch.stack(states)


def dense(layer, x):
    return x @ layer["weight"].mT + layer["bias"]


def lru(params, x, h, start):
    u = dense(params["carried"], x) if "carried" in params else x
    factor = torch.exp(torch.complex(-params["nu"].exp(), params["theta"].exp()))
    b, c = (torch.complex(*params[name].chunk(2, dim=axis)) for name, axis in (("b", 0), ("c", 1)))
    drive = params["gamma"].exp() * (u.to(b.dtype) @ b.mT)
    states = summed(drive, factor, torch.complex(*h.chunk(2, dim=-1)), start)
    v = torch.nn.functional.gelu((states @ c.conj().mT).real + params["d"] * u)
    value, gate = dense(params["gated"], v).chunk(2, dim=-1)
    return u + value * gate.sigmoid(), torch.cat([states[-1].real, states[-1].imag], dim=-1)


def ffm(params, x, h, start):
    m, n = len(params["alpha"]), h.shape[-1] // 2
    u, kept, skip, gate = dense(params["gates"], x).split([m, m, n, n], dim=-1)
    u = (u * kept.sigmoid()).unsqueeze(-1).expand(*u.shape, n // m).flatten(-2)
    factor = torch.exp(torch.complex(-params["alpha"].abs().unsqueeze(-1), params["omega"].expand(m, -1))).flatten()
    states = summed(u.to(factor.dtype), factor, torch.complex(*h.chunk(2, dim=-1)), start)
    z = dense(params["mixed"], torch.cat([states.real, states.imag], dim=-1))
    z = (z - z.mean(-1, keepdim=True)) / (z.var(-1, correction=0, keepdim=True) + 1e-5).sqrt()
    gate = gate.sigmoid()
    return z * gate + skip * (1 - gate), torch.cat([states[-1].real, states[-1].imag], dim=-1)


CELLS = {"mingru": mingru, "lru": lru, "ffm": ffm}
cells = pytest.mark.parametrize("name", CELLS)


@pytest.fixture
def make(stacked, normal):
    def make(name, layers, n_in=5):
        memory = MEMORIES.load(name)(n_in, HIDDEN, layers)
        x, state = normal(POP, TIME, BATCH, n_in), normal(POP, BATCH, memory.state_size)
        return memory, stacked(memory), x, state, normal(POP, TIME, BATCH) < -0.5

    return make


def reference(name, params, x, state, start):
    """All layers of all members."""
    outputs, last = [], []
    for m in range(len(x)):
        y, own = x[m], []
        states = state[m].chunk(len(params), dim=-1)
        for layer, h in enumerate(states):
            y, h = CELLS[name](tree.map(lambda leaf, m=m: leaf[m], params[f"layer{layer}"]), y, h, start[m])
            own.append(h)
        outputs.append(y)
        last.append(torch.cat(own, dim=-1))
    return torch.stack(outputs), torch.stack(last)


@cells
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("n_in", [5, HIDDEN])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["definition", "compiled"])
def test_equals_a_loop_forward_and_backward(name, layers, n_in, dtype, make, normal):
    memory, params, x, state, start = make(name, layers, n_in)
    weights = normal(POP, TIME, BATCH, HIDDEN), normal(POP, BATCH, memory.state_size)

    def run(form, dtype):
        leaves = [leaf.to(dtype).requires_grad_() for leaf in (x, state, *(leaf for _, leaf in tree.items(params)))]
        paths = [path for path, _ in tree.items(params)]
        named = tree.restore(params, dict(zip(paths, leaves[2:], strict=True)))
        found = form(named, *leaves[:2], start)
        return *found, *torch.autograd.grad(found, leaves, [x.to(dtype) for x in weights])

    rounding = 1e-10 if dtype == torch.float64 else 1e-5
    expected = run(lambda *given: reference(name, *given), torch.float64)
    for ours, theirs in zip(run(memory, dtype), expected, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=rounding, atol=rounding * (1 + float(theirs.detach().abs().max()))
        )


@cells
def test_a_step_at_a_time_is_the_whole(name, make):
    memory, params, x, state, start = make(name, 2)
    whole, last = memory(params, x, state, start)
    prepared, outputs = memory.prepared(params), []
    for t in range(TIME):
        y, state = memory(prepared, x[:, t : t + 1], state, start[:, t : t + 1])
        outputs.append(y)
    torch.testing.assert_close(torch.cat(outputs, dim=1), whole, atol=1e-12, rtol=0)
    torch.testing.assert_close(state, last, atol=1e-12, rtol=0)


@cells
def test_inputs_are_left_alone_and_the_state_is_not_shared(name, make):
    memory, params, x, state, start = make(name, 1)
    for dtype in (torch.float64, torch.float32):
        given = [tree.map(lambda leaf, d=dtype: leaf.to(d), part) for part in (params, x, state)]
        kept = [t.clone() for t in given[1:]]
        y, last = memory(*given, start)
        before = y.clone()
        last.zero_()
        assert torch.equal(y, before)
        assert all(torch.equal(a, b) for a, b in zip(kept, given[1:], strict=True))


@cells
def test_population_laws(name, make, check_laws):
    for part in (0, 1):
        memory, *trees = make(name, 2)
        check_laws(lambda *args, memory=memory, part=part: memory(*args)[part], *trees)


@cells
def test_every_layer_says_where_it_lies_in_the_state(name, make):
    memory, params, x, state, start = make(name, 3)
    _, last = memory(params, x, state, start)
    own = memory.state_size // 3
    assert [part.start for part in memory.hidden_slices] == [0, own, 2 * own]
    assert {part.stop - part.start for part in memory.hidden_slices} == {HIDDEN}
    first = {"layer0": params["layer0"]}
    _, alone = MEMORIES.load(name)(5, HIDDEN)(first, x, state[..., :own], start)
    torch.testing.assert_close(last[..., :own], alone, atol=1e-12, rtol=0)


@cells
def test_members_are_drawn_by_their_own_generators(name):
    memory = MEMORIES.load(name)(5, HIDDEN)
    three = initialise(memory, [torch.Generator().manual_seed(seed) for seed in (1, 2, 1)])
    for path, leaf in tree.items(three):
        assert torch.equal(leaf[0], leaf[2]), path
    assert any(not torch.equal(leaf[0], leaf[1]) for _, leaf in tree.items(three))


def test_eigenvalues_begin_within_the_unit_disk_and_inputs_as_large_as_states():
    layer = MEMORIES.load("lru")(5, 256).init(torch.Generator().manual_seed(0))["layer0"]
    size = (-layer["nu"].exp()).exp()
    assert (size < 1).all()
    assert abs(float(size.square().mean()) - 0.5) < 0.1  # uniform on the disk
    torch.testing.assert_close(layer["gamma"].exp(), (1 - size.square()).sqrt(), atol=1e-5, rtol=1e-4)


def test_a_width_without_angles_is_refused():
    with pytest.raises(ConfigError, match="hidden_size=10 is no multiple of 4, the angles of an ffm; take 12"):
        Policy(
            Spaces({"obs": ObsSpec((3,))}, ActionSpec("discrete", sizes=(2,), start=(0,))),
            NetworkConfig(recurrent="ffm", hidden_size=10),
        )
