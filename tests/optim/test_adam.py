"""The stacked Adam against torch.optim, every member with a learning rate of its own."""

import math

import pytest
import torch

from popgraft import tree
from popgraft.optim import AdamUpdate, adam_

POP, N, STEPS = 3, 11, 20
RATES = torch.tensor([1e-3, 0.05, 0.3]).double()
DECAYS = torch.tensor([0.03, 0.06, 0.09]).double()
EVERYONE = torch.ones(POP, dtype=torch.bool)
ADAM = AdamUpdate((N,), (0.9, 0.999), 1e-8)
either = pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float32], ids=["pytorch", "compiled"]
)  # float32 alone is


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


@either
@pytest.mark.parametrize("decays", [None, DECAYS])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("constants", [{}, {"betas": (0.5, 0.9), "eps": 1e-3}])
def test_equals_torch_member_by_member(decays, decoupled, constants, dtype, normal):
    atol = 1e-12 if dtype == torch.float64 else 2e-6
    params, grads, rates = normal(POP, N).to(dtype), normal(STEPS, POP, N).to(dtype), RATES.to(dtype)
    grads[:, :, 0] = 0  # the second moment of an idle parameter stays 0
    kind = torch.optim.AdamW if decoupled else torch.optim.Adam
    theirs = [params[m].clone().requires_grad_() for m in range(POP)]
    theirs_decay = [0.0] * POP if decays is None else decays.tolist()
    optimizers = [
        kind([p], lr=float(RATES[m]), weight_decay=theirs_decay[m], **constants) for m, p in enumerate(theirs)
    ]
    state = ADAM.initial_state(params)
    for grad in grads:
        own = None if decays is None else decays.to(dtype)
        adam_(params, grad, state, rates, EVERYONE, weight_decay=own, decoupled=decoupled, **constants)
        for m, optimizer in enumerate(optimizers):
            theirs[m].grad = grad[m].clone()
            optimizer.step()
            torch.testing.assert_close(params[m], theirs[m].detach(), atol=atol, rtol=0)
    for m, optimizer in enumerate(optimizers):
        reference = optimizer.state[theirs[m]]
        torch.testing.assert_close(state.averages["exp_avg"][m], reference["exp_avg"], atol=atol / 2, rtol=0)
        torch.testing.assert_close(state.averages["exp_avg_sq"][m], reference["exp_avg_sq"], atol=atol / 2, rtol=0)
        assert state.step[m] == float(reference["step"]) == STEPS


@pytest.mark.parametrize("beta2", [0.999, 0.9999, 0.0])
@pytest.mark.parametrize("beta1", [0.9, 0.999, 0.0])
@pytest.mark.parametrize("contiguous", [True, False], ids=["compiled", "pytorch"])
def test_first_steps_in_single_precision_are_as_exact_as_in_double(beta1, beta2, contiguous, normal):
    """1 − βᵗ as a difference keeps four digits for β = 0.999, three for 0.9999: errors of 3e-5 and 5e-4 of a step."""
    params = torch.zeros(1, 200) if contiguous else torch.zeros(1, 400)[:, ::2]
    state = ADAM.initial_state(params)
    exact = torch.zeros(200, dtype=torch.float64, requires_grad=True)
    theirs = torch.optim.Adam([exact], lr=1.0, betas=(beta1, beta2))
    for step in range(1, 4):
        grad = normal(1, 200).float()
        exact.grad = grad[0].double()
        theirs.step()
        adam_(params, grad, state, torch.ones(1), EVERYONE[:1], betas=(beta1, beta2))
        torch.testing.assert_close(params[0].double(), exact.detach(), atol=4e-7 * step, rtol=4e-7)


def test_the_first_step_by_hand():
    # m̂ = g and v̂ = g² after one step, so θ moves by α g/(|g| + ε): 0.1 · 3/(3 + 1) and 0.1 · −1/(1 + 1).
    params = torch.tensor([[1.0, 1.0]]).double()
    adam_(
        params,
        torch.tensor([[3.0, -1.0]]).double(),
        ADAM.initial_state(params),
        torch.tensor([0.1]).double(),
        EVERYONE[:1],
        eps=1.0,
    )
    torch.testing.assert_close(params, torch.tensor([[0.925, 1.05]]).double())


@pytest.mark.parametrize("contiguous", [True, False], ids=["compiled", "pytorch"])
def test_rates_of_another_type(contiguous, normal):
    params, grad = normal(POP, 2 * N).float(), normal(POP, N).float()
    params = params[:, :N].clone() if contiguous else params[:, ::2]
    mixed, plain = (ADAM.initial_state(params) for _ in range(2))
    start = params.clone()
    adam_(params, grad, mixed, RATES, EVERYONE, weight_decay=DECAYS)
    found = params.clone()
    params.copy_(start)
    adam_(params, grad, plain, RATES.float(), EVERYONE, weight_decay=DECAYS.float())
    torch.testing.assert_close(found, params)


def test_parameters_need_not_be_contiguous(normal):
    whole, grad = normal(POP, 2 * N).float(), normal(POP, N).float()
    params = whole[:, ::2]
    expected, rest = params.clone(memory_format=torch.contiguous_format), whole[:, 1::2].clone()
    adam_(params, grad, ADAM.initial_state(params), RATES.float(), EVERYONE)
    adam_(expected, grad, ADAM.initial_state(expected), RATES.float(), EVERYONE)
    torch.testing.assert_close(params, expected)
    assert torch.equal(whole[:, 1::2], rest)


@either
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 7.0])
@pytest.mark.parametrize("decoupled", [False, True])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_resting_member_stays_bit_for_bit(garbage, decoupled, steps_before, dtype, normal):
    params, rates = normal(POP, N).to(dtype), RATES.to(dtype)
    state = ADAM.initial_state(params)
    settings = {"weight_decay": DECAYS.to(dtype), "decoupled": decoupled}
    for _ in range(steps_before):
        adam_(params, normal(POP, N).to(dtype), state, rates, EVERYONE, **settings)
    whole = {"params": params, "state": state}
    before = tree.map(torch.clone, whole)
    calm = tree.map(torch.clone, whole)
    grad = normal(POP, N).to(dtype)
    adam_(calm["params"], grad, calm["state"], rates, EVERYONE, **settings)
    grad[1] = garbage
    adam_(params, grad, state, rates, torch.tensor([True, False, True]), **settings)
    for path, leaf in tree.items(whole):
        assert torch.equal(leaf[1], dict(tree.items(before))[path][1])
        assert torch.equal(leaf[[0, 2]], dict(tree.items(calm))[path][[0, 2]])


def test_a_learning_rate_of_zero_moves_nothing(normal):
    params = normal(POP, N)
    before, state = params.clone(), ADAM.initial_state(params)
    adam_(params, normal(POP, N), state, RATES * torch.tensor([1, 0, 1]), EVERYONE, weight_decay=DECAYS, decoupled=True)
    assert torch.equal(params[1], before[1])
    assert (params[0] != before[0]).all()
    assert state.step.tolist() == [1, 1, 1]


def test_population_laws(normal):
    grads = normal(5, POP, N)

    def run(params, grads, rates, members=range(POP)):
        own, state = params.clone(), ADAM.initial_state(params)
        for grad in grads:
            adam_(own, grad, state, rates, torch.ones(len(own), dtype=torch.bool), weight_decay=DECAYS[list(members)])
        return [own, *(leaf for _, leaf in tree.items(state))]

    params = normal(POP, N)
    whole = run(params, grads, RATES)
    singles = [run(params[m : m + 1], grads[:, m : m + 1], RATES[m : m + 1], [m]) for m in range(POP)]
    for stacked, *parts in zip(whole, *singles, strict=True):
        torch.testing.assert_close(stacked, torch.cat(parts), atol=1e-14, rtol=0)  # vectorised tails round on their own
    disturbed, order, parents = grads.clone(), torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2])
    disturbed[2, 1] = math.nan
    for a, b in zip(whole, run(params, disturbed, RATES), strict=True):
        assert torch.equal(a[[0, 2]], b[[0, 2]])
    for a, b in zip(whole, run(params[order], grads[:, order], RATES[order], order.tolist()), strict=True):
        torch.testing.assert_close(a[order], b, atol=1e-14, rtol=0)
    for leaf in run(params[parents], grads[:, parents], RATES[parents], parents.tolist()):
        torch.testing.assert_close(leaf[0], leaf[1], atol=1e-14, rtol=0)
