"""The complete learning rule: all of its parts at once, what is in force when, units of return, and scaled gradients."""

import math

import pytest
import torch

from popgraft import tree
from popgraft.ppo.loss import ppo_loss
from popgraft.rollout.acting import Actor
from popgraft.rollout.batch import minibatches

POP = 3
CARTPOLE = {"id": "CartPole-v1", "vectorization": "sync", "num_envs": 4, "kwargs": {"max_episode_steps": 23}}
PENDULUM = {"id": "Pendulum-v1", "num_envs": 4, "kwargs": {"max_episode_steps": 23}}
RETURNS = ["model.normalize_reward=false", "model.normalize_returns=true"]
CONTROLS = [
    "model.ent_coef_final=0.001",
    "model.ent_coef_decay_steps=6",
    "model.ent_coef_plateau_window=2",
    "model.ent_coef_plateau_tolerance=9",
    "model.kl_penalty=true",
    "model.kl_beta=0.3",
    "model.target_kl=0.01",
]
EVERYTHING = [
    *RETURNS,
    *CONTROLS,
    "model.optimizer=adaptive_upgd",
    "model.optimizer_kwargs.adaptive_noise=true",
    "model.network.twin_critics=true",
    "model.clip_range_vf=0.2",
    "model.clip_range_vf_warmup=2",
    "model.cvar_weight=0.7",
    "model.cvar_start=1",
    "model.cvar_ramp=4",
    "model.vgs={enabled: true, warmup_steps: 3}",
]
FORMS = {
    "quantile": (CARTPOLE, EVERYTHING),
    "step": (PENDULUM, [*EVERYTHING, "model.vgs.apply_to=step", "model.network.twin_reduce=mean"]),
    "scalar": (
        PENDULUM | {"autoreset": "next_step"},
        [
            "model.optimizer=upgd",
            "model.network.critic=scalar",
            "model.clip_range_vf=0.1",
            "model.vgs={enabled: true, warmup_steps: 3, statistic: per_element}",
        ],
    ),
    "categorical": (
        CARTPOLE,
        [
            *RETURNS,
            *CONTROLS,
            "model.optimizer=upgdw",
            "model.optimizer_kwargs={adaptive_noise: true, instant_noise_scale: false}",
            "model.network.critic=categorical",
            "model.quantile_target=mc",
        ],
    ),
}


def generators(members=range(POP)):
    return [torch.Generator().manual_seed(100 + m) for m in members]


def collected(shard):
    return tree.map(torch.clone, shard.collector.collect(shard.member, shard.seat, shard.generators))


def rolled(shard, updates):
    """A rollout after some updates, with statistics that are not fresh."""
    for _ in range(updates):
        shard.learner.learn_(shard.member, shard.seat, collected(shard), shard.generators)
    return collected(shard)


def update(shard, member, seat, rollout, members=range(POP)):
    """One whole update of copies: all leaves that it leaves behind, and its metrics."""
    member, seat = tree.map(torch.clone, member), tree.map(torch.clone, seat)
    metrics, _ = shard.learner.learn_(member, seat, rollout, generators(members))
    return {**dict(tree.items(member)), "discounted": seat.discounted_return, **metrics}


def double(leaf):
    return leaf.double() if leaf.is_floating_point() else leaf


@pytest.fixture(scope="module", params=FORMS)
def form(request):
    return request.param


@pytest.fixture(scope="module")
def single(form, make):
    """Members of three ages, with hyperparameters and statistics of their own; tests work on copies."""
    env, overrides = FORMS[form]
    _, shard = make(env, *overrides, "model.ent_coef=0.03")
    for name in set(shard.member.hyperparams) - {"learning_rate", "gamma", "clip_range", "ent_coef"}:
        shard.member.hyperparams[name] *= 1 - 0.2 * torch.arange(POP)
    rollout = rolled(shard, updates=3)
    shard.member.age -= torch.tensor([2, 1, 0])
    return shard, shard.member, shard.seat, rollout


def test_stacked_equals_singles(form, doubled):
    shard, *trees = doubled
    whole = update(shard, *trees)
    singles = [update(shard, *(tree.slice(t, m, m + 1) for t in trees), [m]) for m in range(POP)]
    for name, stacked in whole.items():
        expected = torch.cat([single[name] for single in singles])
        torch.testing.assert_close(
            stacked, expected, atol=1e-9, rtol=1e-9, msg=lambda text, name=name: f"{name}: {text}"
        )
    # All of it is switched on.
    assert whole["optimizer_steps"].min() > 0
    assert (whole["upgd_noise_std"] > 0).all()
    if form != "categorical":
        assert (whole["vgs/scaling_factor"] < 1).all()
    if form != "scalar":
        assert (whole["kl_penalty_beta"] != 0.3).all()
        assert (whole["ent_coef"] < trees[0].hyperparams["ent_coef"]).all()
        assert (whole["returns.std"] != 1).all()
    if form in ("quantile", "step"):
        assert whole["clip_range_vf"].isinf().tolist() == [True, False, False]
        ramp = whole["cvar_weight"] / trees[0].hyperparams["cvar_weight"]
        torch.testing.assert_close(ramp, torch.tensor([0.25, 0.5, 0.75]).double(), atol=1e-6, rtol=0)


def test_permuting_members_permutes_the_update(doubled):
    shard, *trees = doubled
    order = [2, 0, 1]
    whole = update(shard, *trees)
    permuted = update(shard, *(tree.gather(t, torch.tensor(order)) for t in trees), order)
    for name, leaf in whole.items():
        torch.testing.assert_close(permuted[name], leaf[order], atol=1e-9, rtol=1e-9)


def test_disturbing_a_member_leaves_the_others_bit_for_bit(precision, single):
    shard, *trees = single
    member, seat, rollout = (tree.map(precision, t) for t in trees)
    calm = update(shard, member, seat, rollout)
    for where in ("params", "reward", "obs"):
        disturbed, spoilt = tree.map(torch.clone, member), tree.map(torch.clone, rollout)
        {"params": disturbed.params, "reward": spoilt.reward, "obs": spoilt.obs["obs"]}[where][1] = math.nan
        found = update(shard, disturbed, seat, spoilt)
        for name, leaf in calm.items():
            assert torch.equal(found[name][[0, 2]], leaf[[0, 2]]), (where, name)
        assert found["optimizer_steps"][1] == 0


def test_a_graft_is_a_deep_copy_and_the_same_update_twice_is_the_same(doubled):
    shard, *trees = doubled
    parents = [0, 0, 2]
    grafted = [tree.gather(t, torch.tensor(parents)) for t in trees]
    found = update(shard, *grafted, parents)
    rows = ([tree.gather(t, torch.tensor([m])) for t in grafted] for m in (0, 1))
    donor, recipient = (update(shard, *row, [0]) for row in rows)
    for name in found:
        assert torch.equal(donor[name], recipient[name]), name
    for original in trees:
        tree.map(torch.Tensor.zero_, original)
    again = update(shard, *grafted, parents)
    for name, leaf in found.items():
        assert torch.equal(leaf, again[name]), name


@pytest.mark.parametrize("critic", ["quantile", "scalar"])
def test_new_units_of_return_leave_raw_values_where_they_are(critic, make):
    """C9."""
    _, shard = make(CARTPOLE, *RETURNS, f"model.network.critic={critic}", "model.network.twin_critics=true")
    rollout = rolled(shard, updates=1)
    member, normal = shard.member, torch.Generator().manual_seed(3)
    seen = []
    for offset in (0, 30, -5):
        actor = Actor.of(shard.policy, member)
        out = shard.policy.unroll(actor.params, rollout.obs, rollout.state[:, 0], rollout.start)
        predictions = actor.predict(out.critic)
        seen.append((actor.values(predictions), predictions))
        target = offset + (1 + torch.arange(POP)).view(-1, 1, 1) * torch.randn(POP, 24, 4, generator=normal)
        shard.learner.rescale_(member, target, rollout.valid)
    (values, first), *others = seen
    assert all((values - moved).abs().max() < 1e-5 for moved, _ in others)
    assert all((first - moved).abs().min() > 1e-4 for _, moved in others)


def test_return_statistics_are_running_averages_of_the_raw_targets(make):
    """d = 0.9 by hand over three updates; values are raw, targets in the units that the rollout was made in."""
    _, shard = make(CARTPOLE, *RETURNS)
    member, averages = shard.member, None
    for _ in range(3):
        rollout = collected(shard)
        mean, std = member.returns.mean.view(-1, 1, 1), member.returns.std.view(-1, 1, 1)
        value = mean + std * rollout.prediction.squeeze(-2).mean(-1)
        torch.testing.assert_close(rollout.value, value, atol=1e-4, rtol=1e-5)
        samples, target = shard.learner.prepare_(member, shard.seat, rollout)
        torch.testing.assert_close(target, samples.advantage + value, atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(samples.target, (target - mean) / std, atol=1e-5, rtol=1e-5)
        shard.learner.learn_(member, shard.seat, rollout, shard.generators)
        now = torch.stack([target.flatten(1).double().mean(1), target.flatten(1).double().square().mean(1)])
        averages = now if averages is None else 0.9 * averages + 0.1 * now
        torch.testing.assert_close(member.returns.mean, averages[0].float(), atol=1e-5, rtol=1e-5)
        std = (averages[1] - averages[0].square()).sqrt()
        torch.testing.assert_close(member.returns.std, std.float(), atol=1e-5, rtol=1e-5)
    assert (member.returns.updates == 3).all()


def test_a_categorical_critic_keeps_the_units_of_its_first_update(make):
    _, shard = make(CARTPOLE, *RETURNS, "model.network.critic=categorical")
    member = shard.member
    _, target = shard.learner.prepare_(member, shard.seat, rollout := rolled(shard, updates=0))
    shard.learner.learn_(member, shard.seat, rollout, shard.generators)
    torch.testing.assert_close(member.returns.mean, target.flatten(1).mean(1))
    torch.testing.assert_close(member.returns.std, target.flatten(1).std(1, correction=0))
    found, params = tree.map(torch.clone, member.returns), member.params.clone()
    shard.learner.rescale_(member, 9 * target, rollout.valid)
    assert torch.equal(params, member.params)
    rolled(shard, updates=2)
    assert torch.equal(found.mean, member.returns.mean)
    assert torch.equal(found.std, member.returns.std)


def test_what_is_in_force_over_four_updates(make):
    _, shard = make(
        CARTPOLE,
        "model.cvar_weight=0.8",
        "model.cvar_start=1",
        "model.cvar_ramp=2",
        "model.clip_range_vf=0.3",
        "model.clip_range_vf_warmup=2",
        "model.ent_coef_final=0",
        "model.ent_coef_decay_steps=4",
    )
    member, rollout = shard.member, rolled(shard, updates=0)
    member.hyperparams["ent_coef"] = torch.tensor([0.08, 0.04, 0.02])
    member.hyperparams["ent_coef_min"] = torch.tensor([0.0, 0.03, 0.0])
    member.hyperparams["cvar_weight"] = torch.tensor([0.8, 0.4, 0.0])
    member.age[2] = 1  # it came from elsewhere
    expected = {
        # From a to max(b, floor) in four updates.
        "ent_coef": [[0.08, 0.06, 0.04, 0.02], [0.04, 0.0375, 0.035, 0.0325], [0.02, 0.015, 0.01, 0.005]],
        "cvar_weight": [[0, 0.4, 0.8, 0.8], [0, 0.2, 0.4, 0.4], [0, 0, 0, 0]],
        "clip_range_vf": [[math.inf, math.inf, 0.3, 0.3]] * 2 + [[math.inf, 0.3, 0.3, 0.3]],
    }
    found = [shard.learner.learn_(member, shard.seat, rollout, shard.generators)[0] for _ in range(4)]
    for name, rows in expected.items():
        logged = torch.stack([metrics[name] for metrics in found], dim=1)
        torch.testing.assert_close(logged, torch.tensor(rows, dtype=torch.float32), atol=1e-7, rtol=1e-5)


def test_entropy_decays_from_its_plateau_on(make):
    # Any slope is level; the plateau may count from the third update (index 2), so the fourth is the first to decay.
    _, shard = make(
        CARTPOLE,
        "model.ent_coef_final=0",
        "model.ent_coef_decay_steps=4",
        "model.ent_coef_plateau_window=2",
        "model.ent_coef_plateau_tolerance=1000",
        "model.ent_coef_plateau_min_updates=3",
    )
    shard.member.hyperparams["ent_coef"].fill_(0.08)
    rollout = rolled(shard, updates=0)
    found = [shard.learner.learn_(shard.member, shard.seat, rollout, shard.generators)[0] for _ in range(6)]
    # Two actions, and still nearly as likely as each other.
    torch.testing.assert_close(shard.member.entropy.recent, torch.full((POP, 2), math.log(2)), atol=0.02, rtol=0)
    logged = torch.stack([metrics["ent_coef"] for metrics in found], dim=1)
    torch.testing.assert_close(logged, torch.tensor([0.08, 0.08, 0.08, 0.06, 0.04, 0.02]).expand(POP, -1))


def test_the_kl_penalty_follows_the_divergence_by_the_controllers_law(make):
    """β ← β + Kp(e − e′) + Ki·e from the logged divergences: up while they are above target, down while below."""
    _, shard = make(CARTPOLE, "model.kl_penalty=true", "model.target_kl=0.01", "model.kl_beta=1")
    member, values = shard.member, shard.member.hyperparams
    values["learning_rate"] = torch.tensor([0.02, 0.0, 0.02])
    values["target_kl"] = torch.tensor([1e-4, 0.01, 0.01])
    values["kl_pid_p"] = torch.tensor([0.0, 0.1, 0.3])
    values["kl_pid_i"] = torch.tensor([0.05, 0.05, 0.2])
    before, beta, logged = torch.zeros(POP), torch.ones(POP), []
    for _ in range(3):
        metrics, _ = shard.learner.learn_(member, shard.seat, collected(shard), shard.generators)
        logged.append(metrics["kl_penalty_beta"])
        torch.testing.assert_close(logged[-1], beta, atol=1e-6, rtol=1e-6)
        moved = metrics["optimizer_steps"] > 0
        error = metrics["approx_kl"] / values["target_kl"] - 1
        change = values["kl_pid_p"] * (error - before) + values["kl_pid_i"] * error
        beta = torch.where(moved, beta + change, beta).clamp(0, 10)
        before = torch.where(moved, error, before)
        torch.testing.assert_close(member.kl.beta, beta, atol=1e-6, rtol=1e-6)
    above = torch.stack([*logged, member.kl.beta])[:, 0]
    assert (above.diff() > 0).all()
    # KL = 0, so e = −1: 1 − (0.1 + 0.05) − 0.05 − 0.05.
    assert float(member.kl.beta[1]) == pytest.approx(0.75)
    spoilt, controller = collected(shard), tree.map(torch.clone, member.kl)
    spoilt.reward[1] = math.nan
    shard.learner.learn_(member, shard.seat, spoilt, shard.generators)
    # It took no step, so its divergence says nothing.
    for name, leaf in tree.items(controller):
        assert torch.equal(dict(tree.items(member.kl))[name][1], leaf[1]), name


def test_a_new_value_is_live_in_the_next_update(make):
    _, shard = make(CARTPOLE)
    rollout = rolled(shard, updates=1)
    shard.member.hyperparams["learning_rate"][1] = 0
    before = shard.member.params.clone()
    metrics, _ = shard.learner.learn_(shard.member, shard.seat, rollout, shard.generators)
    assert metrics["learning_rate"][1] == 0
    assert (before == shard.member.params).all(1).tolist() == [False, True, False]


VGS = "model.vgs={enabled: true, warmup_steps: 3, alpha: 2}"
ONE_STEP = ["model.n_epochs=1", "model.n_minibatches=1"]


def gradient(shard, member, seat, rollout):
    """The raw gradient of the only minibatch of an update."""
    samples, _ = shard.learner.prepare_(tree.map(torch.clone, member), tree.map(torch.clone, seat), rollout)
    sequences = rollout.state.shape[1] * rollout.state.shape[2]
    (batch,) = minibatches(samples, rollout.state, torch.arange(sequences).expand(POP, -1), 1)
    flat = member.params.clone().requires_grad_()
    loss, _ = ppo_loss(shard.policy, shard.policy.views(flat), batch, member.hyperparams, shard.learner.form)
    return torch.autograd.grad(loss.sum(), flat)[0]


def test_raw_gradients_are_measured_then_scaled_then_clipped(make):
    _, shard = make(CARTPOLE, VGS, *ONE_STEP, "model.vf_coef=50")
    *trees, rollout = shard.member, shard.seat, rolled(shard, updates=5)
    member, seat = (tree.map(double, t) for t in trees)
    rollout = tree.map(double, rollout)
    before, raw = tree.map(torch.clone, member), gradient(shard, member, seat, rollout)
    metrics, _ = shard.learner.learn_(member, seat, rollout, generators())
    means = torch.stack([part.mean(1) for part in raw.split(shard.policy.layout.sizes, dim=1)], dim=1)
    for name, measured in (
        ("param_grad_mean_ema", means),
        ("param_grad_sq_ema", means.square()),
        ("grad_norm_ema", raw.norm(dim=1)),
    ):
        expected = 0.99 * getattr(before.vgs, name) + 0.01 * measured
        torch.testing.assert_close(getattr(member.vgs, name), expected, atol=1e-12, rtol=1e-8)
    factor = metrics["vgs/scaling_factor"]
    assert (factor < 0.95).all()
    scaled = raw * factor.unsqueeze(1)
    norm = scaled.norm(dim=1)
    torch.testing.assert_close(metrics["grad_norm"], norm, atol=1e-9, rtol=1e-9)
    assert (norm > member.hyperparams["max_grad_norm"]).all()
    clipped = scaled * (member.hyperparams["max_grad_norm"] / (norm + 1e-6)).unsqueeze(1)
    expected = 0.9 * before.optimizer.averages["exp_avg"] + 0.1 * clipped
    torch.testing.assert_close(member.optimizer.averages["exp_avg"], expected, atol=1e-9, rtol=1e-8)


def test_applied_to_the_step_it_scales_the_learning_rate(make):
    """Decay included: the same step as without it at a learning rate that is smaller by the factor."""
    adamw = "model.optimizer=adamw"
    _, shard = make(CARTPOLE, VGS, *ONE_STEP, adamw, "model.vgs.apply_to=step")
    _, plain = make(CARTPOLE, *ONE_STEP, adamw)
    rollout = rolled(shard, updates=5)
    found = update(shard, shard.member, shard.seat, rollout)
    assert (found["vgs/scaling_factor"] < 0.95).all()
    shard.member.hyperparams["learning_rate"] *= found["vgs/scaling_factor"]
    expected = update(plain, shard.member, shard.seat, rollout)
    assert torch.equal(found["params"], expected["params"])
    assert torch.equal(found["optimizer.averages.exp_avg"], expected["optimizer.averages.exp_avg"])


def test_a_gradient_is_measured_once_for_every_step_that_is_taken(make):
    _, shard = make(CARTPOLE, VGS, "model.n_epochs=3")
    rollout = rolled(shard, updates=2)
    assert torch.equal(shard.member.vgs.step_count, torch.full((POP,), 12.0))
    shard.member.hyperparams["learning_rate"].fill_(0.02)
    shard.member.hyperparams["target_kl"][1] = 1e-4
    rollout.reward[2, 3, 0] = math.nan
    found = update(shard, shard.member, shard.seat, rollout)
    assert found["optimizer_steps"][0] == 6
    assert 1 <= found["optimizer_steps"][1] < 6
    assert found["optimizer_steps"][2] == 0
    assert torch.equal(found["vgs.step_count"], 12 + found["optimizer_steps"])
    assert torch.equal(found["optimizer.step"], found["vgs.step_count"])
    # Only a gradient that is not finite counts as skipped, not a rest for the divergence's sake.
    assert found["optimizer.skipped"].tolist() == [0, 0, 6]
    assert torch.equal(found["params"][2], shard.member.params[2])
    assert found["vgs.grad_norm_ema"].isfinite().all()


def test_noise_comes_from_each_members_own_generator(make):
    _, shard = make(CARTPOLE, *ONE_STEP, "model.optimizer=upgd", "model.optimizer_kwargs.sigma=0.5")
    shard.member.hyperparams["sigma"] = torch.tensor([0.5, 2.0, 0.0])
    rollout = rolled(shard, updates=0)
    found, other = (update(shard, shard.member, shard.seat, rollout, members) for members in ([0, 1, 2], [0, 7, 8]))
    torch.testing.assert_close(found["upgd_noise_std"], shard.member.hyperparams["sigma"])
    assert torch.equal(found["params"][0], other["params"][0])
    rate = shard.member.hyperparams["learning_rate"]
    moved = (found["params"] - other["params"]).square().mean(1).sqrt()
    # Two draws at a gate of about a half differ by σ/√2; without noise only the order of summation is another.
    assert float(moved[1] / rate[1]) == pytest.approx(2 / math.sqrt(2), rel=0.1)
    assert moved[2] < 1e-7
