"""Curves of plasticity, of a generation of a shard, beside NumPy."""

import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.execute import Shard
from popgraft.execute.shard import SEEN, UNSEEN
from popgraft.ppo.plasticity import NAMES
from popgraft.rollout.acting import Actor


@pytest.fixture
def shards(configured, initial):
    """Two of the same."""
    config = configured("tensors", "model.network={encoder_layers: [8], hidden_size: 8, head_layers: [6]}")
    made = [Shard(config, [0, 1, 2], initial(config)) for _ in range(2)]
    yield made
    for shard in made:
        shard.close()


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


@pytest.mark.heavy
def test_a_generation_ends_with_what_its_last_update_has_left(shards):
    whole, alone = shards
    metrics = whole.advance(3, lambda: False).metrics
    alone.iterate()
    alone.iterate()
    unseen, before = alone.collector.excerpt(UNSEEN), alone.member.params.clone()
    alone.iterate()
    for name in NAMES:
        assert metrics[name][:, :2].isnan().all()
    policy, member, seen = alone.policy, alone.member, alone.collector.excerpt(SEEN)
    assert seen.start.shape == (3, 8, 4)  # the first of two sequences, in all environments

    def observed(part):
        flat = {key: x.flatten(1, 2) for key, x in part.obs.items()}
        return {key: x.unflatten(1, (8, 4)) for key, x in Actor.of(policy, member).normalized(flat).items()}

    p, q = (
        softmax(policy.outputs(policy.views(flat), observed(unseen), unseen.state, unseen.start).double().numpy())
        for flat in (before, member.params)
    )
    churn = (p * np.log(p / q)).sum(-1).mean((1, 2))
    assert (churn > 0).all()
    np.testing.assert_allclose(metrics["plasticity/churn"][:, 2], churn, rtol=1e-3, atol=3e-8)
    hidden = policy.hidden(policy.views(member.params), observed(seen), seen.state, seen.start)
    layers = [hidden[name].double().numpy() for name in ("encoder", "actor_memory", "actor_mlp", "critic_mlp")]
    activity = [np.abs(layer).mean((1, 2)) for layer in layers]
    asleep = np.concatenate([own <= 0.025 * own.mean(1, keepdims=True) for own in activity], 1).mean(1)
    np.testing.assert_allclose(metrics["plasticity/dormant"][:, 2], asleep, atol=1e-6)
    for name in ("actor", "critic"):
        rows = hidden[f"{name}_mlp"].double().numpy().reshape(3, 32, 6)
        values = np.linalg.svd(rows, compute_uv=False)
        ranks = (np.cumsum(values, 1) / values.sum(1, keepdims=True) >= 0.99).argmax(1) + 1
        assert metrics[f"plasticity/rank_{name}"][:, 2].tolist() == ranks.tolist()


def test_a_generation_of_one_update_knows_no_states_that_it_has_not_learned_from(shards):
    metrics = shards[0].advance(1, lambda: False).metrics
    assert metrics["plasticity/churn"].isnan().all()
    assert metrics["plasticity/dormant"].isfinite().all()


def test_measuring_changes_nothing(shards):
    whole, alone = shards
    whole.advance(2, lambda: False)
    for _ in range(2):
        alone.iterate()
    assert torch.equal(whole.member.params, alone.member.params)
    assert torch.equal(whole.seat.carry, alone.seat.carry)


def test_units_that_never_answer_are_counted(shards):
    shard = shards[0]
    for _, leaf in tree.items(shard.policy.views(shard.member.params)["encoder"]):
        leaf[1] = 0
    shard.member.hyperparams["learning_rate"].zero_()
    found = shard.advance(1, lambda: False).metrics["plasticity/dormant"][:, 0]
    assert found[1] >= 8 / 28 > found[0]
