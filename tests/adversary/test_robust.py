"""The robust term against its definition by torch.distributions, its gradient against finite differences, and the laws."""

import math

import pytest
import torch
from torch import distributions

from popgraft import tree
from popgraft.adversary import Adversary, Draws, Sequences
from popgraft.adversary.robust import choose, pick
from popgraft.config import NetworkConfig
from popgraft.config.adversary import AdversaryConfig
from popgraft.errors import ConfigError
from popgraft.nn import Policy
from popgraft.nn.blocks import initialise
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

POP, TIME, BATCH = 3, 5, 4
OBS = {"position": ObsSpec((3,)), "shape": ObsSpec((2, 1))}
ACTIONS = {
    "discrete": ActionSpec("discrete", sizes=(4,), start=(0,)),
    "gaussian": ActionSpec("box", shape=(2,), low=(-1.0, -2.0), high=(1.0, 2.0)),
    "multi_binary": ActionSpec("multi_binary", sizes=(2, 2), start=(0, 0), shape=(2,)),
}
VALUES = {
    "adversarial_epsilon": torch.tensor([0.1, 0.3, 0.2]).double(),
    "adversarial_ratio": torch.tensor([0.5, 1.0, 0.75]).double(),
    "robust_kl_coef": torch.tensor([0.1, 2.0, 1.0]).double(),
    "clip_range": torch.tensor([0.1, 0.2, 0.3]).double(),
}
objectives = pytest.mark.parametrize("objective", ["kl", "surrogate", "value"])


@pytest.fixture(params=[(r, a) for r in ("none", "lstm", "gru") for a in ACTIONS], ids="-".join)
def kind(request):
    return request.param


@pytest.fixture
def make(kind):
    """(adversary, flat parameters, sequences, draws) in double precision; the policy that acted is another one."""
    recurrent, action = kind

    def make(**settings):
        network = NetworkConfig(
            encoder_layers=[6],
            recurrent=recurrent,
            critic_recurrent="none" if recurrent == "none" else "separate",
            hidden_size=5,
            critic="scalar",
        )
        policy = Policy(Spaces(OBS, ACTIONS[action]), network)
        generator = torch.Generator().manual_seed(3)

        def normal(*shape):
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        params = initialise(policy, [torch.Generator().manual_seed(m) for m in range(POP)])
        flat = policy.layout.flatten(params).double()
        flat = flat + 0.5 * normal(*flat.shape)
        obs = {name: normal(POP, TIME, BATCH, *spec.shape) for name, spec in OBS.items()}
        start, state = normal(POP, TIME, BATCH) > 1, normal(POP, BATCH, policy.state_size)
        views = policy.views(flat + 0.1 * normal(*flat.shape))
        outputs = policy.outputs(views, obs, state, start)
        make_noise = torch.rand if policy.head.noise == "uniform" else torch.randn
        noise = make_noise(POP, TIME, BATCH, policy.head.noise_dims, generator=generator, dtype=torch.float64)
        taken = policy.head.sample(views["head"], outputs, noise)
        sequences = Sequences(
            obs=obs,
            action=taken,
            log_prob=policy.head.log_prob(views["head"], outputs, taken),
            advantage=normal(POP, TIME, BATCH),
            start=start,
            valid=(normal(POP, TIME, BATCH) < 1).double(),
            state=state.unsqueeze(1),
        )
        adversary = Adversary(policy, AdversaryConfig(**settings))
        draws = adversary.draw([torch.Generator().manual_seed(50 + m) for m in range(POP)], sequences.valid)
        return adversary, flat, sequences, tree.map(torch.Tensor.double, draws)

    return make


def law(action, policy, params, outputs, m):
    if action == "discrete":
        return distributions.Independent(distributions.Categorical(logits=outputs), 0)
    if action == "multi_binary":
        return distributions.Independent(distributions.Bernoulli(logits=outputs), 1)
    std = params["head"]["log_std"][m].exp()
    return distributions.Independent(distributions.Normal(outputs, std.expand_as(outputs)), 1)


def defined(action, adversary, clean_flat, flat, sequences, draws):
    """κ · mean KL for δ = (2u − 1)ε, the random attack in l∞, by plain loops over members and sequences."""
    policy = adversary.policy
    with torch.no_grad():
        still = policy.views(clean_flat)
        clean = policy.unroll(still, sequences.obs, sequences.state.squeeze(1), sequences.start).outputs
    params = policy.views(flat)
    penalties = []
    for m in range(POP):
        ratio, radius = float(VALUES["adversarial_ratio"][m]), float(VALUES["adversarial_epsilon"][m])
        count = math.ceil(ratio * BATCH - float(draws.offset[m]))
        total, weight = 0, 0
        for slot, b in enumerate(draws.order[m].argsort()[:count].tolist()):
            delta = (2 * draws.start[m, 0, :, slot] - 1) * radius
            position, shape = delta.split([3, 2], dim=-1)
            moved = {"position": position, "shape": shape.reshape(TIME, 2, 1)}
            obs = {name: leaf[:, :, b : b + 1].clone() for name, leaf in sequences.obs.items()}
            for name, change in moved.items():
                obs[name][m, :, 0] += change
            out = policy.unroll(params, obs, sequences.state[:, 0, b : b + 1], sequences.start[:, :, b : b + 1])
            kl = distributions.kl_divergence(
                law(action, policy, still, clean[m, :, b], m), law(action, policy, params, out.outputs[m, :, 0], m)
            )
            total = total + (kl * sequences.valid[m, :, b]).sum()
            weight += float(sequences.valid[m, :, b].sum())
        penalties.append(VALUES["robust_kl_coef"][m] * total / max(weight, 1))
    return torch.stack(penalties)


def test_equals_its_definition_and_its_gradient_finite_differences(kind, make):
    """The clean side is held still in both; were it not, the gradient would be another one."""
    adversary, flat, sequences, draws = make(perturbation={"attack_method": "random"})
    leaf = flat.clone().requires_grad_()
    penalty, _ = adversary.penalty(adversary.policy.views(leaf), sequences, VALUES, draws, 1.0)
    wanted = flat.clone().requires_grad_()
    expected = defined(kind[1], adversary, flat, wanted, sequences, draws)
    torch.testing.assert_close(penalty, expected, atol=1e-12, rtol=1e-9)
    assert (penalty > 1e-6).all()
    (grad,), (theirs,) = (torch.autograd.grad(p.sum(), f) for p, f in ((penalty, leaf), (expected, wanted)))
    torch.testing.assert_close(grad, theirs, atol=1e-12, rtol=1e-7)
    assert (grad.norm(dim=1) > 1e-4).all()
    direction = torch.randn(flat.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    step = 1e-5
    ahead, behind = (
        defined(kind[1], adversary, flat, flat + sign * step * direction, sequences, draws) for sign in (1, -1)
    )
    slope = (grad * direction).sum(1)
    torch.testing.assert_close((ahead - behind) / (2 * step), slope, atol=1e-7, rtol=1e-5)
    ahead, behind = (
        defined(kind[1], adversary, moved, moved, sequences, draws)
        for moved in (flat + step * direction, flat - step * direction)
    )
    assert ((ahead - behind) / (2 * step) - slope).abs().max() > 1e-4


def test_only_the_actor_is_taught(make):
    adversary, flat, sequences, draws = make()
    flat.requires_grad_()
    penalty, _ = adversary.penalty(adversary.policy.views(flat), sequences, VALUES, draws, 1.0)
    (grad,) = torch.autograd.grad(penalty.sum(), flat)
    parts = adversary.policy.views(grad)
    for name, leaf in tree.items(parts):
        assert leaf.any() == (not name.startswith("critic")), name


@pytest.mark.parametrize("method", ["pgd", "fgsm"])
def test_the_attack_finds_more_divergence_than_chance(method, make):
    chance, flat, sequences, draws = make(perturbation={"attack_method": "random"})
    attack, *_ = make(perturbation={"attack_method": method})
    params = chance.policy.views(flat)
    found, random = (a.penalty(params, sequences, VALUES, draws, 1.0)[0] for a in (attack, chance))
    assert (found > 1.2 * random).all()


def test_restarts_find_more_divergence(make):
    """Every sequence gets the strongest of the perturbations that single starting points lead to."""
    adversary, flat, sequences, draws = make(perturbation={"restarts": 4, "attack_method": "fgsm"})
    assert draws.start.shape[:2] == (POP, 4)
    single, *_ = make(perturbation={"attack_method": "fgsm"})
    params, x = adversary.policy.views(flat), adversary.vectors.join(sequences.obs)
    clean = adversary.outputs(params, sequences, x)

    def found(attacker, start):
        delta = attacker._attack(params, sequences, x, clean, VALUES, start)
        return attacker._divergence(params, sequences, clean)(x + delta)

    each = torch.stack([found(single, draws.start[:, i : i + 1]) for i in range(4)])
    torch.testing.assert_close(found(adversary, draws.start), each.amax(0))
    assert (each.argmax(0) > 0).any()


@objectives
def test_the_attack_raises_its_objective_within_the_ball(objective, make):
    """Measured here: PPO's loss by its formula, the change of the value by the network."""
    adversary, flat, sequences, draws = make(attack_objective=objective)
    policy, params = adversary.policy, adversary.policy.views(flat)
    x = adversary.vectors.join(sequences.obs)
    state = sequences.state.squeeze(1)
    clean = policy.unroll(params, sequences.obs, state, sequences.start)
    delta = adversary._attack(params, sequences, x, clean.outputs, VALUES, draws.start)
    assert (delta.abs().amax((1, 2, 3)) <= VALUES["adversarial_epsilon"] + 1e-7).all()
    out = policy.unroll(params, adversary.vectors.split(x + delta, sequences.obs), state, sequences.start)
    head = params["head"]

    def surrogate(outputs):
        ratio = (policy.head.log_prob(head, outputs, sequences.action) - sequences.log_prob).exp()
        clip = VALUES["clip_range"].view(-1, 1, 1)
        clipped = ratio.clamp(1 - clip, 1 + clip)
        gain = torch.min(ratio * sequences.advantage, clipped * sequences.advantage)
        return -(gain * sequences.valid).sum(1)

    def gained(one, other):
        match objective:
            case "kl":
                return (policy.head.kl(head, one.outputs, other.outputs) * sequences.valid).sum(1)
            case "surrogate":
                return surrogate(other.outputs) - surrogate(one.outputs)
        before, after = (policy.critic.value(policy.predict(params, each.critic)) for each in (one, other))
        return 0.5 * ((after - before).square() * sequences.valid).sum(1)

    found = gained(clean, out)
    start = (2 * draws.start[:, 0] - 1) * VALUES["adversarial_epsilon"].view(-1, 1, 1, 1)
    random = gained(
        clean, policy.unroll(params, adversary.vectors.split(x + start, sequences.obs), state, sequences.start)
    )
    assert (found >= 0).all()
    assert (found.mean(1) > random.mean(1)).all()


@objectives
def test_population_laws(objective, make):
    adversary, flat, sequences, draws = make(attack_objective=objective)

    def run(flat, sequences, values, draws):
        leaf = flat.clone().requires_grad_()
        penalty, metrics = adversary.penalty(adversary.policy.views(leaf), sequences, values, draws, 1.0)
        (grad,) = torch.autograd.grad(penalty.sum(), leaf)
        return {"penalty": penalty.detach(), "grad": grad, **metrics}

    trees = (flat, sequences, VALUES, draws)
    whole = run(*trees)
    singles = [run(*(tree.slice(t, m, m + 1) for t in trees)) for m in range(POP)]
    order = torch.tensor([2, 0, 1])
    permuted = run(*(tree.gather(t, order) for t in trees))
    spoilt = flat.clone()
    spoilt[1] = math.nan
    after = run(spoilt, *trees[1:])
    for name, leaf in whole.items():
        torch.testing.assert_close(leaf, torch.cat([each[name] for each in singles]), atol=1e-10, rtol=1e-8)
        torch.testing.assert_close(permuted[name], leaf[order], atol=1e-10, rtol=1e-8)
        assert torch.equal(after[name][[0, 2]], leaf[[0, 2]]), name
    assert after["penalty"][1].isnan()
    grafted = run(*(tree.gather(t, torch.tensor([0, 0, 2])) for t in trees))
    torch.testing.assert_close(grafted["grad"][0], grafted["grad"][1], atol=1e-12, rtol=1e-9)


def test_what_is_logged(make):
    adversary, flat, sequences, draws = make()
    penalty, metrics = adversary.penalty(adversary.policy.views(flat), sequences, VALUES, draws, 1.0)
    count = torch.tensor([math.ceil(r * 4 - float(o)) for r, o in zip([0.5, 1, 0.75], draws.offset, strict=True)])
    assert torch.equal(metrics["sa_ppo/attack_count"], count.double())
    attacked, clean = metrics["sa_ppo/adversarial_samples"], metrics["sa_ppo/clean_samples"]
    steps = sequences.valid.sum((1, 2))
    assert torch.equal(attacked + clean, steps)
    assert clean[1] == 0
    torch.testing.assert_close(metrics["sa_ppo/adversarial_ratio"], attacked / steps)
    assert torch.equal(metrics["sa_ppo/robust_kl_penalty"], penalty)
    assert torch.equal(metrics["sa_ppo/current_epsilon"], VALUES["adversarial_epsilon"])
    norm = metrics["sa_ppo/avg_perturbation_norm"]
    assert (norm <= VALUES["adversarial_epsilon"] + 1e-7).all()
    assert (norm > 0.5 * VALUES["adversarial_epsilon"]).all()


def test_nobody_is_attacked(make):
    """The same names are logged, and the loss is left as it is."""
    adversary, flat, sequences, draws = make()
    params = adversary.policy.views(flat)
    values = VALUES | {"adversarial_ratio": torch.zeros(POP).double()}
    penalty, metrics = adversary.penalty(params, sequences, values, draws, 0.0)
    assert not penalty.any()
    assert list(metrics) == list(adversary.penalty(params, sequences, VALUES, draws, 1.0)[1])
    # A member that rests beside others that do not.
    values["adversarial_ratio"][1] = 1
    penalty, metrics = adversary.penalty(params, sequences, values, draws, 1.0)
    assert (penalty > 0).tolist() == [False, True, False]
    assert metrics["sa_ppo/attack_count"].tolist() == [0, BATCH, 0]


def test_zero_radius_and_zero_weight_cost_nothing(make):
    adversary, flat, sequences, draws = make()
    for name in ("adversarial_epsilon", "robust_kl_coef"):
        values = VALUES | {name: torch.tensor([0.0, 0.3, 0.3]).double()}
        penalty, _ = adversary.penalty(adversary.policy.views(flat), sequences, values, draws, 1.0)
        assert (penalty > 0).tolist() == [False, True, True]


def uniform(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_a_share_of_the_sequences_is_chosen_at_random():
    trials, ratio = 20_000, 0.3
    draws = Draws(uniform(trials), uniform(trials, BATCH), uniform(trials, 1, 1, BATCH, 1))
    index, chosen = choose(torch.full((trials,), ratio, dtype=torch.float64), draws, 2)
    count = chosen.sum(1)
    # 0.3 · 4 = 1.2: one or two, 1.2 on average; standard error 0.4/√20000.
    assert set(count.tolist()) == {1.0, 2.0}
    assert float(count.mean()) == pytest.approx(1.2, abs=5 * 0.4 / trials**0.5)
    frequency = torch.zeros(BATCH).double().index_add_(0, index.flatten(), chosen.flatten()) / trials
    torch.testing.assert_close(frequency, torch.full((BATCH,), ratio, dtype=torch.float64), atol=0.02, rtol=0)
    assert (index[:, 0] != index[:, 1]).all()


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.5, 2), (1.0, 4)])
def test_whole_counts_are_exact(ratio, count):
    draws = Draws(uniform(50), uniform(50, BATCH), uniform(50, 1, 1, BATCH, 1))
    _, chosen = choose(torch.full((50,), ratio, dtype=torch.float64), draws, BATCH)
    assert (chosen.sum(1) == count).all()


def test_pick_is_plain_indexing(make):
    *_, sequences, _ = make()
    index = torch.tensor([[3, 1], [0, 0], [2, 3]])
    found = dict(tree.items(pick(sequences, index)))
    for name, leaf in tree.items(sequences):
        expected = torch.stack([leaf[m][:, index[m]] for m in range(POP)])
        assert torch.equal(found[name], expected), name


def test_each_members_randomness_is_its_own(make):
    adversary, _, sequences, _ = make()
    first = adversary.draw([torch.Generator().manual_seed(m) for m in (1, 2, 3)], sequences.valid)
    second = adversary.draw([torch.Generator().manual_seed(m) for m in (7, 2, 9)], sequences.valid)
    for name, leaf in tree.items(first):
        same = [torch.equal(a, b) for a, b in zip(leaf, dict(tree.items(second))[name], strict=True)]
        assert same == [False, True, False]


def test_images_are_left_as_they_are():
    image, vector = ObsSpec((1, 6, 6), image=True), ObsSpec((2,))
    action = ACTIONS["discrete"]
    policy = Policy(Spaces({"image": image, "vector": vector}, action), NetworkConfig(recurrent="none"))
    adversary = Adversary(policy, AdversaryConfig())
    obs = {"image": torch.full((1, 2, 3, 1, 6, 6), 7, dtype=torch.uint8), "vector": torch.zeros(1, 2, 3, 2)}
    assert adversary.vectors.join(obs).shape == (1, 2, 3, 2)
    found = adversary.vectors.split(torch.ones(1, 2, 3, 2), obs)
    assert torch.equal(found["image"], obs["image"])
    assert found["vector"].all()
    with pytest.raises(ConfigError, match=r"images only; do without \(model.adversary.enabled: false"):
        Adversary(Policy(Spaces({"obs": image}, action), NetworkConfig(recurrent="none")), AdversaryConfig())


def test_policy_outputs_are_those_of_the_unroll(make):
    adversary, flat, sequences, _ = make()
    policy, params = adversary.policy, adversary.policy.views(flat)
    given = (params, sequences.obs, sequences.state.squeeze(1), sequences.start)
    assert torch.equal(policy.outputs(*given), policy.unroll(*given).outputs)


def test_the_gradient_of_an_attack_does_not_need_that_of_the_weights(make):
    """With constant weights the recurrent layers skip part of their backward pass; what is left is the same."""
    adversary, flat, sequences, _ = make()
    grads = []
    for leaf in (flat.clone().requires_grad_(), flat):
        x = adversary.vectors.join(sequences.obs).requires_grad_()
        outputs = adversary.outputs(adversary.policy.views(leaf), sequences, x)
        grads.append(torch.autograd.grad(outputs.square().sum(), x)[0])
    assert grads[0].any()
    assert torch.equal(*grads)
