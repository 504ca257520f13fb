"""An episode start drops the state, whatever is in it: numbers, infinities, or none."""

import pytest
import torch

from popgraft import tree
from popgraft.native import native
from popgraft.nn.blocks import initialise
from popgraft.nn.compiled import unrolls
from popgraft.nn.ffm import FFM
from popgraft.nn.gru import GRU
from popgraft.nn.lru import LRU
from popgraft.nn.lstm import LSTM
from popgraft.nn.mingru import MinGRU
from popgraft.nn.precision import rounded_to

POP, TIME, BATCH, N_IN = 2, 7, 5, 33
CASES = [
    pytest.param((kind, hidden, layers, factors, compiled), id=f"{name}-{hidden}-{layers}-{precision}")
    for kind, hidden, compiled, name in [
        (LSTM, 16, True, "compiled"),
        (LSTM, 48, True, "compiled"),
        (LSTM, 80, True, "compiled"),
        (LSTM, 6, False, "lstm"),
        (LSTM, 33, False, "lstm"),
        (GRU, 16, True, "compiled gru"),
        (GRU, 6, False, "gru"),
        (GRU, 33, False, "gru"),
        (MinGRU, 16, True, "compiled mingru"),
        (MinGRU, 33, False, "mingru"),
        (LRU, 33, False, "lru"),
        (FFM, 36, False, "ffm"),
    ]
    for layers in (1, 2)
    for factors, precision in ((None, "float32"), (torch.bfloat16, "bfloat16"))
]
not_finite = pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])


@pytest.fixture(params=CASES)
def case(request):
    """A memory in float32 with a precision, its parameters, inputs, a state and no start."""
    kind, hidden, layers, factors, compiled = request.param
    if compiled and native().library is None:
        pytest.skip(native().reason)
    memory, generator = kind(N_IN, hidden, layers), torch.Generator().manual_seed(1)
    assert kind in (LRU, FFM) or unrolls(hidden) == compiled  # these have no compiled form for whole registers
    params = initialise(memory, [torch.Generator().manual_seed(i) for i in range(POP)])
    x = torch.randn(POP, TIME, BATCH, N_IN, generator=generator)
    state = torch.randn(POP, BATCH, memory.state_size, generator=generator)
    return memory, factors, params, x, state, torch.zeros(POP, TIME, BATCH, dtype=torch.bool)


def run(memory, factors, params, x, state, start, spoil=None):
    """Output, last state, and the gradient of a weighted sum of both in inputs, state and every parameter.

    `spoil` says at which step which environment's outputs have a gradient that is none.
    """
    paths = [path for path, _ in tree.items(params)]
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (x, state, *(leaf for _, leaf in tree.items(params)))]
    with rounded_to(factors):
        named = tree.restore(params, dict(zip(paths, leaves[2:], strict=True)))
        y, last = memory(named, leaves[0], leaves[1], start)
    generator = torch.Generator().manual_seed(5)
    grads = [torch.randn(t.shape, generator=generator) for t in (y, last)]
    if spoil:
        grads[0][:, spoil[0], spoil[1]] = torch.nan
    return y, last, *torch.autograd.grad((y, last), leaves, grads)


@not_finite
def test_what_is_dropped_before_the_first_step_leaves_no_trace(case, value):
    *given, x, state, start = case
    start[0, 0, [0, 3]] = start[1, 0, 2] = start[:, 4, 1] = True
    dropped = start[:, 0].unsqueeze(-1)
    found = run(*given, x, state.masked_fill(dropped, value), start)
    for ours, expected in zip(found, run(*given, x, state.masked_fill(dropped, 0), start), strict=True):
        assert expected.isfinite().all()
        assert torch.equal(ours, expected)
    assert not found[3][start[:, 0]].any()


@not_finite
def test_what_arises_within_a_sequence_ends_with_the_episode(case, value):
    *given, x, state, start = case
    start[:, 4, 1] = True
    sound = run(*given, x, state, start)
    state[:, 1] = value
    x[:, 1, 1] = torch.nan
    y, last, dx, dstate, *_ = run(*given, x, state, start)
    assert y[:, 1:4, 1].isnan().all()
    assert torch.equal(y[:, 4:], sound[0][:, 4:])
    assert torch.equal(last, sound[1])
    assert torch.equal(dx[:, 4:], sound[2][:, 4:])
    others = [0, 2, 3, 4]
    for ours, expected in zip((y, dx), (sound[0], sound[2]), strict=True):
        assert torch.equal(ours[:, :, others], expected[:, :, others])
    assert torch.equal(dstate[:, others], sound[3][:, others])


def test_no_gradient_enters_what_is_dropped(case):
    *given, x, state, start = case
    start[:, 3, 1] = start[:, 0, 2] = True
    sound, after = run(*given, x, state, start), run(*given, x, state, start, spoil=(4, 1))
    assert after[2][:, 3:5, 1].isnan().all()
    assert torch.equal(after[2][:, :3], sound[2][:, :3])
    assert torch.equal(after[3], sound[3])
    dstate = run(*given, x, state, start, spoil=(1, 2))[3]
    assert torch.equal(dstate, sound[3])
    assert not dstate[:, 2].any()


@not_finite
def test_who_acts_drops_it_too(case, value):
    memory, factors, params, x, state, start = case
    start[:, 0, 1] = start[0, 2, 3] = True
    with torch.no_grad(), rounded_to(factors):
        sound, prepared, outputs = memory(params, x, state, start), memory.prepared(params), []
        state[:, 1] = value
        for t in range(TIME):
            if t == 2:
                state[0, 3] = value
            y, state = memory(prepared, x[:, t : t + 1], state, start[:, t : t + 1])
            outputs.append(y)
    for ours, expected in zip((torch.cat(outputs, dim=1), state), sound, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
