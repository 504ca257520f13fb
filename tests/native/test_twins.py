"""The loops in C beside the same in PyTorch, on numbers and sizes that are not the usual ones."""

import math

import pytest
import torch

from popgraft import native, tree
from popgraft.nn import compiled
from popgraft.nn.blocks import initialise, tanh
from popgraft.nn.gru import GRU
from popgraft.nn.heads import Categorical
from popgraft.nn.lstm import LSTM
from popgraft.ops.returns import discounted_sums, gae
from popgraft.optim import UPGDRule, adam_, initial_adam_state, initial_upgd_state, upgd_

pytestmark = pytest.mark.skipif(native.native().library is None, reason=native.native().reason)
ODD = torch.tensor(
    [0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-6, -9.0, 88.0, -90.0, 1e30, -1e30, math.inf, -math.inf, math.nan]
)
FACTORS = {"usual": 1.0, "denormal": 1e-42, "huge": 1e30, "inf": math.inf, "nan": math.nan}
sizes = pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 16, 17, 31, 67])


@pytest.fixture
def twins(monkeypatch):
    """Asserts that a function finds the same with the compiled loops and without: NaN in the same places too."""

    def check(function, rtol=1e-5, atol=1e-6, same_infinities=True):
        compiled_ = function()
        with monkeypatch.context() as patch:
            patch.setattr(native, "serves", lambda x: False)
            patch.setattr(compiled, "unrolls", lambda x, hidden: False)
            plain = function()
        for ours, expected in zip(compiled_, plain, strict=True):
            if not same_infinities:
                assert torch.equal(ours.isfinite(), expected.isfinite())
                ours, expected = (x.nan_to_num(0, 0, 0) for x in (ours, expected))
            torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol, equal_nan=True)

    return check


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("n", [0, 1, 7, 16, 17, 67])
@pytest.mark.parametrize("offset", [0, 1, 3])
def test_tanh(n, offset, twins):
    x = torch.zeros(n + offset)[offset:].copy_(ODD.repeat(5)[:n])

    def function():
        leaf = x.detach().requires_grad_()
        y = tanh(leaf)
        return y.detach(), *torch.autograd.grad(y, leaf, torch.ones_like(y))

    twins(function)
    torch.testing.assert_close(tanh(x), x.double().tanh().float(), rtol=1e-5, atol=1e-6, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 1, 1), (0, 3, 2), (1, 0, 3), (2, 5, 0), (3, 7, 5), (3, 4, 17)])
def test_sums_over_time(shape, twins):
    pop, _, env = shape
    x, end = draw(1, *shape), draw(2, *shape) < -0.5
    x.view(-1)[::3] = ODD.repeat(10)[: len(x.view(-1)[::3])]
    carry, gamma = draw(3, pop, env), torch.full((pop,), 0.9)
    twins(lambda: discounted_sums(x, end, gamma, carry))
    twins(lambda: discounted_sums(x.mT.contiguous().mT, end, gamma, carry))
    twins(lambda: [gae(x, draw(4, *shape), draw(5, *shape), end, gamma, gamma)])


@sizes
@pytest.mark.parametrize("kind", FACTORS)
@pytest.mark.parametrize("rule", [None, UPGDRule(), UPGDRule(adaptive=False)], ids=["adam", "adaptive", "upgd"])
def test_optimizers(n, kind, rule, twins):
    """The second of three members has gradients of a kind; the third one rests for a step."""
    rates, decays, sigma = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.0, 0.1, 0.2]), torch.tensor([0.01, 0.0, 0.1])

    def function():
        params, found = draw(n, 3, n), {}
        state = initial_adam_state(params) if rule is None else initial_upgd_state(params, [n], rule)
        for step in range(3):
            grad, active = draw(step, 3, n), torch.tensor([True, True, step != 1])
            grad[1] *= FACTORS[kind]
            if rule is None:
                adam_(params, grad, state, rates, active, weight_decay=decays)
            else:
                noise = draw(9 + step, 3, n)
                found = upgd_(params, grad, state, noise, rates, sigma, decays, active, sizes=[n], rule=rule)
        return params, *state.averages.values(), *found.values()

    twins(function, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("sizes", [(2,), (3, 4), (1, 5), (17, 2), (33,)])
@pytest.mark.parametrize("kind", ["usual", "never", "always", "nobody", "nan", "inf", "huge"])
@pytest.mark.parametrize("rows", [0, 1, 5])
def test_draws(sizes, kind, rows, twins):
    """Noise at both ends of its interval: a choice of probability 0 is never drawn, one of probability 1 always."""
    head, logits = Categorical(4, sizes), draw(rows, 1, rows, sum(sizes))
    noise = torch.rand(1, rows, len(sizes), generator=torch.Generator().manual_seed(1))
    noise[:, ::2], noise[:, 1::2] = 0.0, 1 - 2**-24
    last = sum(sizes) - 1
    match kind:
        case "never":
            logits[..., [0, last]] = -math.inf
        case "always":
            logits[..., :last] = -math.inf
        case "nobody":
            logits[:] = -math.inf
        case "nan" | "inf":
            logits[..., last] = float(kind)
        case "huge":
            logits *= 1e30
    twins(lambda: [head.sample({}, logits, noise)])
    if kind == "always":
        assert (head.sample({}, logits, noise)[..., -1] == sizes[-1] - 1).all()


@pytest.mark.parametrize("n_in", [1, 17])
@pytest.mark.parametrize("shape", [(1, 1, 1), (2, 0, 3), (2, 3, 0), (0, 2, 3), (3, 2, 13)])
@pytest.mark.parametrize("where", ["x", "state", "weight_ih", "weight_hh", "bias", "dy"])
@pytest.mark.parametrize("value", [1e-42, math.inf, math.nan])
def test_lstm(n_in, shape, where, value, twins):
    pop, _, batch = shape
    lstm = LSTM(n_in, 16)
    params = initialise(lstm, [torch.Generator().manual_seed(m) for m in range(max(pop, 1))])
    params = tree.map(lambda leaf: leaf[:pop].clone(), params)
    given = {"x": draw(1, *shape, n_in), "state": draw(2, pop, batch, 32), **params["layer0"]}
    given |= {"dy": draw(3, *shape, 16), "dlast": draw(4, pop, batch, 32)}
    given[where].view(-1)[:1] = value
    start = draw(5, *shape) < -0.5

    def function():
        leaves = {name: given[name].clone().requires_grad_() for name in ("x", "state", *params["layer0"])}
        own = {name: leaves[name] for name in params["layer0"]}
        y, last = lstm({"layer0": own}, leaves["x"], leaves["state"], start)
        return y, last, *torch.autograd.grad((y, last), [*leaves.values()], (given["dy"], given["dlast"]))

    twins(function, rtol=1e-4, atol=1e-5, same_infinities=False)


def test_nothing_happens_in_no_time():
    gru, state = GRU(3, 5), draw(1, 2, 4, 5)
    params = initialise(gru, [torch.Generator().manual_seed(m) for m in range(2)])
    y, last = gru(params, torch.empty(2, 0, 4, 3), state, torch.empty(2, 0, 4, dtype=torch.bool))
    assert y.shape == (2, 0, 4, 5)
    assert torch.equal(last, state)
