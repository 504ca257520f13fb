"""The stacked UPGD kernels against NumPy transcriptions of the paper's formulas and of its authors' code."""

import math

import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.optim import AdamUpdate, UPGDRule, adam_, initial_upgd_state, upgd_

POP, SIZES, STEPS = 3, [5, 1, 8], 12
N = sum(SIZES)
RATES, SIGMAS, DECAYS = (
    torch.tensor(values, dtype=torch.float64) for values in ([1e-3, 0.05, 0.2], [0.0, 0.01, 0.5], [0.0, 0.1, 0.02])
)
EVERYONE = torch.ones(POP, dtype=torch.bool)
PLAIN, ADAPTIVE = UPGDRule(adaptive=False), UPGDRule(adaptive=True)
RULES = [
    PLAIN,
    ADAPTIVE,
    UPGDRule(adaptive=False, noise_scaling="rms", beta_utility=0.5, utility_gain=2),
    UPGDRule(adaptive=True, noise_scaling="rms", betas=(0.5, 0.9), eps=1e-3),
    UPGDRule(adaptive=False, noise_scaling="l2", noise_beta=0.7),
    UPGDRule(adaptive=True, noise_scaling="l2", noise_beta=0.9, min_noise_std=0.3),
]


@pytest.fixture
def normal():
    generator = torch.Generator().manual_seed(7)
    return lambda *shape: torch.randn(shape, generator=generator, dtype=torch.float64)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def reference(theta, grads, noises, rule, alpha, sigma, decay):
    """One agent, tensor by tensor: the equations as written, nothing reordered."""
    split = np.cumsum(SIZES)[:-1]
    tensors = np.split(theta.copy(), split)
    U, m, v = ([np.zeros_like(x) for x in tensors] for _ in range(3))
    ema = [0.0] * len(SIZES)
    for t, (grad, noise) in enumerate(zip(grads, noises, strict=True), start=1):
        g, xi = np.split(grad, split), np.split(noise, split)
        for i, x in enumerate(tensors):
            U[i] = rule.beta_utility * U[i] + (1 - rule.beta_utility) * (-g[i] * x)
            m[i] = rule.betas[0] * m[i] + (1 - rule.betas[0]) * g[i]
            v[i] = rule.betas[1] * v[i] + (1 - rule.betas[1]) * g[i] ** 2
        corrected = [u / (1 - rule.beta_utility**t) for u in U]
        eta = max(u.max() for u in corrected)
        if eta <= 0:
            eta = max(np.abs(u).max() for u in corrected)
        for i, x in enumerate(tensors):
            s = sigmoid(corrected[i] / eta) if eta > 0 else 0.5
            m_hat, v_hat = m[i] / (1 - rule.betas[0] ** t), v[i] / (1 - rule.betas[1] ** t)
            norm = np.linalg.norm(g[i])
            if rule.noise_beta is not None:
                ema[i] = rule.noise_beta * ema[i] + (1 - rule.noise_beta) * norm
                norm = ema[i] / (1 - rule.noise_beta**t)
            std = {"fixed": sigma, "rms": sigma * norm / math.sqrt(x.size), "l2": sigma * norm}[rule.noise_scaling]
            if rule.noise_scaling != "fixed":
                std = std / (np.sqrt(v_hat.mean()) + rule.eps) if rule.adaptive else std
                std = max(std, rule.min_noise_std)
            d = (m_hat / (np.sqrt(v_hat) + rule.eps) if rule.adaptive else g[i]) + std * xi[i]
            tensors[i] = (1 - alpha * decay) * x - rule.utility_gain * alpha * d * (1 - s)
    return np.concatenate(tensors), np.concatenate(U)


def run(params, grads, noises, rule, rates=RATES, sigmas=SIGMAS, decays=DECAYS, sizes=SIZES):
    own, state = params.clone(), initial_upgd_state(params, sizes, rule)
    everyone = torch.ones(len(params), dtype=torch.bool)
    for grad, noise in zip(grads, noises, strict=True):
        info = upgd_(own, grad, state, noise.clone(), rates, sigmas, decays, everyone, sizes=sizes, rule=rule)
    return {"params": own, "state": state, "info": info}


def assert_trees_close(a, b, rows=slice(None), other=slice(None)):
    theirs = dict(tree.items(b))
    for path, leaf in tree.items(a):
        torch.testing.assert_close(leaf[rows], theirs[path][other], atol=1e-12, rtol=1e-10, msg=path)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_equals_the_formulas_member_by_member(rule, normal):
    params, grads, noises = normal(POP, N), normal(STEPS, POP, N), normal(STEPS, POP, N)
    found = run(params, grads, noises, rule)
    for m in range(POP):
        theta, utility = reference(
            params[m].numpy(), grads[:, m].numpy(), noises[:, m].numpy(), rule, *(float(x[m]) for x in (RATES, SIGMAS, DECAYS))
        )  # fmt: skip
        np.testing.assert_allclose(found["params"][m], theta, rtol=1e-10, atol=1e-12)
        np.testing.assert_allclose(found["state"].averages["utility"][m], utility, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("n", [3, 16, 1000])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_single_precision_follows_the_formulas(rule, n, normal):
    """Compiled, where it can be: rows shorter than a register of the processor, as long, and with a rest."""
    sizes = [n // 3, n - n // 3]
    params, grads, noises = normal(POP, n), normal(STEPS, POP, n), normal(STEPS, POP, n)
    exact = run(params, grads, noises, rule, sizes=sizes)
    rates, sigmas, decays = (x.float() for x in (RATES, SIGMAS, DECAYS))
    found = run(params.float(), grads.float(), noises.float(), rule, rates, sigmas, decays, sizes)
    for path, leaf in tree.items(exact):
        ours = dict(tree.items(found))[path].double()
        torch.testing.assert_close(ours, leaf, atol=1e-5, rtol=1e-4, msg=lambda text, path=path: f"{path}: {text}")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["pytorch", "compiled"])
def test_a_number_that_is_none_is_not_overlooked(dtype, normal):
    """In any place of a row: the largest utility is none then, and neither is a parameter. Others go on."""
    wide = lambda *shape: normal(*shape).to(dtype)  # noqa: E731
    rates, sigmas, decays = (x.to(dtype) for x in (RATES, SIGMAS, DECAYS))
    for place in (0, 15, 16, 40):
        params, grad, noise = wide(POP, 41), wide(1, POP, 41), wide(1, POP, 41)
        calm = run(params, grad, noise, ADAPTIVE, rates, sigmas, decays, [41])["params"]
        grad[0, 1, place] = math.nan
        found = run(params, grad, noise, ADAPTIVE, rates, sigmas, decays, [41])["params"]
        assert found[1].isnan().all()
        assert torch.equal(found[[0, 2]], calm[[0, 2]])


@pytest.mark.parametrize("adaptive", [False, True])
def test_without_memory_of_utility_equals_the_authors_code(adaptive, normal):
    """FirstOrderGlobalUPGD, and AdaptiveUPGD of the paper's RL experiments: gates σ(u/max u), decoupled decay."""
    params, grads, noises = normal(1, N).abs(), normal(STEPS, 1, N), normal(STEPS, 1, N)
    grads[..., 0] = -grads[..., 0].abs()  # a positive utility in every step, without which the authors divide by ≤ 0
    sigma, rule = 0.0 if adaptive else 0.3, UPGDRule(adaptive=adaptive, beta_utility=0.0, utility_gain=2.0, eps=1e-5)
    found = run(params, grads, noises, rule, *(torch.tensor([x], dtype=torch.float64) for x in (1e-3, sigma, 0.01)))
    p, m, v = params[0].numpy().copy(), np.zeros(N), np.zeros(N)
    for t, (g, xi) in enumerate(zip(grads[:, 0].numpy(), noises[:, 0].numpy(), strict=True), start=1):
        scaled = sigmoid((-g * p) / (-g * p).max())
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        first, second = m / (1 - 0.9**t), v / (1 - 0.999**t)
        signal = first * (1 - scaled) / (np.sqrt(second) + 1e-5) if adaptive else g * (1 - scaled)
        p = p * (1 - 1e-3 * 0.01) - 2e-3 * (signal + xi * sigma * (1 - scaled))
    np.testing.assert_allclose(found["params"][0], p, rtol=1e-12)


def test_one_step_by_hand():
    # u = −gθ = (2, −1, 0), η = 2, gates 1 − σ(1), 1 − σ(−½), ½; θ moves by α(g + ξ) times the gate, after decay.
    theta, g, xi = [2.0, 1.0, 0.0], [-1.0, 1.0, 3.0], [1.0, 0.0, -1.0]
    params = torch.tensor([theta]).double()
    info = upgd_(
        params,
        torch.tensor([g]).double(),
        initial_upgd_state(params, [3], PLAIN),
        torch.tensor([xi]).double(),
        *(torch.tensor([x], dtype=torch.float64) for x in (0.1, 0.5, 1.0)),
        EVERYONE[:1],
        sizes=[3],
        rule=PLAIN,
    )
    gates = [0.2689414213699951, 0.6224593312018546, 0.5]
    expected = [0.9 * 2 - 0.1 * -0.5 * gates[0], 0.9 * 1 - 0.1 * 1 * gates[1], -0.1 * 2.5 * gates[2]]
    torch.testing.assert_close(params, torch.tensor([expected]).double())
    assert info["upgd_noise_std"].item() == 0.5
    assert info["upgd_gate_mean"].item() == pytest.approx(sum(gates) / 3)
    assert info["upgd_gate_max"].item() == pytest.approx(gates[1])


def test_from_zero_parameters_the_full_gain_is_adam(normal):
    params, rule = torch.zeros(POP, N).double(), UPGDRule(utility_gain=2.0)
    theirs, grad, none = params.clone(), normal(POP, N), torch.zeros(POP).double()
    state = AdamUpdate((N,), (0.9, 0.999), 1e-8).initial_state(params)
    found = run(params, grad.unsqueeze(0), normal(1, POP, N), rule, sigmas=none, decays=none)
    adam_(theirs, grad, state, RATES, EVERYONE)
    torch.testing.assert_close(found["params"], theirs, atol=1e-13, rtol=0)
    assert (theirs != 0).all()


@pytest.mark.parametrize("sign", ["mixed", "negative", "positive"])
@pytest.mark.parametrize("rule", [PLAIN, ADAPTIVE])
def test_more_useful_parameters_never_step_further(rule, sign, normal):
    theta = normal(1, 200)
    utility = {"mixed": theta, "negative": -theta.abs(), "positive": theta.abs()}[sign]
    params = -utility  # under a gradient of one everywhere, −gθ is the utility and only the gate tells steps apart
    none = torch.zeros(1).double()
    found = run(params, torch.ones(1, 1, 200).double(), normal(1, 1, 200), rule, RATES[:1], none, none, sizes=[200])
    steps = (params - found["params"]).squeeze()[utility.squeeze().argsort()]
    assert (steps > 0).all()
    assert (steps.diff() <= 1e-15).all()
    assert steps[0] > steps[-1] * 1.2


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_no_gradient_at_all_stays_finite(rule, normal):
    params = normal(POP, N)
    found = run(params, torch.zeros(2, POP, N).double(), normal(2, POP, N), rule)
    assert bool(tree.finite(found).all())
    torch.testing.assert_close(found["info"]["upgd_gate_mean"], torch.full((POP,), 0.5).double())


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("averaged", [None, 0.9])
@pytest.mark.parametrize("numel", [64, 4096, 262144])
def test_relative_noise_keeps_its_ratio_to_the_signal(numel, averaged, adaptive):
    rule = UPGDRule(adaptive=adaptive, noise_scaling="rms", noise_beta=averaged, min_noise_std=0.0)
    generator = torch.Generator().manual_seed(1)
    grad, noise = (torch.randn(1, numel, generator=generator) for _ in range(2))
    noise *= math.sqrt(numel) / noise.norm()  # its spread by chance is not under test
    ratios = []
    for scale in (1.0, 0.1, 0.01):
        ends = []
        for sigma in (0.0, 0.05):
            params = torch.zeros(1, numel)
            state = initial_upgd_state(params, [numel], rule)
            upgd_(
                params, grad * scale, state, noise.clone(), *(torch.tensor([x]) for x in (1.0, sigma, 0.0)), EVERYONE[:1],
                sizes=[numel], rule=rule,
            )  # fmt: skip
            ends.append(params)
        ratios.append(float((ends[1] - ends[0]).norm() / ends[0].norm()))
    assert ratios == pytest.approx([0.05] * 3, rel=0.01)


def test_noise_relative_to_the_norm_grows_with_the_tensor(normal):
    params, one, quiet = torch.zeros(1, 400).double(), torch.ones(1).double(), torch.zeros(1).double()
    stds = {}
    for scaling in ("rms", "l2"):
        rule = UPGDRule(adaptive=False, noise_scaling=scaling)
        found = run(params, torch.ones(1, 1, 400).double(), normal(1, 1, 400), rule, one, one, quiet, sizes=[400])
        stds[scaling] = found["info"]["upgd_noise_std"].item()
    assert stds == pytest.approx({"rms": 1.0, "l2": 20.0})


@pytest.mark.parametrize("adaptive", [False, True])
def test_the_floor_comes_last(adaptive, normal):
    rule = UPGDRule(adaptive=adaptive, noise_scaling="rms", min_noise_std=0.25)
    found = run(normal(POP, N), 1e-9 * normal(1, POP, N), normal(1, POP, N), rule, sigmas=torch.zeros(POP).double())
    torch.testing.assert_close(found["info"]["upgd_noise_std"], torch.full((POP,), 0.25).double())


def test_reported_noise_is_the_root_mean_square_over_elements():
    # Norms per root element: tensors of 5, 1, 8 elements with gradients 1, 2, 3 → √((5·1 + 1·4 + 8·9)/14).
    grad = torch.cat(
        [torch.full((1, n), value) for n, value in zip(SIZES, (1.0, 2.0, 3.0), strict=True)], dim=1
    ).double()
    one, rule = torch.ones(1).double(), UPGDRule(adaptive=False, noise_scaling="rms")
    found = run(torch.zeros(1, N).double(), grad.unsqueeze(0), torch.zeros(1, 1, N).double(), rule, one, one, one)
    assert found["info"]["upgd_noise_std"].item() == pytest.approx(math.sqrt(81 / 14))


@pytest.mark.parametrize("rule", RULES, ids=str)
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
@pytest.mark.parametrize("steps_before", [0, 3])
def test_a_resting_member_stays_bit_for_bit(steps_before, garbage, rule, normal):
    params, state = normal(POP, N), initial_upgd_state(normal(POP, N), SIZES, rule)
    step = {"sizes": SIZES, "rule": rule}
    for _ in range(steps_before):
        upgd_(params, normal(POP, N), state, normal(POP, N), RATES, SIGMAS, DECAYS, EVERYONE, **step)
    whole = {"params": params, "state": state}
    before, calm = tree.map(torch.clone, whole), tree.map(torch.clone, whole)
    grad, noise = normal(POP, N), normal(POP, N)
    upgd_(calm["params"], grad, calm["state"], noise.clone(), RATES, SIGMAS, DECAYS, EVERYONE, **step)
    grad[1] = garbage
    upgd_(params, grad, state, noise, RATES, SIGMAS, DECAYS, torch.tensor([True, False, True]), **step)
    for path, leaf in tree.items(whole):
        assert torch.equal(leaf[1], dict(tree.items(before))[path][1]), path
        assert torch.equal(leaf[[0, 2]], dict(tree.items(calm))[path][[0, 2]]), path


@pytest.mark.parametrize("block", [1, 2 * N, 2**18])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_population_laws(rule, block, normal, monkeypatch):
    monkeypatch.setattr("popgraft.optim.upgd.BLOCK", block)
    params, grads, noises = normal(POP, N), normal(4, POP, N), normal(4, POP, N)

    def over(index):
        rows = (RATES[index], SIGMAS[index], DECAYS[index])
        return run(params[index], grads[:, index], noises[:, index], rule, *rows)

    whole = over(torch.arange(POP))
    for m in range(POP):
        assert_trees_close(whole, over(torch.tensor([m])), [m])
    order, parents = torch.tensor([2, 0, 1]), torch.tensor([0, 0, 2])
    assert_trees_close(whole, over(order), order)
    grafted = over(parents)
    assert_trees_close(grafted, grafted, [0], [1])
    assert_trees_close(tree.gather(whole, parents), grafted)
    disturbed = grads.clone()
    disturbed[2, 1] = math.nan
    after = dict(tree.items(run(params, disturbed, noises, rule)))
    for path, leaf in tree.items(whole):
        assert torch.equal(leaf[[0, 2]], after[path][[0, 2]])
