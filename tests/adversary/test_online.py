"""The attack on agents that act: closed forms on linear agents, the evaluation that it enters, and the population laws."""

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import tree
from popgraft.adversary import OnlineAttack
from popgraft.config import AttackConfig, EnvConfig, NetworkConfig
from popgraft.config.model import ModelConfig
from popgraft.errors import ConfigError
from popgraft.nn import Policy
from popgraft.nn.blocks import initialise
from popgraft.ppo import initial_member
from popgraft.rollout.evaluation import evaluate
from popgraft.rollout.grid import EnvGrid
from popgraft.spaces import ActionSpec, ObsSpec, Spaces

POP, ENVS, N = 3, 4, 5
DISCRETE, GAUSSIAN = ActionSpec("discrete", sizes=(2,), start=(0,)), ActionSpec("box", (), (), (1,), (-9.0,), (9.0,))
norms = pytest.mark.parametrize("norm", ["linf", "l2"])
methods = pytest.mark.parametrize("method", ["pgd", "fgsm", "random", "critic"])
MEMORIES = {
    "feed-forward": {"recurrent": "none", "critic_recurrent": "none"},
    "separate": {"critic_recurrent": "separate"},
    "detached": {"critic_recurrent": "detached"},
    "mingru": {"recurrent": "mingru", "critic_recurrent": "shared"},
    "gru": {"recurrent": "gru", "critic_recurrent": "shared", "critic": "categorical"},
}
memories = pytest.mark.parametrize("memory", MEMORIES)


def normal(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def agents(action, seed=0, **network):
    settings = {"encoder_layers": [6], "hidden_size": 4, **network}
    policy = Policy(Spaces({"obs": ObsSpec((N,))}, action), NetworkConfig(**settings))
    flat = policy.layout.flatten(initialise(policy, [torch.Generator().manual_seed(m) for m in range(POP)]))
    return policy, flat + 0.5 * normal(seed, *flat.shape)


def linear(action):
    """Logits, or means, W s + b; value v·s + c."""
    nothing = {"encoder_layers": [], "head_layers": [], "critic": "scalar"}
    return agents(action, **MEMORIES["feed-forward"], **nothing)


def shown(policy):
    state = normal(8, POP, ENVS, policy.state_size)
    return {"obs": normal(7, POP, ENVS, N)}, state, normal(9, POP, ENVS) > 1


def attacked(policy, flat, members=range(POP), **settings):
    attack = OnlineAttack(policy, AttackConfig(**settings), [50 + m for m in members])
    obs, state, start = (tree.map(lambda leaf: leaf[list(members)], part) for part in shown(policy))
    return attack(policy.views(flat[list(members)]), obs, state, start)["obs"] - obs["obs"]


@norms
def test_a_linear_policy_moves_as_far_as_it_can(norm):
    """The divergence grows with (w·δ)², w the Gaussian's weights or the difference of two logits' weights.

    Its maximum over the ball is at ±ε sign(w), or ±ε w/‖w‖; which of the two is up to the starting point.
    """
    for action in (DISCRETE, GAUSSIAN):
        policy, flat = linear(action)
        weight = policy.views(flat)["head"]["linear"]["weight"]
        w = weight[:, 0] if action is GAUSSIAN else weight[:, 1] - weight[:, 0]
        direction = w.sign() if norm == "linf" else w / w.norm(dim=-1, keepdim=True)
        delta = attacked(policy, flat, method="fgsm", epsilon=0.3, norm=norm)
        side = (delta * w.unsqueeze(1)).sum(-1, keepdim=True).sign()
        torch.testing.assert_close(delta, side * 0.3 * direction.unsqueeze(1), atol=1e-5, rtol=1e-4)
        assert len(side.unique()) == 2


@norms
def test_the_critic_attack_on_a_linear_critic(norm):
    """V(s + δ) falls by ε‖v‖₁ at most, or ε‖v‖₂."""
    policy, flat = linear(DISCRETE)
    v = policy.views(flat)["critic"]["weight"][:, 0]
    delta = attacked(policy, flat, method="critic", epsilon=0.3, norm=norm)
    fall = -(delta * v.unsqueeze(1)).sum(-1)
    if norm == "linf":
        torch.testing.assert_close(fall, (0.3 * v.abs().sum(-1, keepdim=True)).expand_as(fall), atol=1e-5, rtol=1e-4)
    else:  # from the side of the ball, ten steps of ε/4 lead most of the way
        assert (fall >= 0.9 * 0.3 * v.norm(dim=-1, keepdim=True)).all()


@memories
def test_an_attack_reaches_what_it_is_after(memory):
    """More than a random point of the ball does, from the recurrent state at hand."""
    policy, flat = agents(GAUSSIAN, **MEMORIES[memory])
    params, (obs, state, start) = policy.views(flat), shown(policy)

    def heard(delta):
        out = policy.unroll(params, {"obs": (obs["obs"] + delta).unsqueeze(1)}, state, start.unsqueeze(1))
        return out.outputs[:, 0, :, 0], policy.critic.value(policy.predict(params, out.critic))[:, 0]

    (action, value), ways = heard(torch.zeros(())), ("random", "fgsm", "pgd", "critic")
    moved = {method: heard(attacked(policy, flat, method=method, epsilon=0.2)) for method in ways}
    gap = {method: (found - action).square() for method, (found, _) in moved.items()}
    assert (gap["pgd"] > gap["random"]).all()
    assert gap["pgd"].mean() >= 0.999 * gap["fgsm"].mean()
    assert (moved["critic"][1] <= value + 1e-6).all()
    assert (moved["critic"][1] < moved["random"][1]).all()


def test_restarts_find_more_and_begin_where_one_does():
    """The first starting point is the same, and the strongest perturbation counts."""
    policy, flat = agents(GAUSSIAN, seed=3, **MEMORIES["separate"])
    params, (obs, state, start) = policy.views(flat), shown(policy)

    def divergence(delta):
        seen = {"obs": (obs["obs"] + delta).unsqueeze(1)}
        clean = policy.outputs(params, {"obs": obs["obs"].unsqueeze(1)}, state, start.unsqueeze(1))
        return policy.head.kl(params["head"], clean, policy.outputs(params, seen, state, start.unsqueeze(1)))

    found = {n: divergence(attacked(policy, flat, method="fgsm", epsilon=1.0, restarts=n)) for n in (1, 8)}
    assert (found[8] >= found[1]).all()
    assert (found[8] > 1.01 * found[1]).any()


@methods
@norms
def test_stays_in_ball_and_box(method, norm):
    policy, flat = agents(DISCRETE)
    before = shown(policy)[0]["obs"]
    delta = attacked(policy, flat, method=method, epsilon=0.4, norm=norm, clip_min=-0.3, clip_max=0.5)
    order = torch.inf if norm == "linf" else 2
    assert (torch.linalg.vector_norm(delta, order, dim=-1) <= 0.4 + 1e-6).all()
    assert delta.abs().sum() > 1
    inside = (before >= -0.3) & (before <= 0.5)
    assert ((before + delta)[inside] >= -0.3 - 1e-6).all()
    assert ((before + delta)[inside] <= 0.5 + 1e-6).all()


@methods
@memories
def test_stacked_equals_singles_and_disturbing_a_member_leaves_the_others(method, memory):
    policy, flat = agents(DISCRETE, **MEMORIES[memory])
    whole = attacked(policy, flat, method=method, steps=3)
    singles = [attacked(policy, flat, [m], method=method, steps=3) for m in range(POP)]
    torch.testing.assert_close(whole, torch.cat(singles), atol=2e-5, rtol=1e-4)
    spoilt = flat.clone()
    spoilt[2] = torch.nan
    found = attacked(policy, spoilt, method=method, steps=3)
    assert torch.equal(found[:2], whole[:2])
    order = [2, 0, 1]
    torch.testing.assert_close(
        attacked(policy, flat, order, method=method, steps=3), whole[order], atol=2e-5, rtol=1e-4
    )


def test_images_are_left_as_they_are():
    image = ObsSpec((1, 36, 36), image=True)
    network = NetworkConfig(recurrent="none", critic_recurrent="none")
    policy = Policy(Spaces({"eye": image, "skin": ObsSpec((2, 1))}, DISCRETE), network)
    params = initialise(policy, [torch.Generator()])
    obs = {"eye": torch.full((1, 2, 1, 36, 36), 7, dtype=torch.uint8), "skin": torch.zeros(1, 2, 2, 1)}
    attack = OnlineAttack(policy, AttackConfig(epsilon=0.1), [0])
    seen = attack(params, obs, torch.zeros(1, 2, 0), torch.zeros(1, 2, dtype=torch.bool))
    assert torch.equal(seen["eye"], obs["eye"])
    assert ((seen["skin"] != 0) & (seen["skin"].abs() <= 0.1)).all()
    blind = Policy(Spaces({"eye": image}, DISCRETE), network)
    with pytest.raises(ConfigError, match=r"images only; do without .*evaluation\.attack_weight: 0"):
        OnlineAttack(blind, AttackConfig(), [0])


class Drift(gym.Env):
    """Pays for the sum of what it shows, which every action turns round; 12 steps."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (N,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs, self.left = self.np_random.normal(size=N).astype(np.float32), 12
        return self.obs, {}

    def step(self, action):
        self.left -= 1
        noise = self.np_random.normal(size=N)
        self.obs = (0.7 * np.roll(self.obs, 1 + action) * (2 * action - 1) + 0.5 * noise).astype(np.float32)
        return self.obs, float(self.obs.sum()), self.left == 0, False, {}


@pytest.fixture
def play():
    """Scores of some members under an attack."""
    grids = []

    def make(num_envs):
        return SyncVectorEnv([Drift] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    def score(members, memory, spoil=(), weight=1.0, **attack):
        grid = EnvGrid(EnvConfig(factory="not:used", num_envs=ENVS), len(members), factory=make)
        grids.append(grid)
        model = ModelConfig(network=NetworkConfig(encoder_layers=[6], hidden_size=4, **MEMORIES[memory]))
        policy = Policy(grid.spaces, model.network)
        hyperparams = {name: torch.full((len(members),), value) for name, value in model.hyperparams().items()}
        generators = [torch.Generator().manual_seed(m) for m in members]
        member = initial_member(policy, grid.spaces, model, hyperparams, generators, torch.device("cpu"))
        for row, m in enumerate(members):
            member.params[row] += 0.5 * normal(20 + m, member.params.shape[1])
        member.params[list(spoil)] = torch.nan
        seeds = [90 + m for m in members]
        disturb = OnlineAttack(policy, AttackConfig(**attack), seeds) if attack else None
        return evaluate(policy, member, grid, seeds, True, 50, disturb, weight)

    yield score
    for grid in grids:
        grid.close()


@methods
def test_without_a_radius_an_attacked_evaluation_is_the_clean_one(play, method):
    clean = play(range(POP), "separate")
    nothing = play(range(POP), "separate", method=method, epsilon=0.0)
    assert torch.equal(clean.mean, nothing.mean)
    assert torch.equal(clean.stderr, nothing.stderr)
    assert not torch.equal(clean.mean, play(range(POP), "separate", method=method, epsilon=1.0, steps=2).mean)


@pytest.mark.parametrize(
    ("memory", "method"),
    [
        *((memory, "pgd") for memory in MEMORIES),
        ("separate", "critic"),
        *(pytest.param(memory, "critic", marks=pytest.mark.slow) for memory in MEMORIES if memory != "separate"),
    ],
)
def test_attacked_evaluation_obeys_the_population_laws(play, memory, method):
    """Nothing depends on who else plays, though an attack magnifies rounding; actions here are not on the edge."""
    attack = {"method": method, "epsilon": 0.4, "steps": 2}
    whole = play(range(POP), memory, **attack)
    for m in range(POP):
        torch.testing.assert_close(play([m], memory, **attack).mean, whole.mean[m : m + 1], atol=1e-4, rtol=1e-4)
    spoilt = play(range(POP), memory, spoil=[1], **attack)
    assert torch.equal(spoilt.mean[[0, 2]], whole.mean[[0, 2]])
    torch.testing.assert_close(play([2, 0, 1], memory, **attack).mean, whole.mean[[2, 0, 1]], atol=1e-4, rtol=1e-4)


def test_a_weight_mixes_the_returns_of_the_same_episodes(play):
    attack = {"method": "random", "epsilon": 1.0}
    clean, under = play(range(POP), "separate"), play(range(POP), "separate", **attack)
    mixed = play(range(POP), "separate", weight=0.3, **attack)
    torch.testing.assert_close(mixed.mean, 0.7 * clean.mean + 0.3 * under.mean)
    apart = 0.7 * clean.stderr + 0.3 * under.stderr  # as if good and bad episodes were the same ones in both
    assert (mixed.stderr <= apart + 1e-5).all()
    assert mixed.stderr[0] < 0.5 * apart[0]
    assert torch.equal(play(range(POP), "separate", weight=0.0, **attack).mean, clean.mean)
