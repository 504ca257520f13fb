"""Faults, rescue, live hyperparameters, and shards that make no difference."""

import dataclasses
import math

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import tree
from popgraft.execute import InlineExecutor
from popgraft.pbt import Evolution, everybody
from popgraft.rng import derive
from popgraft.state import Decision

CLOSE = {"atol": 1e-4, "rtol": 1e-4}
"""Stacks of unlike size differ in rounding; see test_shard.py."""
SURVIVORS = [0, 2]
OFF = ["hyperparams.clip_range_vf", "hyperparams.ent_coef_final", "hyperparams.target_kl"]
"""Infinite where nothing is configured."""


def never():
    return False


@pytest.fixture
def execute(configured, initial):
    """Makes an executor, with the configuration that it runs."""
    executors = []

    def make(*overrides, env="CartPole", pop=3, factory=None, shards=1, **hyperparams):
        config = configured(env, *overrides, pop=pop)
        executors.append(InlineExecutor(config, initial(config) | hyperparams, factory, shards))
        return config, executors[-1]

    yield make
    for executor in executors:
        executor.close()


def everyone(executor):
    """All that is inherited, and the seats, in one tree of named leaves."""
    pop = sum(len(shard.members) for shard in executor.shards)
    seat = tree.concatenate([shard.seat for shard in executor.shards])
    return tree.map(torch.clone, {**dict(tree.items(executor.export(torch.arange(pop)))), **dict(tree.items(seat))})


def check_equal(found, expected, members):
    for name, leaf in found.items():
        torch.testing.assert_close(leaf[members], expected[name][members], equal_nan=True, atol=0, rtol=0)


def keep(executor, pop=3, **changed):
    """A decision in which everybody survives."""
    parents = torch.arange(pop)
    return Decision(parents, executor.export(parents).hyperparams | changed, {})


@pytest.mark.parametrize(
    ("env", "shards"),
    [
        ("CartPole", 2),
        pytest.param("CartPole", 4, marks=pytest.mark.slow),
        pytest.param("Pendulum", 2, marks=pytest.mark.slow),
        ("Pendulum", 4),
        ("tensors", 2),
    ],
)
def test_shards_make_no_difference(env, shards, execute):
    """Two generations with a graft across the shards' border, in both directions."""
    outcomes = []
    for count in (1, shards):
        _, executor = execute(env=env, pop=4, shards=count)
        assert [len(shard.members) for shard in executor.shards] == [4 // count] * count
        first = executor.advance(1, never)
        parents = torch.tensor([3, 1, 0, 3])
        hyperparams = {name: values[parents] for name, values in executor.export(torch.arange(4)).hyperparams.items()}
        hyperparams["clip_range"] = torch.tensor([0.1, 0.2, 0.3, 0.4])
        executor.graft(Decision(parents, hyperparams, {0: "truncation", 2: "truncation"}), 1)
        inherited = everyone(executor)
        second = executor.advance(2, never)
        scores = executor.evaluate(8)
        named = {f"first.{name}": leaf for name, leaf in first.metrics.items()}
        named |= {f"second.{name}": leaf for name, leaf in second.metrics.items()}
        named |= {f"inherited.{name}": leaf for name, leaf in inherited.items()} | everyone(executor)
        named |= {"trained": second.scores.mean, "episodes": second.scores.episodes, "healthy": second.healthy}
        named |= {"score": scores.mean, "stderr": scores.stderr, "steps": torch.tensor([first.steps, second.steps])}
        outcomes.append(named)
    for name, leaf in outcomes[0].items():
        torch.testing.assert_close(outcomes[1][name], leaf, equal_nan=True, **CLOSE)
    inherited = {name: leaf for name, leaf in outcomes[0].items() if name.startswith("inherited.")}
    assert torch.equal(inherited["inherited.params"][0], inherited["inherited.params"][3])


def test_a_graft_within_and_across_shards_reads_all_donors_before_it_writes(execute):
    _, executor = execute(pop=4, shards=2)
    executor.advance(1, never)
    before = executor.export(torch.arange(4))
    parents = torch.tensor([2, 0, 1, 0])
    executor.graft(dataclasses.replace(keep(executor, 4), parents=parents), 1)
    after = executor.export(torch.arange(4))
    for (path, leaf), (_, old) in zip(tree.items(after), tree.items(before), strict=True):
        if not path.startswith("hyperparams"):
            assert torch.equal(leaf, old[parents]), path


def test_an_export_is_a_copy_in_the_order_that_was_asked_for(execute):
    _, executor = execute(shards=2)
    rows = executor.export(torch.tensor([2, 0, 2]))
    assert torch.equal(rows.params, everyone(executor)["params"][[2, 0, 2]])
    tree.map(torch.Tensor.zero_, rows)
    assert everyone(executor)["params"].any(1).all()


def test_the_same_seed_twice_is_the_same_bit_for_bit(execute):
    outcomes = []
    for _ in range(2):
        config, executor = execute(shards=2)
        evolution = Evolution(config.pbt, config.seed)
        for generation in range(2):
            executor.advance(1, never)
            scores = executor.evaluate(derive(config.seed, "evaluation", generation))
            hyperparams = executor.export(torch.arange(3)).hyperparams
            standing = everybody(generation, scores, hyperparams, config.pbt, config.seed)
            executor.graft(evolution.decide(standing, hyperparams), generation + 1)
        outcomes.append(everyone(executor))
    check_equal(*outcomes, [0, 1, 2])


def test_a_stop_is_heeded_between_two_updates_by_all_shards(execute):
    _, executor = execute(shards=3)
    advance = executor.advance(5, lambda: True)
    assert {leaf.shape for leaf in advance.metrics.values()} == {(3, 1)}
    assert executor.export(torch.arange(3)).age.tolist() == [1, 1, 1]


class Faulty(gym.Wrapper):
    """A CartPole that goes wrong in the twentieth step, if its seed is among the bad ones."""

    bad: tuple[int, ...] = ()
    kind = "raise"

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.is_bad, self.steps = seed in self.bad, 0
        return self.env.reset(seed=seed, options=options)

    def step(self, action):
        obs, reward, terminated, truncated, info = self.env.step(action)
        self.steps += 1
        if self.is_bad and self.steps == 20:
            if self.kind == "raise":
                raise RuntimeError("the motor burnt out")
            if self.kind == "reward":
                reward = math.nan
            if self.kind == "obs":
                obs = np.full_like(obs, math.inf)
        return obs, reward, terminated, truncated, info


def faulty(num_envs):
    return SyncVectorEnv([lambda: Faulty(gym.make("CartPole-v1"))] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


FACTORY = ["env.id=null", "env.factory=not:used"]
SAID = {
    "raise": "RuntimeError: the motor burnt out",
    "reward": "UnusableNumber: environment 1 gave nan as reward;",
    "obs": "UnusableNumber: environment 1 gave inf as observation 'obs' at [0];",
}


@pytest.mark.parametrize("kind", SAID)
@pytest.mark.parametrize(
    ("normalize", "shards", "mode"),
    [
        ("true", 1, "fresh"),
        ("false", 3, "fresh"),
        pytest.param("true", 1, "zero", marks=pytest.mark.slow),
        pytest.param("true", 1, "keep", marks=pytest.mark.slow),
    ],
)
def test_a_fault_is_contained_reported_and_healed(kind, normalize, shards, mode, execute, monkeypatch):
    """The second environment of member 1 goes wrong in the second update of the first generation."""
    overrides = [*FACTORY, f"model.normalize_obs={normalize}"]
    overrides += [f"model.normalize_reward={normalize}"]
    if mode != "fresh":  # healthy members' episodes go on; what is broken begins anew
        overrides += ["pbt.reset_envs_on_exploit=false", f"pbt.lstm_reset_mode={mode}"]
    config, calm = execute(*overrides, factory=faulty, shards=shards)
    calm.advance(2, never)
    expected = everyone(calm)

    monkeypatch.setattr(Faulty, "bad", (derive(config.seed, "environment", 0, 1) + 1,))
    monkeypatch.setattr(Faulty, "kind", kind)
    _, executor = execute(*overrides, factory=faulty, shards=shards)
    advance = executor.advance(2, never)
    assert advance.healthy.tolist() == [True, False, True]
    assert list(advance.faults) == [1]
    assert advance.faults[1].startswith(SAID[kind])
    check_equal(everyone(executor), expected, SURVIVORS)

    scores = executor.evaluate(8)
    scores = dataclasses.replace(scores, mean=scores.mean.masked_fill(~advance.healthy, math.nan))
    values = executor.export(torch.arange(3)).hyperparams
    standing = everybody(0, scores, values, config.pbt, config.seed)
    decision = Evolution(config.pbt, config.seed).decide(standing, values)
    assert decision.reasons[1] == "rescue"
    donor = int(decision.parents[1])
    assert donor in SURVIVORS
    executor.graft(decision, 1)
    member = executor.export(torch.arange(3))
    for path, leaf in tree.items(member):
        assert leaf.isfinite().all() or path in OFF, path
        if not path.startswith("hyperparams"):
            assert torch.equal(leaf[1], leaf[donor]), path

    advance = executor.advance(2, never)
    assert advance.healthy.all()
    assert advance.faults == {}
    assert (advance.metrics["optimizer_steps"] == 4).all()
    assert executor.evaluate(8).mean.isfinite().all()


def test_without_a_rescue_a_fault_lasts_until_the_next_reset(execute, monkeypatch):
    """No step is valid meanwhile, and no sum counts anything."""
    config, _ = execute()
    monkeypatch.setattr(Faulty, "bad", (derive(config.seed, "environment", 0, 1) + 1,))
    monkeypatch.setattr(Faulty, "kind", "obs")
    _, executor = execute(*FACTORY, factory=faulty)
    first, before = executor.advance(2, never), executor.export(torch.arange(3)).normalizer
    second, after = executor.advance(2, never), executor.export(torch.arange(3))
    for advance in (first, second):
        assert advance.healthy.tolist() == [True, False, True]
    assert (before.obs["obs"].count[1], before.returns.count[1]) == (after.normalizer.obs["obs"].count[1],) * 2
    for path, leaf in tree.items(after):
        assert leaf.isfinite().all() or path in OFF, path
    executor.restart(1)
    assert executor.advance(2, never).healthy.all()


def test_a_fault_in_evaluation_is_that_members_and_passes(execute, monkeypatch):
    _, executor = execute(*FACTORY, factory=faulty, shards=3)
    calm = executor.evaluate(8)
    assert calm.mean.isfinite().all()
    grid = executor.shards[1]._evaluation_grid

    def raising(actions):
        raise RuntimeError("the motor burnt out")

    monkeypatch.setattr(grid._envs[0], "send", raising)
    scores = executor.evaluate(8)
    assert scores.mean.isfinite().tolist() == [True, False, True]
    assert scores.faults == {1: "RuntimeError: the motor burnt out"}
    assert torch.equal(scores.mean[SURVIVORS], calm.mean[SURVIVORS])
    assert torch.equal(executor.evaluate(8).mean, calm.mean)


def test_a_learning_rate_of_zero_stops_the_parameters(execute):
    _, executor = execute()
    executor.advance(1, never)
    executor.graft(keep(executor, learning_rate=torch.tensor([0.0, 1e-3, 0.0])), 1)
    before = everyone(executor)
    executor.advance(1, never)
    after = everyone(executor)
    assert torch.equal(after["params"][SURVIVORS], before["params"][SURVIVORS])
    assert not torch.equal(after["params"][1], before["params"][1])
    assert (after["optimizer.step"] > before["optimizer.step"]).all()


ATTACKED = "model.adversary={enabled: true, warmup_updates: 0}"
LIVE = {
    "learning_rate": (5e-3, []),
    "clip_range": (1e-3, []),
    "clip_range_vf": (1e-3, ["model.clip_range_vf=1.0"]),
    "ent_coef": (0.5, []),
    "ent_coef_final": (0.9, ["model.ent_coef_final=0.0", "model.ent_coef_decay_steps=3"]),
    "ent_coef_min": (0.7, []),
    "vf_coef": (5.0, []),
    "gamma": (0.5, []),
    "gae_lambda": (0.1, []),
    "max_grad_norm": (1e-4, []),
    "target_kl": (1e-12, []),
    "cvar_weight": (0.9, ["model.cvar_weight=0.1"]),
    "cvar_alpha": (0.9, ["model.cvar_weight=0.5"]),
    "sigma": (0.5, ["model.optimizer=upgd"]),
    "weight_decay": (0.5, ["model.optimizer=adamw"]),
    "vgs_alpha": (9.0, ["model.vgs.enabled=true", "model.vgs.warmup_steps=1"]),
    "adversarial_epsilon": (0.5, [ATTACKED]),
    "adversarial_ratio": (1.0, [ATTACKED, "pbt.hyperparams=[{name: adversarial_ratio, values: [0.25, 0.5, 1.0]}]"]),
    "robust_kl_coef": (9.0, [ATTACKED]),
}
"""A value that makes a difference, and settings under which the number is used."""
PID = ["model.kl_penalty=true", "model.target_kl=1e-9", "model.kl_beta=0.1", "model.kl_beta_max=1e6"]


@pytest.fixture(scope="module")
def unchanged():
    """Outcomes of a decision that changes nothing, by environment and settings."""
    return {}


@pytest.mark.parametrize(
    ("env", "name", "value", "settings"),
    [
        *(("CartPole", name, *case) for name, case in LIVE.items()),
        *(("CartPole", f"kl_pid_{gain}", 1e-3, PID) for gain in "pid"),
        *(
            pytest.param("Pendulum", name, *LIVE[name], marks=pytest.mark.slow)
            for name in ("ent_coef", "gamma", "adversarial_ratio")
        ),
    ],
)
def test_every_hyperparameter_is_live_after_a_decision(env, name, value, settings, execute, unchanged):
    """Changed for member 0 alone, it changes member 0's next updates and no bit of the others'."""

    def outcome(**changes):
        _, executor = execute("model.clip_range=0.2", *settings, env=env, learning_rate=torch.full((3,), 1e-2))
        executor.advance(1, never)
        decision = keep(executor)
        for changed, number in changes.items():
            decision.hyperparams[changed][0] = number
        executor.graft(decision, 1)
        metrics = executor.advance(2, never).metrics
        return everyone(executor), metrics, decision.hyperparams

    place = env, *settings
    if place not in unchanged:
        unchanged[place] = outcome()
    (before, calm, decided_before), (after, found, decided_after) = unchanged[place], outcome(**{name: value})
    if name not in ("ent_coef", "ent_coef_min"):  # what is logged is the weight in force
        assert calm[name][0, 0] == decided_before[name][0]
        assert found[name][0, 0] == decided_after[name][0]
    assert not torch.equal(after["params"][0], before["params"][0])
    check_equal(after | found, before | calm, [1, 2])
    if name == "target_kl":
        assert found["optimizer_steps"][0, 0] <= 1
        assert (calm["optimizer_steps"] == 4).all()
    if name in ("ent_coef", "ent_coef_min"):
        assert (found["ent_coef"][0] == value).all()


def test_a_failed_construction_closes_what_was_made(configured, initial):
    closed = []

    class Closing(SyncVectorEnv):
        def close_extras(self, **kwargs):
            closed.append(self)
            super().close_extras(**kwargs)

    made = []

    def factory(num_envs):
        if len(made) == 2:
            raise RuntimeError("out of licences")
        made.append(Closing([lambda: gym.make("CartPole-v1")] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP))
        return made[-1]

    config = configured("CartPole", *FACTORY)
    with pytest.raises(Exception, match="out of licences"):
        InlineExecutor(config, initial(config), factory, shards=3)
    assert closed == made
