"""The loops in C beside the same in PyTorch, on numbers and sizes that are not the usual ones."""

import copy
import importlib
import itertools
import math
import pkgutil

import pytest
import torch
from torch.utils import _pytree as pytree

import popgraft.nn
import popgraft.ops
import popgraft.optim
from popgraft import native, tree
from popgraft.config import NetworkConfig
from popgraft.native import DEFINITIONS, definition, library
from popgraft.nn import compiled
from popgraft.nn.blocks import initialise, tanh
from popgraft.nn.gru import GRU
from popgraft.nn.heads.categorical import Categorical
from popgraft.nn.lstm import LSTM
from popgraft.ops.returns import discounted_sums, gae
from popgraft.optim import AdamUpdate, UPGDRule, adam_, initial_upgd_state, upgd, upgd_
from popgraft.spaces import ActionSpec
from popgraft.state import OptimizerState

pytestmark = pytest.mark.skipif(native.native().library is None, reason=native.native().reason)
ODD = torch.tensor(
    [0.0, -0.0, 1e-45, -1e-40, 1e-38, 1e-6, -9.0, 88.0, -90.0, 1e30, -1e30, math.inf, -math.inf, math.nan]
)
FACTORS = {"usual": 1.0, "denormal": 1e-42, "huge": 1e30, "inf": math.inf, "nan": math.nan}
sizes = pytest.mark.parametrize("n", [1, 2, 3, 7, 15, 16, 17, 31, 67])


def draw(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def twins(monkeypatch):
    """Asserts that a function finds the same with the compiled loops and without: NaN in the same places too."""

    def check(function, rtol=1e-5, atol=1e-6, same_infinities=True):
        compiled_ = function()
        with monkeypatch.context() as patch:
            patch.setattr(definition, "serves", lambda x: False)
            plain = function()
        for ours, expected in zip(compiled_, plain, strict=True):
            if not same_infinities:
                assert torch.equal(ours.isfinite(), expected.isfinite())
                ours, expected = (x.nan_to_num(0, 0, 0) for x in (ours, expected))
            torch.testing.assert_close(ours, expected, rtol=rtol, atol=atol, equal_nan=True)

    return check


for room in (popgraft.nn, popgraft.ops, popgraft.optim):
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")


def lstm():
    params = initialise(LSTM(5, 16), [torch.Generator().manual_seed(m) for m in range(3)])["layer0"]
    weights = tuple(params[name].requires_grad_() for name in ("weight_ih", "weight_hh", "bias"))
    x, state = draw(1, 3, 4, 6, 5).requires_grad_(), draw(2, 3, 6, 32).requires_grad_()
    yield x, weights, state, draw(5, 3, 4, 6) < -0.5


def gru():
    params = initialise(GRU(5, 16), [torch.Generator().manual_seed(m) for m in range(3)])["layer0"]
    weights = tuple(params[name].requires_grad_() for name in ("weight_ih", "weight_hh", "bias", "bias_n"))
    x, state = draw(1, 3, 4, 6, 5).requires_grad_(), draw(2, 3, 6, 16).requires_grad_()
    yield x, weights, state, draw(5, 3, 4, 6) < -0.5


def mingru():
    for n_in in (5, 16):
        weights = draw(1, 3, 48, n_in).requires_grad_(), draw(2, 3, 48).requires_grad_()
        x, state = draw(3, 3, 4, 6, n_in).requires_grad_(), draw(4, 3, 6, 16).requires_grad_()
        way = None if n_in == 16 else draw(6, 3, 4, 6, 16).requires_grad_()
        yield x, weights, way, state, draw(5, 3, 4, 6) < -0.5


def scans():
    for pairs, backward, own in itertools.product((False, True), (False, True), ((1, 1), (5, 4))):
        a, start = draw(2, 3, *own, 6).tanh(), draw(3, 3, 5, 4) < -0.5
        yield draw(1, 3, 5, 4, 6), a, start, draw(4, 3, 4, 6), pairs, {"backward": backward}


def optimizer():
    for given in ({}, {"weight_decay": draw(4, 3).abs()}, {"weight_decay": draw(4, 3).abs(), "decoupled": True}):
        params, active = draw(1, 3, 67), torch.tensor([True, False, True])
        state = AdamUpdate((67,), (0.9, 0.999), 1e-8).initial_state(params)
        for step in range(2):
            yield params, draw(2 + step, 3, 67), state, torch.tensor([0.1, 0.2, 0.3]), active, given


def perturbed(stage):
    for rule in (UPGDRule(), UPGDRule(adaptive=False)):
        params, grad = draw(1, 3, 67), draw(2, 3, 67)
        averages = {name: draw(3, 3, 67).abs() for name in initial_upgd_state(params, [67], rule).averages}
        column = torch.full((3,), 0.1)
        own = upgd.begin(torch.tensor([1.0, 3.0, 9.0]), column, column, column, torch.tensor([1.0, 0.0, 1.0]), rule)
        row = column.unsqueeze(1)
        yield (params, grad, averages, *((own, rule) if stage == "track" else (draw(4, 3, 67), row, own, row, rule)))


OURS = {name: forms for name, forms in DEFINITIONS.items() if name.startswith("popgraft.")}
CASES = {
    "popgraft.nn.blocks.tanh_gradient": lambda: [(draw(1, 3, 67), draw(2, 3, 67).tanh())],
    "popgraft.nn.blocks.tanh_of": lambda: [(draw(1, 3, 67).mT,)],
    "popgraft.nn.draws.draw": lambda: [(draw(1, 2, 3, 5, 9), draw(2, 2, 3, 5, 2).sigmoid(), (2, 7))],
    "popgraft.nn.gru.unroll": gru,
    "popgraft.nn.lstm.unroll": lstm,
    "popgraft.nn.mingru.unroll": mingru,
    "popgraft.nn.scan.accumulated": scans,
    "popgraft.ops.returns.accumulated": lambda: [
        (draw(1, 3, 7, 5), draw(2, 3, 7, 5) < -0.5, torch.full((3,), 0.9), draw(3, 3, 5), {"backward": backward})
        for backward in (False, True)
    ],
    "popgraft.optim.adam.adam_": optimizer,
    "popgraft.optim.upgd.move_": lambda: perturbed("move"),
    "popgraft.optim.upgd.track_": lambda: perturbed("track"),
}
"""Arguments for both forms of every definition; a dict at the end is of those with names."""


SCRATCH = {"popgraft.optim.upgd.move_": -1 - len(upgd.Columns._fields) - 2}
"""Which of the tensors that `found` returns is a buffer that the two forms leave differently: the noise."""


def found(form, arguments):
    """All tensors that a call returns or may have written to, and the gradients of what it returns."""
    *given, named = arguments if isinstance(arguments[-1], dict) else (*arguments, {})
    given = copy.deepcopy(given)
    returned = pytree.tree_leaves(form(*given, **named))
    leaves = [x for x in pytree.tree_leaves(given) if isinstance(x, torch.Tensor)]
    inputs = [x for x in leaves if x.requires_grad]
    slopes = torch.autograd.grad(sum(y.square().sum() for y in returned), inputs) if inputs else ()
    written = [state for each in given if isinstance(each, OptimizerState) for _, state in tree.items(each)]
    return [*returned, *leaves, *written, *slopes]


def size(found):
    """The largest magnitude in a tensor, 1 at least."""
    is_empty = not isinstance(found, torch.Tensor) or not found.numel()
    return 1.0 if is_empty or not found.is_floating_point() else max(1.0, found.abs().max().item())


@pytest.mark.parametrize("name", OURS)
def test_both_forms_of_every_definition_find_the_same(name):
    forms = OURS[name]
    for arguments in CASES[name]():
        pairs = [*zip(found(forms.fast, arguments), found(forms.plain, arguments), strict=True)]
        if name in SCRATCH:
            del pairs[SCRATCH[name]]
        for ours, expected in pairs:
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5 * size(expected))  # sums may cancel


def test_every_function_of_the_library_is_reached(monkeypatch):
    """Through the compiled forms above, or as what prepares their arguments."""
    called = set()

    def spy(name, *given):
        called.add(name)
        library.call(name, *given)

    monkeypatch.setattr(native, "call", spy)
    monkeypatch.setattr(compiled, "call", spy)
    for name, forms in OURS.items():
        for arguments in CASES[name]():
            found(forms.fast, arguments)
    assert called == set(library.FUNCTIONS)


@pytest.mark.parametrize("name", OURS)
def test_what_the_library_cannot_do_is_left_to_the_definition(name, monkeypatch):
    """In double precision, on PyTorch's device without numbers, and while a graph is traced."""
    monkeypatch.setattr(OURS[name], "fast", lambda *given, **named: pytest.fail("compiled"))
    for arguments in CASES[name]():
        for precise in (lambda x: x.double() if x.is_floating_point() else x, lambda x: x.to("meta")):
            found(OURS[name], tree_map(precise, arguments))
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            found(OURS[name], arguments)


def tree_map(change, arguments):
    own = [tree.map(change, each) if isinstance(each, OptimizerState) else each for each in arguments]

    def changed(x):
        return change(x.detach()).requires_grad_(x.requires_grad) if isinstance(x, torch.Tensor) else x

    return pytree.tree_map(changed, own)


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
        state = (
            AdamUpdate((67,), (0.9, 0.999), 1e-8).initial_state(params)
            if rule is None
            else initial_upgd_state(params, [n], rule)
        )
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
    head = Categorical(4, ActionSpec("multi_discrete", sizes=sizes), NetworkConfig())
    logits = draw(rows, 1, rows, sum(sizes))
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
