"""The whole update: its first minibatch, its early stop, and the population laws, on rollouts of real environments."""

import itertools
import math

import pytest
import torch
from stable_baselines3.common.running_mean_std import RunningMeanStd

from popgraft import tree
from popgraft.ppo.loss import ppo_loss
from popgraft.ppo.update import KL_TOLERANCE
from popgraft.rollout.batch import minibatches

POP = 3


def generators(members=range(POP)):
    return [torch.Generator().manual_seed(100 + m) for m in members]


def rolled(shard, updates=1):
    """A copy of a rollout after some updates, with recurrent state and statistics that are not fresh."""
    for _ in range(updates):
        rollout = shard.collector.collect(shard.member, shard.seat, shard.generators)
        shard.learner.learn_(shard.member, shard.seat, rollout, shard.generators)
    return tree.map(torch.clone, shard.collector.collect(shard.member, shard.seat, shard.generators))


MEMORIES = [*itertools.product(["lstm", "gru"], ["separate", "shared", "none"]), ("none", "none")]


@pytest.mark.parametrize(
    ("recurrent", "critic", "autoreset"),
    [
        *((*memory, "same_step") for memory in MEMORIES),
        ("lstm", "separate", "next_step"),
        *(pytest.param(*memory, "next_step", marks=pytest.mark.slow) for memory in MEMORIES[1:]),
    ],
)
def test_before_the_first_step_nothing_has_changed(recurrent, critic, autoreset, env, make):
    """C12: the unroll over stored sequences says what the step-by-step unroll said when the rollout was collected."""
    config, shard = make(
        env | {"autoreset": autoreset},
        f"model.network.recurrent={recurrent}",
        f"model.network.critic_recurrent={critic}",
        "model.network.recurrent_layers=2",
    )
    rollout = rolled(shard)
    inside = rollout.end.unflatten(1, (-1, config.sequence_length))[:, :, :-1]
    assert inside.any(dim=(1, 2, 3)).all()
    assert (rollout.valid == 0).any() == (autoreset == "next_step")
    samples, _ = shard.learner.prepare_(shard.member, shard.seat, rollout)
    samples.target = rollout.value  # to be cut into the same minibatches
    params = shard.policy.views(shard.member.params)
    order = torch.stack([torch.randperm(config.sequences, generator=generator) for generator in generators()])
    for batch in minibatches(samples, rollout.state, order, 2):
        out = shard.policy.unroll(params, batch.samples.obs, batch.state, batch.samples.start)
        log_prob = shard.policy.head.log_prob(params["head"], out.outputs, batch.samples.action)
        assert (log_prob - batch.samples.log_prob).abs().max() < 1e-5
        value = shard.policy.critic.value(shard.policy.predict(params, out.critic))
        torch.testing.assert_close(value, batch.samples.target, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_sum_of_its_terms(env, make):
    config, shard = make(env, "model.vf_coef=0.7")
    rollout = rolled(shard)
    samples, _ = shard.learner.prepare_(shard.member, shard.seat, rollout)
    order = torch.arange(config.sequences).expand(POP, -1)
    (batch,) = minibatches(samples, rollout.state, order, 1)
    params = shard.policy.views(shard.member.params)
    loss, metrics = ppo_loss(shard.policy, params, batch, shard.member.hyperparams, shard.learner.form)
    for m in range(POP):
        own = tree.map(lambda leaf, m=m: leaf[m], shard.member.hyperparams)
        advantage = batch.samples.advantage[m]
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        # At the old policy the ratio is 1, so the policy loss is minus a mean of 0.
        assert float(metrics["policy_loss"][m]) == pytest.approx(-float(advantage.mean()), abs=1e-4)
        expected = metrics["policy_loss"][m] + own["ent_coef"] * metrics["entropy_loss"][m]
        torch.testing.assert_close(loss[m], expected + 0.7 * metrics["value_loss"][m], atol=1e-5, rtol=1e-5)
    assert (metrics["approx_kl"].abs() < 1e-6).all()
    assert not metrics["clip_fraction"].any()


def update(shard, config, member, seat, rollout, members=range(POP)):
    """One whole update of copies: all leaves that it leaves behind, and its metrics."""
    member, seat = tree.map(torch.clone, member), tree.map(torch.clone, seat)
    metrics, _ = shard.learner.learn_(member, seat, rollout, generators(members))
    return {**dict(tree.items(member)), "discounted": seat.discounted_return, **metrics}


@pytest.fixture(scope="module")
def single(env, make):
    """A population and its rollout in single precision, in which memories may be compiled; tests work on copies."""
    config, shard = make(env, "model.network.critic_recurrent=separate", "model.n_epochs=3")
    rollout = rolled(shard)
    return shard, config, shard.member, shard.seat, rollout


def test_stacked_equals_singles(doubled):
    shard, config, *trees = doubled
    whole = update(shard, config, *trees)
    singles = [update(shard, config, *(tree.slice(t, m, m + 1) for t in trees), [m]) for m in range(POP)]
    for name, stacked in whole.items():
        expected = torch.cat([single[name] for single in singles])
        torch.testing.assert_close(
            stacked, expected, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    assert (whole["optimizer_steps"] == 6).all()


def test_permuting_members_permutes_the_update(doubled):
    shard, config, *trees = doubled
    order = [2, 0, 1]
    whole = update(shard, config, *trees)
    permuted = update(shard, config, *(tree.gather(t, torch.tensor(order)) for t in trees), order)
    for name, leaf in whole.items():
        torch.testing.assert_close(permuted[name], leaf[order], atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize("where", ["params", "reward", "obs"])
def test_disturbing_a_member_leaves_the_others_bit_for_bit(where, precision, single):
    shard, config, *trees = single
    member, seat, rollout = (tree.map(precision, t) for t in trees)
    calm = update(shard, config, member, seat, rollout)
    disturbed, spoilt = tree.map(torch.clone, member), tree.map(torch.clone, rollout)
    {"params": disturbed.params, "reward": spoilt.reward, "obs": spoilt.obs["obs"]}[where][1] = math.nan
    found = update(shard, config, disturbed, seat, spoilt)
    for name, leaf in calm.items():
        assert torch.equal(found[name][[0, 2]], leaf[[0, 2]]), name
    assert found["policy_loss"][1].isnan()
    # It rests: no step was taken with a gradient that is not a number.
    assert found["optimizer_steps"].tolist() == [6, 0, 6]
    assert torch.equal(found["params"][1].nan_to_num(7), disturbed.params[1].nan_to_num(7))


def test_after_a_graft_recipient_and_donor_learn_alike(env, make):
    """C15: on the same data and noise, bit for bit; and the copy is deep.

    Side by side in one stack they may differ in the last digit, because the rows of a matrix of odd width begin at
    different offsets within a cache line, on which the order of summation in a matrix product depends.
    """
    config, shard = make(env)
    rollout = rolled(shard)
    whole = (shard.member, shard.seat, rollout)
    grafted = [tree.gather(t, torch.tensor([0, 0, 2])) for t in whole]
    found = update(shard, config, *grafted, [0, 0, 2])
    rows = ([tree.gather(t, torch.tensor([m])) for t in grafted] for m in (0, 1))
    donor, recipient = (update(shard, config, *row, [0]) for row in rows)
    for name, leaf in found.items():
        assert torch.equal(donor[name], recipient[name]), name
        torch.testing.assert_close(leaf[0], leaf[1], atol=1e-6, rtol=1e-5)
    tree.map(torch.Tensor.zero_, shard.member)
    again = update(shard, config, *grafted, [0, 0, 2])
    for name, leaf in found.items():
        assert torch.equal(leaf, again[name]), name


def test_the_same_update_twice_is_the_same_bit_for_bit(precision, single):
    shard, config, *trees = single
    trees = [tree.map(precision, t) for t in trees]
    first, second = (update(shard, config, *trees) for _ in range(2))
    for name, leaf in first.items():
        assert torch.equal(leaf, second[name])


def test_a_member_beyond_its_target_kl_rests_before_the_step_and_the_others_go_on(doubled):
    """Steps are replayed by hand: the member stops at the first minibatch whose divergence is too large."""
    shard, config, member, seat, rollout = doubled
    member.hyperparams["learning_rate"].fill_(0.02)
    free = update(shard, config, member, seat, rollout)
    limited = tree.map(torch.clone, member)
    limited.hyperparams["target_kl"][1] = 1e-4
    found = update(shard, config, limited, seat, rollout)
    for name, leaf in free.items():
        if not name.endswith("target_kl"):
            assert torch.equal(found[name][[0, 2]], leaf[[0, 2]]), name
    steps = int(found["optimizer_steps"][1])
    assert 1 <= steps < 6
    assert found["optimizer.step"][1] - member.optimizer.step[1] == steps

    # Member 1 by itself, without a limit, one optimizer step after the other.
    own, own_seat, own_rollout = (tree.map(torch.clone, tree.slice(t, 1, 2)) for t in (member, seat, rollout))
    samples, _ = shard.learner.prepare_(own, own_seat, own_rollout)
    (generator,) = generators([1])
    divergences, trajectory = [], []
    optimizer = torch.optim.Adam([own.params.requires_grad_()], lr=0.02, eps=config.model.optimizer_kwargs.eps)
    optimizer.state[own.params] = {
        "step": own.optimizer.step[0].float(),
        "exp_avg": own.optimizer.averages["exp_avg"],
        "exp_avg_sq": own.optimizer.averages["exp_avg_sq"],
    }
    for _ in range(config.model.n_epochs):
        order = torch.randperm(config.sequences, generator=generator).unsqueeze(0)
        for batch in minibatches(samples, own_rollout.state, order, config.model.n_minibatches):
            loss, metrics = ppo_loss(
                shard.policy, shard.policy.views(own.params), batch, own.hyperparams, shard.learner.form
            )
            divergences.append(float(metrics["approx_kl"]))
            trajectory.append(own.params.detach().clone())
            optimizer.zero_grad()
            loss.sum().backward()
            torch.nn.utils.clip_grad_norm_([own.params], float(own.hyperparams["max_grad_norm"]))
            optimizer.step()
    assert steps == next(i for i, kl in enumerate(divergences) if kl > KL_TOLERANCE * 1e-4)
    torch.testing.assert_close(found["params"][1], trajectory[steps][0], atol=1e-9, rtol=0)


def test_a_vanishing_target_kl_allows_the_first_step_at_most(doubled):
    shard, config, member, seat, rollout = doubled
    member.hyperparams["target_kl"].copy_(torch.tensor([1e-12, math.inf, 1e-12]))
    found = update(shard, config, member, seat, rollout)
    assert found["optimizer_steps"][[0, 2]].max() <= 1
    assert found["optimizer_steps"][1] == 6


def test_the_update_ages_and_teaches(env, make):
    """Ages count updates; the statistics are those of the observations; the value loss falls on the same data."""
    _, shard = make(env, "model.learning_rate=0.003", "model.target_kl=null")
    rollout = rolled(shard, updates=0)
    before = tree.map(torch.clone, shard.member)
    first, _ = shard.learner.learn_(shard.member, shard.seat, rollout, generators())
    assert shard.member.age.tolist() == [1, 1, 1]
    raw = rollout.raw_obs["obs"].flatten(1, 2)
    torch.testing.assert_close(shard.member.normalizer.obs["obs"].mean, raw.double().mean(1), atol=1e-4, rtol=1e-4)
    assert (shard.member.normalizer.obs["obs"].count > before.normalizer.obs["obs"].count + 90).all()
    for _ in range(5):
        last, _ = shard.learner.learn_(shard.member, shard.seat, rollout, generators())
    assert (last["value_loss"] < first["value_loss"]).all()
    assert (last["explained_variance"] <= 1).all()
    for name, values in shard.member.hyperparams.items():
        assert torch.equal(last[name], values)


def test_rewards_are_divided_by_the_running_spread_of_the_discounted_return(env, make):
    """B8, by Stable-Baselines3's statistics of a plain loop over the same rewards."""
    config, shard = make(env)
    rollout = rolled(shard, updates=0)
    gamma = shard.member.hyperparams["gamma"]
    samples, _ = shard.learner.prepare_(shard.member, shard.seat, rollout)
    for m in range(POP):
        stats, running, returns = RunningMeanStd(epsilon=1e-4, shape=()), torch.zeros(4), []
        for t in range(config.model.n_steps):
            running = running * gamma[m] + rollout.reward[m, t]
            returns.append(running)
            running = running * ~rollout.end[m, t]
        stats.update(torch.cat(returns).double().numpy())
        torch.testing.assert_close(shard.seat.discounted_return[m], running, atol=1e-4, rtol=1e-4)
        scaled = (rollout.reward[m] / math.sqrt(stats.var + 1e-8)).clamp(-10, 10)
        delta = scaled[-1] + gamma[m] * rollout.next_value[m, -1] - rollout.value[m, -1]
        torch.testing.assert_close(samples.advantage[m, -1], delta, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(samples.target, samples.advantage + rollout.value)


def test_rounded_gradients_point_the_same_way(env, make):
    """One step with `precision: bfloat16`: who learns is who acted, and the gradient is nearly exact."""
    wide = "model.network.hidden_size=32", "model.network.encoder_layers=[32]", "model.network.head_layers=[32]"
    once = "model.n_epochs=1", "model.n_minibatches=1", "model.max_grad_norm=1e9"
    found = {}
    for precision in ("float32", "bfloat16"):
        _, shard = make(env, *wide, *once, f"model.network.precision={precision}")
        rollout = shard.collector.collect(shard.member, shard.seat, shard.generators)
        metrics, _ = shard.learner.learn_(shard.member, shard.seat, rollout, generators())
        found[precision] = metrics, shard.member.optimizer.averages["exp_avg"]  # a tenth of the gradient
    (exact, gradient), (rounded, near) = found.values()
    assert (rounded["approx_kl"] <= exact["approx_kl"].abs() + 1e-12).all()
    error = (near - gradient).norm(dim=1) / gradient.norm(dim=1)
    assert (error < 2**-7).all()
    assert (error > 2**-14).all()


def test_dropout_acts_in_updates_alone(env, make):
    """The same rollout with and without; in the update each member leaves out its own, and learns as it would alone."""
    deep = "model.network.recurrent_layers=2", "model.n_epochs=1", "model.n_minibatches=1"
    config, whole = make(env, *deep, "model.network.recurrent_dropout=0.3")
    _, plain = make(env, *deep)
    rollout, same = rolled(whole, updates=0), rolled(plain, updates=0)
    for name in ("log_prob", "value", "reward"):
        assert torch.equal(getattr(rollout, name), getattr(same, name)), name
    trees = whole.member, whole.seat, rollout
    found, exact = update(whole, config, *trees), update(plain, config, *trees)
    assert (exact["approx_kl"] < 1e-9).all()  # the policy that learns is the one that acted
    assert (found["approx_kl"] > 1e-9).all()
    for m in range(POP):
        single = update(whole, config, *(tree.slice(t, m, m + 1) for t in trees), [m])
        for name, leaf in single.items():
            torch.testing.assert_close(found[name][m : m + 1], leaf, atol=1e-5, rtol=1e-4)
