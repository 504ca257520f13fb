"""What a recipient gets of its donor, leaf by leaf, under every rule."""

import math

import pytest
import torch

from popgraft import tree
from popgraft.config import PopulationConfig
from popgraft.errors import ConfigError
from popgraft.execute import InlineExecutor, Shard
from popgraft.inheritance import inherit, strategies
from popgraft.rollout.definitions import check_names
from popgraft.state import Decision, Record, Scores

PARENTS = torch.tensor([2, 1, 2])
SPACES = [
    {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True},
    {"name": "clip_range", "min_value": 0.1, "max_value": 0.3},
]
EVERYTHING = [
    "model.optimizer=adaptive_upgd",
    "model.optimizer_kwargs={adaptive_noise: true, instant_noise_scale: false}",
    "model.vgs={enabled: true, warmup_steps: 1}",
    "model.normalize_reward=false",
    "model.normalize_returns=true",
    "model.network.twin_critics=true",
    "model.kl_penalty=true",
    "model.target_kl=0.01",
    "model.ent_coef_final=0.0",
    "model.ent_coef_plateau_window=3",
]


def decided(member, **changed):
    """Members 0 and 2 become member 2 and itself; the recipient explores."""
    hyperparams = {name: values[PARENTS] for name, values in member.hyperparams.items()} | changed
    return Decision(PARENTS, hyperparams, {0: "truncation"})


@pytest.fixture
def trained(configured, initial):
    """Makes an executor whose members have learned with everything that has state, and no leaf is like another's."""
    executors = []

    def make(*overrides, settings=EVERYTHING):
        config = configured("CartPole", *settings, *overrides)
        executor = InlineExecutor(config, initial(config))
        executors.append(executor)
        executor.advance(2, lambda: False)
        (shard,) = executor.shards
        draw = torch.Generator().manual_seed(0)
        for path, leaf in tree.items(shard.member):
            if leaf.is_floating_point() and not path.startswith("hyperparams"):
                leaf += 0.01 * torch.rand(leaf.shape, generator=draw, dtype=leaf.dtype)
        return executor, tree.map(torch.clone, shard.member)

    yield make
    for executor in executors:
        executor.close()


def test_every_leaf_is_inherited_without_a_list_of_leaves(trained):
    """Whatever leaf a member has or will have: disturbed in the donor, it is the recipient's after the graft."""
    executor, before = trained()
    for path, leaf in tree.items(executor.shards[0].member):
        executor.shards[0].member.age[2] = 77
        disturbed = leaf[2] + 1
        leaf[2] = torch.where(disturbed.isfinite(), disturbed, 3.0)
        expected = leaf[2].clone()
        executor.graft(decided(executor.shards[0].member), 1)
        assert torch.equal(leaf[0], expected), path
        assert torch.equal(leaf[1], dict(tree.items(before))[path][1]), path


def names(member):
    return [path for path, _ in tree.items(member)]


KEPT = {"copy": set(), "reset": {"optimizer"}, "scale": {"optimizer.averages.exp_avg"}}


@pytest.mark.parametrize("strategy", KEPT)
def test_strategies_of_the_optimizer_state(strategy, trained):
    name = strategy if strategy in ("copy", "reset") else f"partial, pbt.optimizer_partial={strategy}"
    executor, before = trained(*f"pbt.optimizer_exploit_strategy={name}".split(", "))
    executor.graft(decided(before), 1)
    after, reference = executor.export(torch.arange(3)), dict(tree.items(before))
    for path, leaf in tree.items(after):
        fresh = any(f"{path}.".startswith(f"{prefix}.") for prefix in KEPT[strategy])
        assert torch.equal(leaf[0], torch.zeros_like(leaf[0]) if fresh else reference[path][2]), path
        assert torch.equal(leaf[1:], reference[path][1:]), path
    assert reference["optimizer.averages.exp_avg"][2].any()


def test_a_kept_momentum_is_one_step_along_the_mean_gradient(trained):
    executor, before = trained("pbt.optimizer_exploit_strategy=partial", "model.optimizer_kwargs={betas: [0.8, 0.99]}")
    executor.graft(decided(before), 1)
    after, steps = executor.export(torch.tensor([0])).optimizer, float(before.optimizer.step[2])
    mean = before.optimizer.averages["exp_avg"][2] / (1 - 0.8**steps)
    torch.testing.assert_close(after.averages["exp_avg"][0], 0.2 * mean)
    torch.testing.assert_close(after.averages["exp_avg_sq"][0], 0.01 * mean.square())
    assert not after.averages["utility"].any()
    assert (steps > 3, float(after.step)) == (True, 1.0)


@pytest.mark.parametrize(("clip", "fate"), [(0.215, "copy"), (0.225, "reset")])
def test_adaptive_copies_near_the_donor_and_resets_beyond(clip, fate, trained):
    """The width of the clip range's space is 0.2, so a tenth of it is 0.02."""
    executor, before = trained(
        "pbt.optimizer_exploit_strategy=adaptive", f"pbt.hyperparams={SPACES}", "pbt.optimizer_adaptive_distance=0.1"
    )
    config = executor.shards[0].config.pbt
    before.hyperparams["clip_range"] = torch.full((3,), 0.2)
    executor.shards[0].member.hyperparams["clip_range"].fill_(0.2)
    decision = decided(before, clip_range=torch.tensor([clip, 0.2, 0.2]))
    assert strategies(decision, before.hyperparams, config) == {0: fate}
    executor.graft(decision, 1)
    after = executor.export(torch.tensor([0]))
    assert bool(after.optimizer.step.any()) == (fate == "copy")
    assert torch.equal(after.params[0], before.params[2])


def test_rescaling_keeps_the_velocity(trained):
    executor, before = trained("pbt.optimizer_rescale=true")
    rates = before.hyperparams["learning_rate"][PARENTS] * torch.tensor([2.0, 1.0, 1.0])
    executor.graft(decided(before, learning_rate=rates), 1)
    after = executor.export(torch.tensor([0]))
    old, new = before.hyperparams["learning_rate"][2], rates[0]
    velocity = after.optimizer.averages["exp_avg"][0] * new
    torch.testing.assert_close(velocity, before.optimizer.averages["exp_avg"][2] * old)


FAULTS = {
    "forget_vgs": "vgs",
    "forget_normalizer": "normalizer",
    "forget_return_scale": "returns",
    "forget_kl_penalty": "kl",
    "keep_optimizer": "optimizer",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_keeps_what_it_names_and_nothing_else(fault, trained):
    executor, before = trained(f"pbt.graft_faults=[{fault}]")
    executor.graft(decided(before), 1)
    reference = dict(tree.items(before))
    for path, leaf in tree.items(executor.export(torch.arange(3))):
        source = 0 if path.split(".")[0] == FAULTS[fault] else 2
        assert torch.equal(leaf[0], reference[path][source]), path


def test_further_faults(trained):
    executor, before = trained("pbt.graft_faults=[clear_vgs, overwrite_learning_rate]")
    decision = decided(before, learning_rate=torch.tensor([0.5, 0.5, 0.5]))
    executor.graft(decision, 1)
    after = executor.export(torch.arange(3))
    assert not any(leaf[0].any() for _, leaf in tree.items(after.vgs))
    assert after.hyperparams["learning_rate"].tolist() == [before.hyperparams["learning_rate"][2], 0.5, 0.5]


def test_a_rule_of_ones_own(trained, tmp_path, monkeypatch):
    """Half of the donor's network: what a study wants to know that nobody has thought of here."""
    (tmp_path / "a_study.py").write_text(
        "import dataclasses\n"
        "def halfway(own, donor, heir):\n"
        "    return dataclasses.replace(heir, params=(own.params + donor.params) / 2)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    executor, before = trained("pbt.graft_faults=[a_study:halfway, forget_vgs]")
    executor.graft(decided(before), 1)
    after = executor.export(torch.arange(3))
    assert torch.equal(after.params[0], (before.params[0] + before.params[2]) / 2)
    assert torch.equal(after.params[1:], before.params[1:])
    for (_, leaf), (_, old) in zip(tree.items(after.vgs), tree.items(before.vgs), strict=True):
        assert torch.equal(leaf, old)
    config = executor.shards[0].config
    check_names(config)
    lost = config.pbt.model_copy(update={"graft_faults": ["a_study:halfways"]})
    with pytest.raises(ConfigError, match=r"pbt.graft_faults='a_study:halfways'.*halfway"):
        check_names(config.model_copy(update={"pbt": lost}))


def test_faults_are_said_aloud(configured):
    config = configured("CartPole", "pbt.graft_faults=[forget_vgs]", "pbt.reset_envs_on_exploit=false")
    assert config.cautions == ["every graft commits faults on purpose, for ablation: forget_vgs"]
    keeping = configured("CartPole", "pbt.reset_envs_on_exploit=false", "pbt.lstm_reset_mode=keep")
    assert keeping.pbt.faults == ["keep_recurrent_state"]
    with pytest.raises(ConfigError, match="graft_faults"):
        configured("CartPole", "pbt.graft_faults=[forget_everything]")
    with pytest.raises(ConfigError, match="new ones begin from zero"):
        PopulationConfig(lstm_reset_mode="burn_in")


def test_recurrent_state_of_episodes_that_go_on(configured, initial):
    """zero: 0; keep: as it was; burn_in: what the donor would have come to in these episodes, step by step."""
    after = {}
    for mode in ("zero", "keep", "burn_in"):
        overrides = [f"pbt.lstm_reset_mode={mode}", "pbt.reset_envs_on_exploit=false"]
        config = configured("CartPole", *overrides)
        executor = InlineExecutor(config, initial(config))
        executor.advance(2, lambda: False)
        (shard,) = executor.shards
        before, seat = tree.map(torch.clone, shard.member), tree.map(torch.clone, shard.seat)
        observed = {key: array.copy() for key, array in shard.grid.observations.items()}
        executor.graft(decided(before), 1)
        for key, array in shard.grid.observations.items():
            assert (array == observed[key]).all()
        assert torch.equal(shard.seat.episode_length, seat.episode_length)
        assert torch.equal(shard.seat.carry[1:], seat.carry[1:])
        after[mode] = shard.seat.carry[0]
        if mode == "burn_in":
            raw, start = shard.collector._raw["obs"][0], shard.collector._start[0]
            stats = before.normalizer.obs["obs"]
            obs = ((raw - stats.mean[2]) / (stats.var[2] + 1e-8).sqrt()).clamp(-10, 10).float()
            carry = torch.zeros(1, 4, shard.policy.state_size)
            params = shard.policy.views(before.params[2:])
            for t in range(config.model.n_steps):
                step = {"obs": obs[t].view(1, 1, 4, -1)}
                carry = shard.policy.unroll(params, step, carry, start[t].view(1, 1, 4)).state
            torch.testing.assert_close(after[mode], carry[0], atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(after[mode], torch.zeros_like(seat.carry[0]) if mode == "zero" else seat.carry[0])
        assert math.isfinite(executor.advance(1, lambda: False).metrics["value_loss"].sum())
        executor.close()


def test_a_record_of_earlier_is_inherited_like_a_member(trained):
    executor, before = trained()
    record = Record(executor.export(torch.tensor([1])), Scores(*torch.ones(2, 1), torch.ones(1).long()), 0, 1)
    executor.advance(1, lambda: False)
    now = executor.export(torch.arange(3))
    values = {name: column.clone() for name, column in now.hyperparams.items()}
    decision = Decision(torch.tensor([2, 1, 3]), values, {0: "truncation", 2: "backtracking"})
    executor.graft(decision, 2, record)
    after, reference = executor.export(torch.arange(3)), dict(tree.items(record.state))
    for path, leaf in tree.items(after):
        if not path.startswith("hyperparams"):
            assert torch.equal(leaf[2], reference[path][0]), path
            assert torch.equal(leaf[:2], dict(tree.items(now))[path][[2, 1]]), path
    assert torch.equal(before.params[1], after.params[2])


def test_inherit_shares_no_memory_with_the_donor(trained):
    executor, before = trained()
    rows = torch.tensor([0])
    own, donor = tree.gather(before, rows), tree.gather(before, torch.tensor([2]))
    (shard,) = executor.shards
    heir = inherit(own, donor, shard.config)
    assert isinstance(shard, Shard)
    tree.put_(shard.member, rows, heir)
    tree.map(torch.Tensor.zero_, donor)
    assert shard.member.params[0].any()
