import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete, Text
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import ConfigError, EnvironmentFault, Generation, Observer, Plan, PopulationLost, Run, RunExists, train
from popgraft.config import load_config
from popgraft.store import RunDatabase, snapshot
from popgraft.train.ledger import _disagreement

from .same import tensors

Tiny = Callable[..., dict[str, Any]]
WORDS = {
    "raise": "RuntimeError: the floor is wet",
    "reward": "UnusableNumber: environment 0 gave nan as reward",
    "observation": "UnusableNumber: environment 0 gave nan as observation 'obs'",
}
GENERATIONS = 3
STEPS = 64  # of the population in a generation


class Walk(gym.Env):
    """Rewards action 1; episodes of 6 steps. At its 20th step something may go wrong, once."""

    observation_space, action_space = Box(-1, 1, (2,)), Discrete(2)

    def __init__(self, fault: str = "") -> None:
        self.fault, self.steps, self.left = fault, 0, 6

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 6
        return self.observation_space.low * 0, {}

    def step(self, action: Any) -> Any:
        self.steps, self.left = self.steps + 1, self.left - 1
        now = self.fault if self.steps == 20 else ""
        if now == "raise":
            raise RuntimeError("the floor is wet")
        reward = np.nan if now == "reward" else float(action)
        obs = np.full(2, np.nan if now == "observation" else self.left / 6, np.float32)
        return obs, reward, self.left == 0, False, {}


def factory_of(*faults: str) -> Callable[..., SyncVectorEnv]:
    """Environments in the order in which they are asked for: the members' own come first."""
    remaining = list(faults)

    def make(num_envs: int) -> SyncVectorEnv:
        fault = remaining.pop(0) if remaining else ""
        return SyncVectorEnv([lambda: Walk(fault)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    return make


class Diary(Observer):
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.updates: list[int] = []
        self.generations: list[Generation] = []
        self.events: list[tuple[str, str]] = []

    def on_start(self, plan: Plan) -> None:
        self.calls.append("start")
        self.plan = plan

    def on_update(self, steps: int) -> None:
        self.updates.append(steps)

    def on_generation(self, generation: Generation) -> None:
        self.calls.append("generation")
        self.generations.append(generation)

    def on_event(self, kind: str, text: str) -> None:
        self.events.append((kind, text))

    def on_interrupt(self) -> None:
        self.calls.append("interrupt")

    def on_final_evaluation(self, episodes: int) -> None:
        self.calls.append("final")

    def on_end(self) -> None:
        self.calls.append("end")


class Interrupter(Diary):
    """Sends signals in the middle of the second generation."""

    def __init__(self, *signals: signal.Signals) -> None:
        super().__init__()
        self.signals = signals

    def on_update(self, steps: int) -> None:
        super().on_update(steps)
        if len(self.updates) == 3:
            for number in self.signals:
                os.kill(os.getpid(), number)


def kinds(run: Run) -> list[str]:
    return [event.kind for event in run.events]


def test_a_run_tells_its_observer_and_fills_its_folder(tiny: Tiny) -> None:
    diary = Diary()
    run = train(tiny(), observer=diary)
    assert diary.calls == ["start", *["generation"] * GENERATIONS, "final", "end"]
    assert diary.updates == [32, 64, 96, 128, 160, 192]
    assert diary.plan.folder == run.path
    assert diary.plan.steps == GENERATIONS * STEPS
    assert diary.plan.parameters == run.best.member.params.shape[1]
    assert [generation.steps for generation in diary.generations] == [64, 128, 192]
    assert [(record.generation, record.member, record.steps) for record in run.scores] == [
        (0, 0, 32), (0, 1, 32), (1, 0, 64), (1, 1, 64), (2, 0, 96), (2, 1, 96)
    ]  # fmt: skip
    scores = [score for generation in diary.generations for score in generation.scores.mean.tolist()]
    assert [record.score for record in run.scores] == scores
    with RunDatabase(run.folder.database) as database:
        recorded = database.metrics()
    for told, kept in zip(diary.generations, recorded, strict=True):
        assert kept.members.keys() == told.metrics.keys()
        means = np.mean(told.metrics["entropy_loss"].double().numpy(), axis=1)
        assert kept.members["entropy_loss"] == pytest.approx(means, rel=1e-5)
        assert kept.population == pytest.approx(told.statistics, rel=1e-5)
        assert 0 <= kept.population["optimizer_distance"] < 2
    assert snapshot.names(run.folder) == ["best", "generation_000003", "last"]
    assert tensors(run, "last")["age"].tolist() == [6, 6]
    assert set(kinds(run)) <= {"tie", "best", "final"}
    assert kinds(run)[-1] == "final"


def test_the_best_agent_was_scored_when_it_was_found(tiny: Tiny) -> None:
    run = train(tiny())
    summary = run.summary
    (best,) = (
        each for each in run.scores if (each.generation, each.member) == (summary["generation"], summary["member"])
    )
    assert (summary["claimed_score"], summary["claimed_stderr"]) == (best.score, best.stderr)
    assert summary["steps"] == (best.generation + 1) * STEPS
    scores = run.best.evaluate(4, seed=0)
    final = (summary["final_score"], summary["final_stderr"], summary["final_episodes"])
    assert final == (scores.mean.item(), scores.stderr.item(), 4)


def test_with_a_weight_of_attacks_the_best_agent_is_scored_with_and_without(tiny: Tiny) -> None:
    attack = {"method": "critic", "epsilon": 1.0, "steps": 2}
    run = train(tiny(total_timesteps=64, evaluation__attack_weight=0.5, evaluation__attack=attack))
    settings, found = run.config.evaluation, run.summary
    clean, attacked = (run.best.evaluate(4, run.config.seed, attack=each) for each in (None, settings.attack))
    assert (found["final_score"], found["final_stderr"]) == (clean.mean.item(), clean.stderr.item())
    assert (found["final_attacked_score"], found["final_attacked_stderr"]) == (
        attacked.mean.item(),
        attacked.stderr.item(),
    )
    assert re.fullmatch(
        r"the best agent scores \S+ ± \S+ and under attack \S+ ± \S+ over 4 fresh episodes", run.events[-1].text
    )


def test_low_scores_are_good_where_the_configuration_says_so(tiny: Tiny) -> None:
    run = train(tiny(pbt__metric_mode="min"))
    assert run.lineage
    one = train(tiny(pbt__metric_mode="min", total_timesteps=64, run_dir=f"{run.path}_once"))
    assert one.lineage  # the other one has become the best one's copy, and does not meet it at the end
    assert one.summary["claimed_score"] == min(record.score for record in one.scores)
    assert all(graft.parent_score <= graft.score_before for graft in run.lineage)  # equal ones: by returns in training


def test_the_same_seed_gives_the_same_run_bit_for_bit(tiny: Tiny, tmp_path: Path) -> None:
    one, two, other = (
        train(tiny(seed=seed, run_dir=str(tmp_path / name))) for seed, name in [(1, "one"), (1, "two"), (2, "other")]
    )
    assert one.scores == two.scores
    assert one.lineage == two.lineage
    assert one.lineage, "without a graft the comparison says little"
    assert one.summary == two.summary
    for name in ("best", "last"):
        first, second = tensors(one, name), tensors(two, name)
        assert first.keys() == second.keys()
        assert all(torch.equal(leaf, second[path]) for path, leaf in first.items())
    assert one.scores != other.scores


def test_without_exploit_a_run_is_a_random_search(tiny: Tiny) -> None:
    run = train(tiny(pbt__exploit_method="none"))
    assert run.lineage == []
    rates = {member: {r.hyperparams["learning_rate"] for r in run.scores if r.member == member} for member in (0, 1)}
    assert [len(values) for values in rates.values()] == [1, 1]
    assert rates[0] != rates[1]


def test_without_explore_hyperparameters_are_only_inherited(tiny: Tiny) -> None:
    run = train(tiny(pbt__explore_method="none"))
    initial = {record.hyperparams["learning_rate"] for record in run.scores if record.generation == 0}
    assert {record.hyperparams["learning_rate"] for record in run.scores} <= initial
    assert run.lineage
    values = {(record.generation, record.member): record.hyperparams for record in run.scores}
    for graft in run.lineage:
        assert graft.hyperparams_after == values[graft.generation, graft.parent]


def test_explored_hyperparameters_are_what_the_next_generation_trains_with(tiny: Tiny) -> None:
    run = train(tiny())
    values = {(record.generation, record.member): record.hyperparams for record in run.scores}
    later = [graft for graft in run.lineage if graft.generation + 1 < GENERATIONS]
    assert later
    for graft in later:
        assert values[graft.generation + 1, graft.member] == graft.hyperparams_after
        assert graft.hyperparams_after["learning_rate"] != values[graft.generation, graft.parent]["learning_rate"]


def test_backtracking_goes_back_to_the_best_state_there_was(tiny: Tiny) -> None:
    changes = {"pbt__population_size": 3, "pbt__truncation_ratio": 0.5, "total_timesteps": 600}
    run = train(tiny(pbt__exploit_method="backtracking", pbt__explore_method="none", **changes))
    assert run.lineage
    scores = {(record.generation, record.member): record for record in run.scores}
    for graft in run.lineage:
        best = scores[graft.parent_generation, graft.parent]
        assert graft.reason == "backtracking"
        assert graft.score_before < graft.parent_score
        assert graft.hyperparams_after == best.hyperparams
    assert any(graft.parent_generation < graft.generation for graft in run.lineage)


def test_a_population_of_one_trains_without_selection(tiny: Tiny) -> None:
    run = train(tiny(pbt__population_size=1, pbt__exploit_method="none"))
    assert run.lineage == []
    assert {record.member for record in run.scores} == {0}


def test_training_ends_at_the_wanted_score(tiny: Tiny) -> None:
    run = train(tiny(stop_at_score=-1.0))
    assert {record.generation for record in run.scores} == {0}
    assert kinds(run) == ["reached", "final"]
    assert "has reached stop_at_score=-1" in run.events[0].text


def test_members_wait_until_their_first_episode_has_ended(tiny: Tiny) -> None:
    # 16 steps to a generation, episodes of 20: no score after the first generation, one after the second.
    run = train(tiny(pbt__fitness="training", env__kwargs={"delay": 1, "length": 20}))
    by_generation = [[r.score for r in run.scores if r.generation == g] for g in range(GENERATIONS)]
    assert np.isnan(by_generation[0]).all()
    assert np.isfinite(by_generation[1:]).all()
    assert "waiting" in kinds(run)
    assert all(graft.generation > 0 for graft in run.lineage)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupt_ends_the_run_after_the_update_in_progress(tiny: Tiny, kind: signal.Signals) -> None:
    diary, before = Interrupter(kind), signal.getsignal(kind)
    run = train(tiny(), observer=diary)
    assert signal.getsignal(kind) is before
    assert diary.calls == ["start", "generation", "interrupt", "end"]
    assert diary.updates == [32, 64, 96]
    assert kinds(run) == ["stopped"]
    assert {record.generation for record in run.scores} == {0}
    assert run.summary["generation"] == 0
    assert "final_score" not in run.summary
    assert run.best.member.age.tolist() == [2]
    assert tensors(run, "last")["age"].tolist() == [3, 3]


def test_a_run_that_was_started_to_outlive_its_terminal_does(tiny: Tiny) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        run = train(tiny(), observer=Interrupter(signal.SIGHUP))
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
    assert run.is_finished


def test_an_interrupt_while_a_generation_is_decided_ends_the_run_before_the_next(tiny: Tiny) -> None:
    class Late(Diary):
        def on_generation(self, generation: Generation) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    diary = Late()
    run = train(tiny(), observer=diary)
    assert diary.updates == [32, 64]
    assert kinds(run) == ["stopped"]
    assert tensors(run, "last")["age"].tolist() == [2, 2]


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_ends_it_at_once_and_the_best_agent_stays(tiny: Tiny, second: signal.Signals) -> None:
    settings, diary, before = tiny(), Interrupter(signal.SIGINT, second), signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        train(settings, observer=diary)
    assert signal.getsignal(signal.SIGINT) is before
    assert diary.calls[-1] == "end"
    run = Run(settings["run_dir"])
    assert kinds(run) == ["stopped"]
    assert run.best.member.age.tolist() == [2]
    assert run.best.evaluate(2, 0).mean.isfinite().all()


def test_an_interrupt_before_training_writes_nothing(tiny: Tiny, tmp_path: Path) -> None:
    def make(num_envs: int) -> SyncVectorEnv:
        os.kill(os.getpid(), signal.SIGINT)
        return factory_of()(num_envs)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(env__kwargs={}, pbt__population_size=1, pbt__exploit_method="none"), factory=make)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("fault", "fitness"),
    [("raise", "evaluation"), ("raise", "training"), ("reward", "evaluation"), ("observation", "training")],
)
def test_a_member_whose_environment_fails_is_rescued(tiny: Tiny, fault: str, fitness: str) -> None:
    run = train(tiny(env__kwargs={}, pbt__fitness=fitness), factory=factory_of("", fault))
    failed = [(record.generation, record.member) for record in run.scores if np.isnan(record.score)]
    assert failed == [(1, 1)]
    (graft,) = [graft for graft in run.lineage if graft.reason == "rescue"]
    assert (graft.generation, graft.member, graft.parent) == (1, 1, 0)
    told = [event.text for event in run.events if event.kind in ("environment", "rescue")]
    assert told[0].startswith(f"the environment of member 1 failed: {WORDS[fault]}")
    assert told[1:] == ["member 1 had no finite score and continues as member 0"]
    off = ("target_kl", "clip_range_vf", "ent_coef_final")
    assert all(leaf.isfinite().all() for path, leaf in tensors(run, "last").items() if not path.endswith(off))


@pytest.mark.parametrize(("fault", "population"), [("raise", 1), ("raise", 2), ("reward", 2), ("observation", 1)])
def test_a_lost_population_leaves_what_it_had_reached(tiny: Tiny, fault: str, population: int) -> None:
    settings = tiny(env__kwargs={}, pbt__population_size=population)
    if population == 1:
        settings["pbt"]["exploit_method"] = "none"
    diary = Diary()
    with pytest.raises(PopulationLost, match=f"^the environment of member 0 failed: {WORDS[fault]}.*; no other member"):
        train(settings, factory=factory_of(*[fault] * population), observer=diary)
    assert diary.calls[-1] == "end"
    run = Run(settings["run_dir"], factory_of())
    assert kinds(run)[-1] == "stopped"
    assert [np.isnan(record.score) for record in run.scores] == [False] * population + [True] * population
    assert run.summary["generation"] == 0
    assert run.best.evaluate(2, 0).mean.isfinite().all()
    assert tensors(run, "last")["age"].tolist() == [4] * population


def test_a_failure_in_evaluation_is_reported_too(tiny: Tiny) -> None:
    class Short(Walk):
        def step(self, action: Any) -> Any:
            raise RuntimeError("no floor at all")

    calls = 0

    def make(num_envs: int) -> SyncVectorEnv:
        nonlocal calls
        calls += 1
        kind = Short if calls == 4 else Walk  # two for training, two for evaluation
        return SyncVectorEnv([kind] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    run = train(tiny(env__kwargs={}), factory=make)
    assert [event.text for event in run.events if event.generation == 0] == [
        "the environment of member 1 failed: RuntimeError: no floor at all",
        "member 1 had no finite score and continues as member 0",
    ]


def test_a_failure_in_the_last_evaluation_does_not_spoil_the_run(tiny: Tiny) -> None:
    class Bad(Walk):
        def step(self, action: Any) -> Any:
            raise RuntimeError("too late")

    def make(num_envs: int) -> SyncVectorEnv:
        kind = Bad if num_envs == 4 else Walk
        return SyncVectorEnv([kind] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    run = train(tiny(env__kwargs={}), factory=make)
    assert "final_score" not in run.summary
    assert "the best agent has no final score" in run.events[-1].text
    assert "too late" in run.events[-1].text


class Speaker(gym.Env):
    observation_space, action_space = Box(-1, 1, (2,)), Text(3)


MISTAKES = [
    ({"env__id": "CartPoll-v1", "env__kwargs": {}}, ConfigError, "did you mean 'CartPole-v1'"),
    ({"env__idd": "CartPole-v1"}, ConfigError, "unknown key 'idd' in env; did you mean id?"),
    ({"model__gamma": 1.5}, ConfigError, r"model.gamma = 1.5: must lie in \[0, 1\]"),
    ({"pbt__hyperparams": [{"name": "gamma", "min_value": 0.99, "max_value": 0.9}]}, ConfigError, "0.99.*0.9"),
    ({"pbt__population_size": 1}, ConfigError, "a population of 1 has nobody to copy from"),
    ({"engine__device": "abacus"}, ConfigError, "engine.device='abacus' cannot be used: .*; set engine.device: auto"),
    ({"env__kwargs": {"speed": 3}}, EnvironmentFault, "unexpected keyword argument 'speed'"),
]


@pytest.mark.parametrize(("changes", "kind", "message"), MISTAKES)
def test_a_mistake_is_explained_and_leaves_nothing_behind(
    tiny: Tiny, tmp_path: Path, changes: dict[str, Any], kind: type[Exception], message: str
) -> None:
    with pytest.raises(kind, match=message):
        train(tiny(**changes))
    assert list(tmp_path.iterdir()) == []


def test_an_action_space_that_nobody_can_learn_is_refused(tiny: Tiny, tmp_path: Path) -> None:
    def make(num_envs: int) -> SyncVectorEnv:
        return SyncVectorEnv([Speaker] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    with pytest.raises(ConfigError, match=r"the action space Text.* is not supported"):
        train(tiny(env__kwargs={}), factory=make)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_in_use_is_not_touched(tiny: Tiny) -> None:
    settings = tiny(total_timesteps=1)
    run = train(settings)
    files = {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}
    with pytest.raises(RunExists, match="already holds a run; set run_dir to another folder"):
        train(settings)
    assert files == {path: path.stat().st_mtime_ns for path in run.path.rglob("*")}


def test_values_are_reported_as_the_configuration_says_them(tiny, tmp_path):
    """A choice that is no number in single precision, and a default: by records, lineage and observers alike."""
    told = []

    class Listener(Observer):
        def on_generation(self, generation):
            told.append({name: set(values.tolist()) for name, values in generation.hyperparams.items()})

    choices = [0.1, 0.2, 0.3]
    spaces = [{"name": "clip_range", "values": choices}, {"name": "ent_coef", "min_value": 0.1, "max_value": 0.1}]
    run = train(tiny(pbt__hyperparams=spaces), {"run_dir": str(tmp_path / "exact")}, observer=Listener())
    known = [record.hyperparams for record in run.scores]
    known += [each for graft in run.lineage for each in (graft.hyperparams_before, graft.hyperparams_after)]
    assert {values["clip_range"] for values in known} <= set(choices)
    assert {values["ent_coef"] for values in known} == {0.1}
    assert {values["learning_rate"] for values in known} == {run.config.model.learning_rate}
    assert all(each["clip_range"] <= set(choices) and each["gamma"] == {0.99} for each in told)
    load_config(run.config, {"model.clip_range": known[0]["clip_range"]})


def test_members_whose_scores_tie_are_told_apart_by_their_returns_in_training(tiny):
    """The first step of an episode has no reward, so that evaluation says 0 of everybody."""
    run = train(tiny(evaluation__max_steps=1, total_timesteps=640))
    assert {each.score for each in run.scores} == {0.0}
    assert run.lineage
    ties = [event for event in run.events if event.kind == "tie"]
    assert [(tie.generation, tie.text) for tie in ties] == [
        (1, "all 2 members score 0.000 again; returns in training tell them apart")
    ]


class Detour(gym.Env):
    """The first step costs what the three after it bring: whoever is evaluated by one step seems worse the better it is."""

    observation_space, action_space = Box(-1, 1, (1,)), Box(-1, 1, (1,))

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        reward = float(action[0]) * (-1 if self.steps == 1 else 1)
        return np.zeros(1, np.float32), reward, self.steps == 4, False, {}


def detours(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Detour] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def test_scores_that_rank_members_otherwise_than_training_are_told(tiny):
    rates = [{"name": "learning_rate", "min_value": 3e-4, "max_value": 8e-3, "is_log_scale": True}]
    pbt = {"population_size": 6, "perturbation_interval": 12, "hyperparams": rates}
    model = {"n_steps": 16, "n_epochs": 4, "n_minibatches": 1, "network": {"encoder_layers": [8], "hidden_size": 16}}
    settings = tiny(env={"num_envs": 8}, pbt=pbt, model=model, evaluation__max_steps=1, total_timesteps=2 * 9216)
    (told,) = [event for event in train(settings, factory=detours).events if event.kind == "rank"]
    opposite, pairs = map(int, re.search(r"in (\d+) of (\d+) pairs", told.text).groups())
    assert (told.generation, pairs) == (1, 15)
    assert opposite - (pairs - opposite) > 1.645 * (6 * 5 * 17 / 18) ** 0.5


def test_contradiction_is_what_kendall_calls_unlikely():
    kendalltau = pytest.importorskip("scipy.stats").kendalltau
    generator = np.random.default_rng(0)
    found = set()
    for n in (3, 5, 8, 12):
        for _ in range(30):
            x, y = generator.permutation(n).astype(np.float32), generator.permutation(n).astype(np.float32)
            tau, p = kendalltau(x, y, method="asymptotic", alternative="less")
            against, pairs, likely = _disagreement(torch.tensor(x), torch.tensor(y))
            assert pairs == n * (n - 1) // 2
            assert (pairs - 2 * against) / pairs == pytest.approx(tau)
            assert likely == (p > 0.05)
            found.add(likely)
    assert found == {True, False}
