"""Recipients are compared with their donors on their own first rollout."""

import pytest
import torch

from popgraft import tree
from popgraft.execute import InlineExecutor
from popgraft.execute.process import ProcessExecutor
from popgraft.ops import return_scale
from popgraft.state import Decision

SCALED = ["model.normalize_reward=false", "model.normalize_returns=true"]
GOING_ON = "pbt.reset_envs_on_exploit=false"
RULES = {
    "complete": [],
    "burn_in": [GOING_ON, "pbt.lstm_reset_mode=burn_in"],
    "zero": [GOING_ON, "pbt.lstm_reset_mode=zero"],
    "keep": [GOING_ON, "pbt.lstm_reset_mode=keep"],
    "forget_normalizer": ["pbt.graft_faults=[forget_normalizer]"],
    "forget_return_scale": ["pbt.graft_faults=[forget_return_scale]"],
}
LOSSLESS = ("complete", "burn_in")


def never():
    return False


def decided(executor):
    """Member 2 goes on as member 0, and 1 as itself."""
    hyperparams = executor.export(torch.tensor([2, 1, 2])).hyperparams
    return Decision(torch.tensor([2, 1, 2]), hyperparams, {0: "truncation"})


def played_by(donor, shard, raw, start, state):
    """Values that the donor predicts for the first member's steps, one step after another, and its state after them."""
    params = shard.policy.views(donor.params)
    stats, values = donor.normalizer.obs["obs"], []
    obs = ((raw - stats.mean) / (stats.var + 1e-8).sqrt()).clamp(-10, 10).float()
    for t in range(len(raw)):
        seen = shard.policy.unroll(params, {"obs": obs[t][None, None]}, state, start[t][None, None])
        values.append(shard.policy.critic.value(shard.policy.predict(params, seen.critic))[0, 0])
        state = seen.state
    return return_scale.denormalize(donor.returns, torch.stack(values)[None])[0], state


@pytest.mark.parametrize("rule", RULES)
def test_the_ratio_by_hand(rule, configured, initial, monkeypatch):
    config = configured("CartPole", *SCALED, *RULES[rule])
    executor = InlineExecutor(config, initial(config))
    assert executor.advance(2, never).value_loss_ratios == {}
    (shard,) = executor.shards
    donor = executor.export(torch.tensor([2]))
    before = [x[0].clone() for x in (shard.collector._raw["obs"], shard.collector._start)]
    executor.graft(decided(executor), 1)
    seen, learn = [], shard.learner.learn_

    def listen(member, seat, rollout, generators):
        values = rollout.value.clone()
        metrics, target = learn(member, seat, rollout, generators)
        seen.append([x[0].clone() for x in (rollout.raw_obs["obs"], rollout.start, values, target, rollout.valid)])
        return metrics, target

    monkeypatch.setattr(shard.learner, "learn_", listen)
    ratios = executor.advance(2, never).value_loss_ratios
    executor.close()

    nothing = torch.zeros(1, 4, shard.policy.state_size)
    state = played_by(donor, shard, *before, nothing)[1] if GOING_ON in RULES[rule] else nothing
    raw, start, own, target, valid = seen[0]
    expected, _ = played_by(donor, shard, raw, start, state)
    errors = [((target - values) * valid).square().sum() for values in (own, expected)]
    assert list(ratios) == [0]
    assert ratios[0] == pytest.approx(float(errors[0] / errors[1]), rel=1e-4)
    assert (abs(ratios[0] - 1) < 1e-4) == (rule in LOSSLESS)


@pytest.mark.parametrize("kind", [InlineExecutor, pytest.param(ProcessExecutor, marks=pytest.mark.slow)])
def test_a_graft_across_shards_loses_nothing_and_is_compared_once(kind, configured, initial):
    config = configured("Pendulum")
    executor = kind(config, initial(config), shards=3)
    executor.advance(1, never)
    executor.graft(decided(executor), 1)
    found = [executor.advance(1, never).value_loss_ratios for _ in range(2)]
    executor.graft(decided(executor), 3)
    executor.restart(4)
    found.append(executor.advance(1, never).value_loss_ratios)
    executor.close()
    assert found == [{0: pytest.approx(1, abs=1e-5)}, {}, {}]


def test_the_comparison_changes_nothing(configured, initial, monkeypatch):
    after = []
    for compared in (True, False):
        config = configured("CartPole", GOING_ON)
        executor = InlineExecutor(config, initial(config))
        executor.advance(1, never)
        executor.graft(decided(executor), 1)
        if not compared:
            monkeypatch.setattr(executor.shards[0], "_heirs", None)
        executor.advance(2, never)
        after.append(dict(tree.items(executor.export(torch.arange(3)))))
        executor.close()
    for name, leaf in after[0].items():
        torch.testing.assert_close(leaf, after[1][name], atol=0, rtol=0, equal_nan=True)
