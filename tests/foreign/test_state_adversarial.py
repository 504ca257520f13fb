"""State-adversarial training of plain PyTorch policies, and of Stable-Baselines3's."""

import math
import types

import gymnasium
import numpy as np
import pytest
import torch
from stable_baselines3.common.policies import ActorCriticPolicy
from torch import distributions, nn

from popgraft import PerturbationConfig, SAPPOConfig
from popgraft.errors import ConfigError
from popgraft.foreign import (
    StateAdversarialPPO,
    StatePerturbation,
    create_policy_loss_fn,
    create_sappo_wrapper,
    create_value_loss_fn,
)

ROWS, N = 12, 4
KINDS = ["categorical", "normal"]


class Net(nn.Module):
    """A policy and a value, as a user might write them."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.body = nn.Sequential(nn.Linear(N, 16), nn.Tanh())
        self.actor, self.critic = nn.Linear(16, 3), nn.Linear(16, 1)
        self.log_std = nn.Parameter(torch.full((3,), -0.5))

    def get_distribution(self, x):
        out = self.actor(self.body(x))
        if self.kind == "categorical":
            return distributions.Categorical(logits=out)
        return distributions.Normal(out, self.log_std.exp().expand_as(out))

    def predict_values(self, x):
        return self.critic(self.body(x))


@pytest.fixture(params=KINDS)
def model(request):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return types.SimpleNamespace(policy=Net(request.param))


@pytest.fixture
def x():
    return torch.randn(ROWS, N, generator=torch.Generator().manual_seed(2))


def config(**settings):
    return SAPPOConfig(**{"enabled": True, "warmup_updates": 0, **settings})


def started(model, **settings):
    sa_ppo = create_sappo_wrapper(model, config(**settings), seed=0)
    sa_ppo.on_update_start()
    return sa_ppo


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("method", ["pgd", "fgsm", "random"])
def test_a_perturbation_lies_in_the_ball(norm, method, model, x):
    settings = PerturbationConfig(norm_type=norm, attack_method=method)
    attack = StatePerturbation(settings, seed=0)
    loss_fn = create_value_loss_fn(model, torch.zeros(ROWS))
    delta = attack.generate_perturbation(x, loss_fn)
    order = float("inf") if norm == "linf" else 2
    norms = torch.linalg.vector_norm(delta, order, dim=1)
    assert (norms <= 0.075 + 1e-7).all()
    assert delta.shape == x.shape
    assert not delta.requires_grad
    if method != "random":
        assert (loss_fn(x + delta) >= loss_fn(x)).all()
    assert all(p.grad is None for p in model.policy.parameters())
    assert attack.get_stats() == {"attack_count": 1, "avg_perturbation_norm": pytest.approx(float(norms.mean()))}
    assert not attack.generate_perturbation(x, loss_fn, epsilon=0.0).any()


def test_a_loss_may_be_one_number_and_observations_of_any_shape():
    """On a linear loss the attack is ε·sign(w), also inside torch.no_grad()."""
    w = torch.tensor([[1.0, -2.0], [3.0, -0.5]])
    attack = StatePerturbation(PerturbationConfig(attack_method="fgsm"), seed=0)
    with torch.no_grad():
        delta = attack.generate_perturbation(torch.zeros(5, 2, 2), lambda s: (s * w).sum())
    torch.testing.assert_close(delta, 0.075 * w.sign().expand(5, 2, 2))


def test_the_same_seed_gives_the_same_attack(model, x):
    loss_fn = create_value_loss_fn(model, torch.zeros(ROWS))
    first, second, other = (
        StatePerturbation(PerturbationConfig(attack_method="random"), seed).generate_perturbation(x, loss_fn)
        for seed in (3, 3, None)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda s: torch.zeros(ROWS), "does not depend on the observations"),
        (lambda s: s.sum() * torch.ones(7), r"has the shape \(7,\) for 12 observations"),
    ],
)
def test_a_loss_that_cannot_be_attacked(loss_fn, message, x):
    with pytest.raises(ConfigError, match=message):
        StatePerturbation(PerturbationConfig()).generate_perturbation(x, loss_fn)


def test_the_penalty_is_the_divergence_and_its_gradient_that_of_the_perturbed_side(model, x):
    sa_ppo = started(model, robust_kl_coef=0.3, perturbation=PerturbationConfig(attack_method="random", epsilon=0.2))
    penalty = sa_ppo.robust_kl_penalty(x)
    noise = torch.rand(1, 1, ROWS, N, generator=torch.Generator().manual_seed(0)).view(ROWS, N)
    policy = model.policy
    with torch.no_grad():
        clean = policy.get_distribution(x)
    kl = distributions.kl_divergence(clean, policy.get_distribution(x + 0.2 * (2 * noise - 1)))
    expected = 0.3 * (kl.sum(1) if kl.dim() > 1 else kl).mean()
    torch.testing.assert_close(penalty, expected)
    actor = [*policy.body.parameters(), *policy.actor.parameters()]
    for a, b in zip(torch.autograd.grad(penalty, actor), torch.autograd.grad(expected, actor), strict=True):
        assert a.any()
        torch.testing.assert_close(a, b)
    assert sa_ppo.get_stats()["sa_ppo/robust_kl_penalty"] == pytest.approx(float(expected.detach()))


def test_attacks_are_stronger_than_chance(model, x):
    chance = started(model, perturbation=PerturbationConfig(attack_method="random")).robust_kl_penalty(x)
    assert started(model).robust_kl_penalty(x) > 1.2 * chance


def test_the_policy_loss_can_be_attacked_instead(model, x):
    """Its formula, and an attack that raises it."""
    with torch.no_grad():
        taken = model.policy.get_distribution(x).mode
        taken = taken + 0.5 if taken.dim() > 1 else taken
        old = model.policy.get_distribution(x).log_prob(taken)
        old = old.sum(1) if old.dim() > 1 else old
    advantages = torch.linspace(-1, 1, ROWS)
    loss_fn = create_policy_loss_fn(model, taken, advantages, old - 0.1, clip_range=0.2)
    ratio = torch.full((ROWS,), 0.1).exp()
    torch.testing.assert_close(loss_fn(x), -torch.min(ratio * advantages, ratio.clamp(0.8, 1.2) * advantages))
    sa_ppo = started(model)
    delta = sa_ppo.perturbation.generate_perturbation(x, loss_fn)
    assert (loss_fn(x + delta) >= loss_fn(x)).all()
    assert loss_fn(x + delta).mean() > loss_fn(x).mean() + 0.01
    assert sa_ppo.robust_kl_penalty(x, loss_fn) > 0


def test_value_observations(model, x):
    returns = torch.linspace(-2, 2, ROWS)
    loss_fn = create_value_loss_fn(model, returns)
    values = model.policy.predict_values(x).flatten()
    torch.testing.assert_close(loss_fn(x), (values - returns) ** 2)
    assert loss_fn(started(model).attacked_values(x, loss_fn)).mean() > loss_fn(x).mean()
    assert started(model, attack_value=False).attacked_values(x, loss_fn) is x


def test_rows_are_drawn_at_random_without_repetition(model):
    sa_ppo = started(model, adversarial_ratio=0.3)
    drawn = [sa_ppo.choose_rows(5) for _ in range(2000)]
    assert {len(rows) for rows in drawn} == {1, 2}
    assert all(len(rows.unique()) == len(rows) for rows in drawn)
    frequency = torch.cat(drawn).bincount(minlength=5) / 2000
    torch.testing.assert_close(frequency, torch.full((5,), 0.3), atol=0.06, rtol=0)
    stats = sa_ppo.get_stats()
    assert stats["sa_ppo/adversarial_samples"] + stats["sa_ppo/clean_samples"] == 10_000
    assert stats["sa_ppo/adversarial_ratio"] == pytest.approx(0.3, abs=0.02)
    for ratio, count in ((0.0, 0), (1.0, 5)):
        sa_ppo.adversarial_ratio = ratio
        assert len(sa_ppo.choose_rows(5)) == count


@pytest.mark.parametrize("off", [{"enabled": False}, {"warmup_updates": 1}])
def test_nothing_happens_before_the_warm_up_is_over(off, model, x):
    sa_ppo = started(model, **off)
    assert not sa_ppo.is_adversarial_enabled
    assert len(sa_ppo.choose_rows(ROWS)) == 0
    assert not sa_ppo.robust_kl_penalty(x)
    assert sa_ppo.attacked_values(x, lambda s: s.sum()) is x
    assert sa_ppo.get_stats()["sa_ppo/attack_count"] == 0
    sa_ppo.on_update_start()
    assert sa_ppo.is_adversarial_enabled == ("warmup_updates" in off)


def test_no_rows_no_penalty(model, x):
    sa_ppo = started(model)
    assert not sa_ppo.robust_kl_penalty(x[:0])
    assert not started(model, attack_policy=False).robust_kl_penalty(x)


def test_the_radius_follows_its_schedule_and_what_is_set(model):
    """From 0.2 to 0.1 between the updates 2 and 6 of those already made."""
    sa_ppo = create_sappo_wrapper(
        model,
        config(
            perturbation=PerturbationConfig(epsilon=0.2),
            adaptive_epsilon=True,
            epsilon_schedule="linear",
            epsilon_final=0.1,
            warmup_updates=2,
            max_updates=6,
        ),
    )
    radii = []
    for _ in range(8):
        sa_ppo.on_update_start()
        radii.append(sa_ppo.current_epsilon)
    assert radii == pytest.approx([0.2, 0.2, 0.2, 0.175, 0.15, 0.125, 0.1, 0.1])
    sa_ppo.update_count, sa_ppo.adversarial_epsilon = 5, 0.3
    assert sa_ppo.current_epsilon == pytest.approx(0.2)


def test_explored_values_are_live(model, x):
    sa_ppo = started(model)
    before = sa_ppo.robust_kl_penalty(x)
    sa_ppo.robust_kl_coef *= 10
    louder = sa_ppo.robust_kl_penalty(x)
    assert 5 * before < louder < 20 * before
    sa_ppo.adversarial_epsilon = 0.0
    assert not sa_ppo.robust_kl_penalty(x)


def test_statistics_have_their_names(model):
    names = (
        "enabled update_count adversarial_samples clean_samples adversarial_ratio robust_kl_penalty current_epsilon "
        "attack_count avg_perturbation_norm"
    )
    stats = started(model).get_stats()
    assert list(stats) == [f"sa_ppo/{name}" for name in names.split()]
    assert all(isinstance(value, float) for value in stats.values())


def test_a_model_without_a_distribution():
    with pytest.raises(ConfigError, match=r"has no policy.get_distribution\(observations\)"):
        create_sappo_wrapper(object(), config())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"adversarial_ratio": 1.5}, "less than or equal to 1"),
        ({"robust_kl_coef": -0.1}, "greater than or equal to 0"),
        ({"epsilon_schedule": "linear", "adaptive_epsilon": True}, "needs an end; set max_updates"),
        ({"max_updates": 5, "warmup_updates": 9}, "raise max_updates above warmup_updates"),
        ({"perturbation": {"clip_min": 1.0, "clip_max": 0.0}}, "must be below clip_max"),
        ({"perturbation": {"norm_type": "l1"}}, "'linf' or 'l2'"),
        ({"atack_policy": True}, "unknown key"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        SAPPOConfig(**settings)


SPACES = {
    "discrete": gymnasium.spaces.Discrete(3),
    "multi_discrete": gymnasium.spaces.MultiDiscrete([2, 3]),
    "multi_binary": gymnasium.spaces.MultiBinary(2),
    "box": gymnasium.spaces.Box(-1.0, 1.0, (2,), np.float32),
}


@pytest.mark.parametrize("space", SPACES)
def test_policies_of_stable_baselines3(space, x):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        seen = gymnasium.spaces.Box(-np.inf, np.inf, (N,), np.float32)
        policy = ActorCriticPolicy(seen, SPACES[space], lambda _: 1e-3, net_arch=[8])
    for parameter in policy.parameters():
        parameter.data.add_(0.3)
    sa_ppo = started(types.SimpleNamespace(policy=policy))
    penalty = sa_ppo.robust_kl_penalty(x)
    assert penalty > 0
    penalty.backward()
    assert policy.action_net.weight.grad.any()
    assert policy.value_net.weight.grad is None


def test_it_makes_a_policy_robust(x):
    """Gradient steps on the penalty alone: the divergence under attack falls to a tenth."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        policy = Net("categorical")
    settings = config(robust_kl_coef=1.0, perturbation=PerturbationConfig(epsilon=0.5, attack_lr=0.2))
    sa_ppo = StateAdversarialPPO(settings, policy.get_distribution, seed=0)
    sa_ppo.on_update_start()
    optimizer = torch.optim.Adam(policy.parameters(), lr=0.02)
    penalties = []
    for _ in range(60):
        penalty = sa_ppo.robust_kl_penalty(x)
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(float(penalty.detach()))
    assert penalties[-1] < 0.1 * penalties[0]


def test_a_radius_of_its_own_beside_a_configured_one_of_zero():
    """The mean of x falls fastest along −1 in every entry: δ = −ε after enough steps, each 0.4 ε long."""
    loss, x = (lambda x: -x.sum(1)), torch.zeros(3, 2)
    settings = PerturbationConfig(epsilon=0, random_init=False, attack_steps=2)
    attack = StatePerturbation(settings, seed=0)
    torch.testing.assert_close(attack.generate_perturbation(x, loss, epsilon=0.5), torch.full((3, 2), -0.4))
    assert not attack.generate_perturbation(x, loss).any()
    for radius in (-0.1, math.nan, math.inf):
        with pytest.raises(ConfigError, match="no radius"):
            attack.generate_perturbation(x, loss, epsilon=radius)


def test_a_schedule_that_begins_at_zero():
    """From 0 to 0.5 within 2 updates after the first: at radius 0.25 in the second update, 2 steps of 0.4 · 0.25."""
    settings = SAPPOConfig(
        enabled=True,
        warmup_updates=0,
        max_updates=2,
        adaptive_epsilon=True,
        epsilon_schedule="linear",
        epsilon_final=0.5,
        perturbation=PerturbationConfig(epsilon=0, random_init=False, attack_steps=2),
    )
    sa_ppo = StateAdversarialPPO(settings, lambda x: distributions.Normal(x, torch.ones(2)), seed=0)
    sa_ppo.on_update_start()
    sa_ppo.on_update_start()
    assert sa_ppo.current_epsilon == 0.25
    moved = sa_ppo.attacked_values(torch.zeros(3, 2), lambda x: x.sum(1))
    torch.testing.assert_close(moved, torch.full((3, 2), 0.2))
    penalty = sa_ppo.robust_kl_penalty(torch.zeros(3, 2), lambda x: x.sum(1))
    # KL of two normal distributions 0.2 apart in both dimensions, times κ.
    torch.testing.assert_close(penalty, torch.tensor(settings.robust_kl_coef * 2 * 0.2**2 / 2))
