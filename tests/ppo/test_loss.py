"""The loss and its gradient against its definition, written with torch.distributions, and the samples it reads."""

import pytest
import torch

from popgraft import tree
from popgraft.ppo.loss import LossForm, ppo_loss
from popgraft.rollout.batch import minibatches

POP = 3
QUANTILES = ["model.network.twin_critics=true"]
FORMS = {
    "everything": (QUANTILES, True, True, ("prediction", "risk")),
    "plain": ([], False, False, ()),
    "bounded scalar": (["model.network.critic=scalar"], True, False, ("prediction",)),
    "risk": (QUANTILES, False, True, ("risk",)),
}


def rolled(shard, updates):
    """A rollout after some updates."""
    for _ in range(updates):
        rollout = shard.collector.collect(shard.member, shard.seat, shard.generators)
        shard.learner.learn_(shard.member, shard.seat, rollout, shard.generators)
    return tree.map(torch.clone, shard.collector.collect(shard.member, shard.seat, shard.generators))


def quantile_huber(q, target):
    """ρ_τ of Dabney et al. 2018, eqs. 9 and 10, by PyTorch's Huber loss; q [time, batch, atoms]."""
    tau = (torch.arange(q.shape[-1], dtype=q.dtype) + 0.5) / q.shape[-1]
    wide = target.unsqueeze(-1).expand_as(q)
    weight = (tau - (wide < q).double()).abs()
    return (weight * torch.nn.functional.huber_loss(q, wide, reduction="none")).mean(-1)


def squared(q, target):
    return (q[..., 0] - target) ** 2


def expected_loss(policy, out, predictions, samples, own, form, m):
    """L of member m from the network's outputs."""
    seen = samples.valid[m] > 0
    if hasattr(policy.head, "sizes"):
        law = torch.distributions.Categorical(logits=out.outputs[m])
        log_prob, entropy = law.log_prob(samples.action[m, ..., 0]), law.entropy()
    else:
        law = torch.distributions.Normal(out.outputs[m], own["log_std"].exp())
        log_prob, entropy = law.log_prob(samples.action[m]).sum(-1), law.entropy().sum(-1)

    def scaled(x):
        return (x - x[seen].mean()) / (x[seen].std() + 1e-8) if form.standardized else x

    advantage = scaled(samples.advantage[m])
    if "risk" in samples.extras:
        w = own["cvar_weight"]
        advantage = (1 - w) * advantage + w * scaled(samples.extras["risk"][m])
    ratio = torch.exp(log_prob - samples.log_prob[m])
    clipped = ratio.clamp(1 - own["clip_range"], 1 + own["clip_range"])
    loss = -torch.min(ratio * advantage, clipped * advantage)[seen].mean()
    loss = loss - own["ent_coef"] * entropy[seen].mean()
    if form.penalized:
        loss = loss + own["kl_penalty_beta"] * (samples.log_prob[m] - log_prob)[seen].mean()
    sample_loss = squared if policy.critic.kind.atoms == 1 else quantile_huber
    value_losses = []
    for c in range(policy.critic.critics):
        q = predictions[m, :, :, c]
        value_loss = sample_loss(q, samples.target[m])
        if "prediction" in samples.extras:
            old = samples.extras["prediction"][m, :, :, c]
            near = old + (q - old).clamp(-own["clip_range_vf"], own["clip_range_vf"])
            value_loss = torch.max(value_loss, sample_loss(near, samples.target[m]))
        value_losses.append(value_loss[seen].mean())
    return loss + own["vf_coef"] * torch.stack(value_losses).mean()


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("autoreset", ["same_step", "next_step"])
def test_equals_its_definition(name, autoreset, env, make):
    overrides, standardized, penalized, extras = FORMS[name]
    config, shard = make(env | {"autoreset": autoreset}, *overrides)
    policy, normal = shard.policy, torch.Generator().manual_seed(1)
    rollout = rolled(shard, updates=0)
    samples, _ = shard.learner.prepare_(shard.member, shard.seat, rollout)
    drawn = {"risk": 1 + 2 * torch.randn(samples.target.shape, generator=normal), "prediction": rollout.prediction}
    samples.extras = {key: drawn[key] for key in extras}
    samples, state = (
        tree.map(lambda x: x.double() if x.is_floating_point() else x, t) for t in (samples, rollout.state)
    )
    (batch,) = minibatches(samples, state, torch.arange(config.sequences).expand(POP, -1), 1)
    values = {name: value.double() for name, value in shard.member.hyperparams.items()}
    values |= {
        "cvar_weight": torch.tensor([0.0, 0.3, 1.0]).double(),
        "clip_range_vf": torch.tensor([0.05, 0.2, torch.inf]).double(),
        "kl_penalty_beta": torch.tensor([0.5, 2.0, 0.0]).double(),
    }
    # The policy has moved since it acted, so that ratios differ from 1 and predictions from the old ones.
    flat = shard.member.params.double()
    flat += 0.5 * torch.randn(flat.shape, generator=normal)
    flat.requires_grad_()
    form = LossForm(shard.learner.form.critic, standardized, penalized)
    loss, metrics = ppo_loss(policy, policy.views(flat), batch, values, form)

    params = policy.views(flat)
    out = policy.unroll(params, batch.samples.obs, batch.state, batch.samples.start)
    predictions = policy.predict(params, out.critic)
    own = [{key: value[m] for key, value in values.items()} for m in range(POP)]
    for m, log_std in enumerate(params["head"].get("log_std", [])):
        own[m]["log_std"] = log_std
    expected = [expected_loss(policy, out, predictions, batch.samples, own[m], form, m) for m in range(POP)]
    torch.testing.assert_close(loss, torch.stack(expected), atol=1e-9, rtol=1e-7)
    found, wanted = (torch.autograd.grad(total, flat, retain_graph=True)[0] for total in (loss.sum(), sum(expected)))
    torch.testing.assert_close(found, wanted, atol=1e-9, rtol=1e-7)
    assert (metrics["clip_fraction"] > 0).any()
    assert (batch.samples.valid == 0).any() == (autoreset == "next_step")
    assert not any(value.requires_grad for value in metrics.values())


@pytest.mark.parametrize("name", ["cvar_weight", "clip_range_vf"])
@pytest.mark.parametrize("switched", [True, False])
def test_what_is_off_costs_no_room_in_the_samples(name, switched, env, make):
    _, shard = make(env, *([f"model.{name}=0.5"] if switched else []))
    rollout = shard.collector.collect(shard.member, shard.seat, shard.generators)
    samples, _ = shard.learner.prepare_(shard.member, shard.seat, rollout)
    assert list(samples.extras) == ([{"cvar_weight": "risk", "clip_range_vf": "prediction"}[name]] if switched else [])


def test_monte_carlo_targets_are_discounted_rewards_up_to_the_episodes_end(env, make):
    """The advantage stays the λ-estimate; the rollout's last value stands for what lies beyond it."""
    _, shard = make(env, "model.quantile_target=mc", "model.normalize_reward=false")
    _, plain = make(env, "model.normalize_reward=false")
    rollout = rolled(shard, updates=1)
    assert rollout.end.any(dim=1).all()
    samples, target = shard.learner.prepare_(shard.member, shard.seat, rollout)
    gamma, running = shard.member.hyperparams["gamma"].view(-1, 1), rollout.next_value[:, -1]
    for t in reversed(range(24)):
        running = rollout.reward[:, t] + gamma * torch.where(rollout.end[:, t], rollout.next_value[:, t], running)
        torch.testing.assert_close(target[:, t], running, atol=1e-4, rtol=1e-5)
    by_lambda, other = plain.learner.prepare_(shard.member, shard.seat, rollout)
    assert torch.equal(samples.advantage, by_lambda.advantage)
    assert (target - other).abs().max() > 0.1


def test_the_risk_advantage_is_in_raw_units_of_return(env, make):
    """α = 0.4 of 5 quantiles: ν is the second lowest, CVaR the mean of the two lowest."""
    _, shard = make(
        env,
        "model.normalize_reward=false",
        "model.normalize_returns=true",
        "model.cvar_weight=0.5",
        "model.cvar_alpha=0.4",
    )
    rollout = rolled(shard, updates=2)
    returns = shard.member.returns
    assert ((returns.mean.abs() > 1) & ((returns.std - 1).abs() > 0.1)).all()
    samples, target = shard.learner.prepare_(shard.member, shard.seat, rollout)
    mean, std = (x.view(-1, 1, 1, 1) for x in (returns.mean, returns.std))
    lowest, nu, *_ = (mean + std * rollout.prediction[..., 0, :]).sort(-1).values.unbind(-1)
    expected = (target - nu).clamp(max=0) / 0.4 - ((lowest + nu) / 2 - nu)
    torch.testing.assert_close(samples.extras["risk"], expected, atol=1e-4, rtol=1e-5)
