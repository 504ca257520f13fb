"""State-adversarial training in the whole update: what is in force when, what it costs, and the population laws."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from popgraft import tree
from popgraft.adversary import Adversary
from popgraft.config import load_config
from popgraft.errors import ConfigError

POP = 3
CARTPOLE = {"id": "CartPole-v1", "vectorization": "sync", "num_envs": 4, "kwargs": {"max_episode_steps": 23}}
PENDULUM = {"id": "Pendulum-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 23}}
FORMS = {
    "kl": (CARTPOLE, []),
    "surrogate": (
        PENDULUM,
        ["model.adversary.attack_objective=surrogate", "model.adversary.perturbation.norm_type=l2"],
    ),
    "value": (CARTPOLE | {"autoreset": "next_step"}, ["model.adversary.attack_objective=value"]),
    "feed-forward": (PENDULUM, ["model.network.recurrent=none", "model.network.critic_recurrent=none"]),
}
COURSE = [
    "model.adversary.warmup_updates=2",
    "model.adversary.epsilon_schedule=linear",
    "model.adversary.max_updates=6",
]
ON = "model.adversary={enabled: true, warmup_updates: 0}"


def generators(members=range(POP)):
    return [torch.Generator().manual_seed(100 + m) for m in members]


def collected(shard):
    return tree.map(torch.clone, shard.collector.collect(shard.member, shard.seat, shard.generators))


def update(shard, member, seat, rollout, members=range(POP)):
    """One whole update of copies: all leaves that it leaves behind, and its metrics."""
    member, seat = tree.map(torch.clone, member), tree.map(torch.clone, seat)
    metrics, _ = shard.learner.learn_(member, seat, rollout, generators(members))
    return {**dict(tree.items(member)), "discounted": seat.discounted_return, **metrics}


@pytest.fixture(scope="module", params=FORMS)
def single(request, make):
    """Members of different ages, radii, shares and weights; tests work on copies."""
    env, overrides = FORMS[request.param]
    _, shard = make(env, ON, *COURSE, *overrides)
    shard.learner.learn_(shard.member, shard.seat, collected(shard), shard.generators)
    shard.member.age = torch.tensor([3, 1, 5])
    shard.member.hyperparams["adversarial_epsilon"] *= 1 + torch.arange(POP)
    shard.member.hyperparams["adversarial_ratio"] = torch.tensor([0.5, 0.4, 0.8])
    shard.member.hyperparams["robust_kl_coef"] = torch.tensor([1.0, 2.0, 3.0])
    rollout = collected(shard)
    return shard, shard.member, shard.seat, rollout


def test_stacked_equals_singles(doubled):
    shard, *trees = doubled
    whole = update(shard, *trees)
    singles = [update(shard, *(tree.slice(t, m, m + 1) for t in trees), [m]) for m in range(POP)]
    for name, stacked in whole.items():
        expected = torch.cat([single[name] for single in singles])
        torch.testing.assert_close(
            stacked, expected, atol=1e-8, rtol=1e-7, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert whole["sa_ppo/enabled"].tolist() == [1, 0, 1]
    assert (whole["sa_ppo/robust_kl_penalty"] > 0).tolist() == [True, False, True]


def test_permuting_members_permutes_the_update(doubled):
    shard, *trees = doubled
    order = [2, 0, 1]
    whole = update(shard, *trees)
    permuted = update(shard, *(tree.gather(t, torch.tensor(order)) for t in trees), order)
    for name, leaf in whole.items():
        torch.testing.assert_close(permuted[name], leaf[order], atol=1e-8, rtol=1e-7)


def test_disturbing_a_member_leaves_the_others_bit_for_bit(precision, single):
    shard, *trees = single
    member, seat, rollout = (tree.map(precision, t) for t in trees)
    calm = update(shard, member, seat, rollout)
    spoilt = tree.map(torch.clone, rollout)
    spoilt.obs["obs"][2] = math.nan
    found = update(shard, member, seat, spoilt)
    for name, leaf in calm.items():
        assert torch.equal(found[name][:2], leaf[:2]), name
    assert found["optimizer_steps"].tolist() == [4, 4, 0]
    assert torch.equal(found["params"][2], member.params[2])


def test_after_a_graft_recipient_and_donor_learn_alike(doubled):
    shard, *trees = doubled
    grafted = [tree.gather(t, torch.tensor([0, 0, 2])) for t in trees]
    donor, recipient = (update(shard, *(tree.gather(t, torch.tensor([m])) for t in grafted), [0]) for m in (0, 1))
    for name, leaf in donor.items():
        assert torch.equal(leaf, recipient[name]), name


def test_the_radius_follows_its_schedule_and_the_share_waits(make):
    """From 0.2 at the age of 2 to 0.05 at the age of 6."""
    _, shard = make(CARTPOLE, ON, *COURSE, "model.adversary.perturbation.epsilon=0.2")
    logged = [shard.learner.learn_(shard.member, shard.seat, collected(shard), shard.generators)[0] for _ in range(8)]
    radii = torch.tensor([0.2, 0.2, 0.2, 0.1625, 0.125, 0.0875, 0.05, 0.05])
    for name in ("adversarial_epsilon", "sa_ppo/current_epsilon"):
        torch.testing.assert_close(torch.stack([m[name] for m in logged], 1), radii.expand(POP, -1))
    on = torch.tensor([0, 0, 1, 1, 1, 1, 1, 1.0]).expand(POP, -1)
    assert torch.equal(torch.stack([m["sa_ppo/enabled"] for m in logged], 1), on)
    assert torch.equal(torch.stack([m["adversarial_ratio"] for m in logged], 1), 0.5 * on)
    assert torch.equal(torch.stack([m["sa_ppo/adversarial_samples"] > 0 for m in logged], 1), on.bool())
    assert torch.equal(torch.stack([m["sa_ppo/update_count"] for m in logged], 1), torch.arange(8.0).expand(POP, -1))
    assert all(list(m) == list(logged[0]) for m in logged)


def test_without_an_end_the_schedule_ends_with_the_run(make):
    config, shard = make(CARTPOLE, ON, "model.adversary.epsilon_schedule=cosine", "total_timesteps=100000")
    assert shard.learner.attacks == (0, config.generations * config.pbt.perturbation_interval)


def test_explored_values_are_live_in_the_next_update(make):
    _, shard = make(CARTPOLE, ON)
    rollout, values = collected(shard), shard.member.hyperparams
    values["adversarial_epsilon"] = torch.tensor([0.0, 0.1, 0.2])
    values["adversarial_ratio"] = torch.tensor([1.0, 1.0, 0.25])
    values["robust_kl_coef"] = torch.tensor([1.0, 0.0, 1.0])
    found = update(shard, shard.member, shard.seat, rollout)
    for name in ("adversarial_epsilon", "adversarial_ratio", "robust_kl_coef"):
        assert torch.equal(found[name], values[name])
    assert (found["sa_ppo/robust_kl_penalty"] > 0).tolist() == [False, False, True]
    assert found["sa_ppo/avg_perturbation_norm"][0] == 0
    # Minibatches hold 6 sequences of 8 steps: 6, 6, and 1.5 on average.
    assert found["sa_ppo/attack_count"][:2].tolist() == [6, 6]
    assert 1 <= found["sa_ppo/attack_count"][2] <= 2
    total = found["sa_ppo/adversarial_samples"] + found["sa_ppo/clean_samples"]
    assert torch.equal(total, torch.full((POP,), 48.0))


TUNED = "pbt.hyperparams=[{name: adversarial_ratio, min_value: 0.1, max_value: 1.0}]"


@pytest.mark.parametrize("hidden", [6, 16])
@pytest.mark.parametrize("ratio", [0.3, 0.0])
def test_a_members_share_changes_no_bit_of_its_neighbours(ratio, hidden, make):
    """Products of another shape would be rounded otherwise, in a compiled layer and beside it."""
    _, shard = make(PENDULUM, ON, TUNED, f"model.network={{hidden_size: {hidden}, head_layers: []}}")
    shard.member.hyperparams["robust_kl_coef"].fill_(1)
    rollout, outcomes = collected(shard), []
    for share in (0.0, 0.25, 1.0):
        shard.member.hyperparams["adversarial_ratio"] = torch.tensor([share, ratio, ratio])
        outcomes.append(update(shard, shard.member, shard.seat, rollout))
    first, *others = outcomes
    for found in others:
        assert not torch.equal(found["params"][0], first["params"][0])
        for name, leaf in first.items():
            assert torch.equal(found[name][1:], leaf[1:]), name


@pytest.mark.parametrize(
    ("overrides", "share"),
    [
        ([], 0.5),
        (["model.adversary.adversarial_ratio=0.3"], 0.3),
        ([TUNED], 1.0),
        (["pbt.hyperparams=[{name: adversarial_ratio, values: [0.2, 0.7, 0.4]}]"], 0.7),
        (["pbt.hyperparams=[{name: robust_kl_coef, min_value: 0.1, max_value: 1.0}]"], 0.5),
        (
            [
                "pbt.exploit_method=none",
                "pbt.schedule=[{steps: 0, hyperparams: {adversarial_ratio: 0.6}}, "
                "{steps: 9000, hyperparams: {adversarial_ratio: 0.1}}]",
            ],
            0.6,
        ),
    ],
)
def test_as_many_sequences_are_attacked_as_any_member_may_ask_for(overrides, share, make, monkeypatch):
    """None during the warm-up; the numbers of a member are in single precision, and so is their bound."""
    _, shard = make(CARTPOLE, ON, "model.adversary.warmup_updates=1", *overrides)
    seen, penalty = [], Adversary.penalty
    monkeypatch.setattr(Adversary, "penalty", lambda *given: seen.append(given[-1]) or penalty(*given))
    for _ in range(2):
        shard.learner.learn_(shard.member, shard.seat, collected(shard), shard.generators)
    assert seen == [0.0] * 4 + [float(torch.tensor(share))] * 4


def test_only_members_with_a_weight_learn_otherwise(make):
    """Beside the same draws, a weight of 0 gives bit for bit what a radius of 0 gives."""
    _, shard = make(PENDULUM, ON)
    rollout, values = collected(shard), shard.member.hyperparams
    values["robust_kl_coef"] = torch.tensor([0.0, 5.0, 0.0])
    found = update(shard, shard.member, shard.seat, rollout)
    values["adversarial_epsilon"].zero_()
    plain = update(shard, shard.member, shard.seat, rollout)
    same = [torch.equal(a, b) for a, b in zip(found["params"], plain["params"], strict=True)]
    assert same == [True, False, True]


def test_training_makes_the_policy_robust(make):
    """The divergence under attack falls when its weight is large."""
    _, shard = make(CARTPOLE, ON, "model.learning_rate=0.003", "model.adversary.perturbation.epsilon=0.5")
    shard.member.params.mul_(2)
    shard.member.hyperparams["robust_kl_coef"] = torch.tensor([1e-6, 100.0, 100.0])
    shard.member.hyperparams["learning_rate"].fill_(0.003)
    first, *_, last = (
        shard.learner.learn_(shard.member, shard.seat, collected(shard), shard.generators)[0] for _ in range(12)
    )
    divergence = (last["sa_ppo/robust_kl_penalty"] / last["robust_kl_coef"]) / (
        first["sa_ppo/robust_kl_penalty"] / first["robust_kl_coef"]
    )
    assert (divergence[1:] < 0.2 * divergence[0]).all()


def test_an_attack_costs_what_its_passes_through_the_actor_cost(make):
    """Of the sequences, half go through the actor: clean (1), three steps forward and back to the input (3 · 2),
    and forward and back to the weights (3); the embedding of observations is not differentiated by its input there.

    Of a compiled layer PyTorch would not count anything.
    """
    once = "model.n_epochs=1", "model.n_minibatches=1", "model.network.hidden_size=6"
    plain, attacked = (make(CARTPOLE, *once, *over)[1] for over in ([], [ON]))
    rollout = collected(plain)

    def flops(shard):
        with FlopCounterMode(display=False) as counter:
            update(shard, shard.member, shard.seat, rollout)
        return counter.get_total_flops()

    policy, params = plain.policy, plain.policy.views(plain.member.params)
    with FlopCounterMode(display=False) as counter:
        policy.outputs(params, rollout.obs, rollout.state[:, 0], rollout.start)
    forward = counter.get_total_flops()
    extra = (flops(attacked) - flops(plain)) / (0.5 * forward)
    assert 8 < extra <= 10


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["pbt.hyperparams=[{name: robust_kl_coef, min_value: 0.01, max_value: 1.0}]"],
            "only state-adversarial training reads; set model.adversary.enabled: true",
        ),
        (
            [ON, "model.adversary.attack_objective=value", "model.network.critic_recurrent=detached"],
            "set attack_objective: kl",
        ),
        ([ON, "model.adversary.adversarial_ratio=1.5"], "model.adversary.adversarial_ratio = 1.5"),
        ([ON, "model.adversary.perturbation.epsilom=1"], "did you mean .*epsilon"),
    ],
)
def test_settings_that_cannot_work(overrides, message):
    with pytest.raises(ConfigError, match=message):
        load_config({"env": CARTPOLE}, overrides)


def test_a_population_may_tune_it():
    space = "{name: adversarial_epsilon, min_value: 0.01, max_value: 0.3}"
    config = load_config({"env": CARTPOLE}, [ON, f"pbt.hyperparams=[{space}]"])
    assert config.model.hyperparams()["adversarial_epsilon"] == 0.075
    with pytest.raises(ConfigError, match=r"model.adversary.perturbation.epsilon=0.5 is outside the bounds"):
        load_config({"env": CARTPOLE}, [ON, "model.adversary.perturbation.epsilon=0.5", f"pbt.hyperparams=[{space}]"])
