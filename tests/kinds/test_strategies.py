"""Exploit and explore methods and whole strategies from outside the package, in the engine and where others train."""

import contextlib
import dataclasses
import importlib
import json
import math
import sqlite3
from pathlib import Path

import pytest
import torch
import yaml

from popgraft import ConfigError, PBTConfig, PBTScheduler, Run, load_config, resume, train
from popgraft.config import PopulationConfig
from popgraft.foreign.standing import history
from popgraft.hyperparams import HyperparamConfig
from popgraft.inheritance import strategies, velocity_ratio
from popgraft.pbt import Choice, Evolution, everybody
from popgraft.state import Scores
from popgraft.store import RunDatabase, snapshot
from popgraft.train.run_state import RunState

HERE = Path(__file__).parent
GENERATION = 4 * 2 * 8
TWO = {"total_timesteps": 2 * GENERATION}
RATE = HyperparamConfig("learning_rate", min_value=1e-4, max_value=1e-1, is_log_scale=True)


@pytest.fixture(autouse=True)
def theirs(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("their_strategies")


@pytest.fixture
def make(tmp_path):
    """Four members that take 16 steps each in a generation."""

    def build(name, generations=3, **pbt):
        return {
            "env": {"source": "tensor", "id": "CartPole", "num_envs": 2, "kwargs": {"time_limit": 11}},
            "model": {
                "n_steps": 8,
                "n_epochs": 1,
                "n_minibatches": 1,
                "network": {"encoder_layers": [4], "hidden_size": 4},
            },
            "pbt": {
                "population_size": 4,
                "perturbation_interval": 1,
                "truncation_ratio": 0.25,
                "hyperparams": [dataclasses.asdict(RATE)],
                **pbt,
            },
            "evaluation": {"episodes": 4, "final_episodes": 2, "max_steps": 12},
            "snapshots": {"interval": 1},
            "execute": {"shards": 1},
            "total_timesteps": generations * GENERATION,
            "run_dir": str(tmp_path / name),
            "code_dir": str(HERE),
            "seed": 4,
        }

    return build


def members(run):
    return torch.cat([run.agent(i).member.params for i in range(4)])


def told(run):
    grafts = [dataclasses.replace(graft, aftermath=None) for graft in run.lineage]
    return run.scores, grafts, run.adoptions


def ranked(run, generation):
    """Members by score, best first, with what they have been trained with."""
    return sorted((one for one in run.scores if one.generation == generation), key=lambda one: (-one.score, one.member))


CROSSED = {"strategy": "their_strategies:Crossed", "strategy_kwargs": {"factor": 0.5}}


def test_weights_and_hyperparameters_have_parents_of_their_own(make):
    run = train(make("run", **CROSSED))
    for generation in range(3):
        best, second, third, worst = ranked(run, generation)
        (graft,) = [graft for graft in run.lineage if graft.generation == generation]
        assert (graft.member, graft.parent, graft.reason) == (worst.member, best.member, "crossed")
        expected = min(second.hyperparams["learning_rate"] * (1 + 0.5 * (generation + 1)), 0.1)
        assert graft.hyperparams_after["learning_rate"] == pytest.approx(expected, rel=1e-6)
        adopted = {one.member: one.parent for one in run.adoptions if one.generation == generation}
        assert adopted == {worst.member: second.member, third.member: best.member}
        if generation < 2:
            (after,) = [one for one in run.scores if (one.generation, one.member) == (generation + 1, third.member)]
            assert after.hyperparams == best.hyperparams
    with RunDatabase(run.folder.database, read_only=True) as database:
        counts = [record.population for record in database.metrics()]
    assert [count["decisions"] for count in counts] == [1, 2, 3]
    assert [count["exploitation_count"] for count in counts] == [1, 2, 3]
    assert [count["exploration_count"] for count in counts] == [1, 2, 3]  # what is adopted as it is, nobody explored


@pytest.mark.heavy
def test_two_processes_decide_as_one(make):
    alone, divided = train(make("alone", **CROSSED)), train(make("divided", **CROSSED), {"execute.shards": 2})
    assert [(one.generation, one.member, one.parent) for one in divided.lineage] == [
        (one.generation, one.member, one.parent) for one in alone.lineage
    ]
    assert divided.adoptions == alone.adoptions
    torch.testing.assert_close(members(divided), members(alone), rtol=1e-4, atol=1e-5)


def test_a_run_goes_on_to_the_bit_with_the_state_of_its_strategy(make):
    straight = train(make("straight", generations=4, **CROSSED))
    broken = train(make("broken", generations=2, **CROSSED))
    again = resume(broken.path, {"total_timesteps": 4 * GENERATION})
    assert told(again) == told(straight)
    assert torch.equal(members(again), members(straight))


def test_another_strategy_begins_without_the_state_of_the_one_before(make):
    run = train(make("run", generations=1))
    there = resume(run.path, {"pbt.strategy": "their_strategies:Crossed", **TWO})
    assert [graft.reason for graft in there.lineage if graft.generation == 1] == ["crossed"]
    again = resume(run.path, {"pbt.strategy": "evolution", "total_timesteps": 3 * GENERATION})
    assert again.generations == 3


def test_a_strategy_that_does_not_take_back_its_state_is_told(make, theirs, monkeypatch):
    run = train(make("run", generations=1, **CROSSED))
    monkeypatch.setattr(theirs.Crossed, "load_state_dict", lambda self, state: state["steps"])
    with pytest.raises(
        ConfigError, match=r"'their_strategies:Crossed' does not take back .*correct its load_state_dict"
    ):
        resume(run.path, TWO)


def test_a_run_of_an_earlier_version_is_read_and_goes_on(make, monkeypatch):
    """It has no table of adoptions, and its snapshots call the strategy's state by another name, and hold hyperparameters
    and ages beside the members too.
    """
    tensors = RunState.tensors

    def earlier(state, member, record):
        now = tensors(state, member, record)
        counts = {**now["counts"], "age": state.age.clone()}
        return {**now, "hyperparams": dict(state.hyperparams), "counts": counts}

    straight = train(make("straight", generations=2))
    with monkeypatch.context() as patch:
        patch.setattr(RunState, "tensors", earlier)
        run = train(make("run", generations=1))
    with contextlib.closing(sqlite3.connect(run.folder.database)) as connection, connection:
        connection.execute("DROP TABLE adoptions")
    manifest = run.path / "snapshots/generation_000001/manifest.json"
    body = json.loads(manifest.read_text())
    del body["checksum"]
    body["metadata"]["schedule"] = body["metadata"].pop("strategy")["state"]
    manifest.write_text(json.dumps({**body, "checksum": snapshot._checksum(body)}))
    assert Run(run.path).adoptions == []
    two = resume(run.path, TWO)
    assert told(two) == told(straight)
    assert torch.equal(members(two), members(straight))
    there = resume(run.path, {"pbt.strategy": "their_strategies:Crossed", "total_timesteps": 3 * GENERATION})
    assert [one.generation for one in there.adoptions] == [2, 2]


def test_classes_in_python_and_names_in_yaml_are_the_same_run(make, theirs, tmp_path):
    given = {"exploit_method": theirs.RankWeighted, "explore_method": theirs.Doubled}
    run = train(make("python", **given))
    settings = make("yaml", **{name: f"their_strategies:{cls.__name__}" for name, cls in given.items()})
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(settings))
    named = train(tmp_path / "run.yaml")
    assert told(named) == told(run)
    for graft in run.lineage:
        assert graft.reason == "their_strategies:RankWeighted"
        by_number = {one.member: one for one in ranked(run, graft.generation)}
        doubled = min(2 * by_number[graft.parent].hyperparams["learning_rate"], 0.1)
        assert graft.hyperparams_after["learning_rate"] == pytest.approx(doubled, rel=1e-6)
        assert graft.member == ranked(run, graft.generation)[-1].member


def test_ranks_are_drawn_in_proportion_to_their_weights(theirs):
    config = PopulationConfig(
        population_size=4, exploit_method=theirs.RankWeighted, exploit_method_kwargs={"power": 2.0}
    )
    scores = Scores(torch.tensor([4.0, 3.0, 2.0, 1.0]), torch.zeros(4), torch.ones(4, dtype=torch.long))
    evolution, draws = Evolution(config, 0), 300
    counts = torch.zeros(4)
    for number in range(draws):
        choice = evolution(everybody(number, scores, {}, config, 0))
        assert choice.reasons == {3: "their_strategies:RankWeighted"}
        counts[choice.parents[3]] += 1
    shares = torch.tensor([36, 9, 4, 0]) / 49  # 1 : 1/4 : 1/9
    assert ((counts / draws - shares).abs() <= 5 * (shares * (1 - shares) / draws).sqrt()).all()


def test_an_unhealthy_member_is_rescued_whatever_a_method_says(theirs):
    config = PopulationConfig(population_size=4, exploit_method=theirs.RankWeighted)
    scores = Scores(torch.tensor([math.nan, 3.0, math.nan, 1.0]), torch.zeros(4), torch.ones(4, dtype=torch.long))
    for number in range(20):
        choice = Evolution(config, 0)(everybody(number, scores, {}, config, 0))
        assert choice.reasons == {0: "rescue", 2: "rescue"}
        assert choice.parents.tolist() == [1, 1, 1, 3]


def test_the_fate_of_an_optimizer_is_measured_from_the_weights_donor():
    """On this log scale of three decades, a tenth of the range is a factor of 2."""
    rates = {"learning_rate": torch.tensor([1e-3, 8e-3, 1e-2])}
    for donor, fate in ((1, "copy"), (0, "reset")):
        choice = Choice(torch.tensor([0, 1, donor]), torch.tensor([0, 1, 1]))
        config = PopulationConfig(
            population_size=3, hyperparams=[RATE], optimizer_exploit_strategy="adaptive", optimizer_rescale=True
        )
        decision = choice.decision(rates, None, config)
        assert decision.hyperparams["learning_rate"][2] == rates["learning_rate"][1]
        assert strategies(decision, rates, config) == {2: fate}
        before, after = ({"learning_rate": float(rates["learning_rate"][who])} for who in (donor, 1))
        assert velocity_ratio(config, before, after) == pytest.approx([1 / 8, 1][donor], rel=1e-6)


def test_a_choice_changes_nobody_but_those_who_decide():
    config = PopulationConfig(population_size=4, hyperparams=[RATE])
    rates = {"learning_rate": torch.tensor([0.01, 0.02, 0.03, 0.04])}
    scores = Scores(torch.arange(4.0), torch.zeros(4), torch.ones(4, dtype=torch.long))
    known = {"deciding": torch.tensor([1, 3]), "together": False}
    standing = everybody(0, scores, rates, config, 0, **known)
    choice = Choice(
        torch.tensor([2, 2, 2, 3]), torch.tensor([3, 0, 3, 2]), {0: {"learning_rate": 0.05}, 1: {"learning_rate": 1e-4}}
    )
    decision = choice.of_those_who_decide(standing).decision(rates, None, config)
    assert decision.parents.tolist() == [0, 2, 2, 3]
    assert decision.hyperparameter_donors.tolist() == [0, 0, 2, 2]
    assert decision.hyperparams["learning_rate"].tolist() == pytest.approx([0.01, 1e-4, 0.03, 0.03])
    assert decision.hyperparams["learning_rate"][1] >= 1e-4  # which single precision rounds down
    assert decision.reasons == {1: "exploit"}


def test_a_standing_is_what_the_run_has_recorded(make, theirs):
    theirs.Watching.seen.clear()
    run = train(make("run", strategy="their_strategies:Watching"))
    assert [standing.number for standing, _ in theirs.Watching.seen] == [0, 1, 2]
    for number, (standing, known) in enumerate(theirs.Watching.seen):
        own = [one for one in run.scores if one.generation == number]
        assert standing.scores.mean.tolist() == [one.score for one in own]
        assert standing.scores.stderr.tolist() == [one.stderr for one in own]
        assert standing.steps.tolist() == [one.steps for one in own] == [16 * (number + 1)] * 4
        assert standing.spent.tolist() == [16] * 4
        assert ((standing.seconds > 0) & (standing.seconds < 600)).all()
        assert standing.ages.tolist() == [number + 1] * 4
        assert (standing.best is None) == (number == -1)
        rates = [row["learning_rate"] for row in standing.hyperparams]
        assert rates == pytest.approx([one.hyperparams["learning_rate"] for one in own])
        before = [one for one in run.scores if one.generation < number]
        assert [(past.generation, past.member, past.score, past.hyperparams) for past in known] == [
            (one.generation, one.member, one.score, one.hyperparams) for one in before
        ]
        moved = {past.member: past.parent for past in known if past.generation == 1}
        assert moved == ({0: 3, 1: 0, 2: 1, 3: 2} if number == 2 else {})
    assert Run(run.path).adoptions == []


def scheduler(tmp_path, **settings):
    config = PBTConfig(
        population_size=4, perturbation_interval=1, hyperparams=[RATE], checkpoint_dir=tmp_path / "files", **settings
    )
    made = PBTScheduler(config, seed=0)
    made.initialize_population([{"learning_rate": rate} for rate in (0.01, 0.02, 0.03, 0.04)])
    return made


def reported(made, step=1):
    for member, score in zip(made.population, (4.0, 3.0, 2.0, 1.0), strict=True):
        made.update_performance(member, score, step, {"policy": {"w": torch.tensor([float(member.member_id)])}})


def test_the_scheduler_gives_weights_of_one_and_hyperparameters_of_another(tmp_path, theirs):
    made = scheduler(tmp_path, strategy=theirs.Asked, optimizer_exploit_strategy="copy")
    reported(made)
    outcomes = [made.exploit_and_explore(member) for member in made.population]
    assert [found and float(found["policy"]["w"]) for found, *_ in outcomes] == [None, None, None, 0.0]
    assert [values["learning_rate"] for _, values, _ in outcomes] == [0.01, 0.02, 0.01, 0.02]
    assert (made.exploitation_count, made.exploration_count) == (1, 0)
    assert made.population[3].exploited_from == 0
    assert [member.performance for member in made.population] == [4.0, 3.0, 2.0, None]
    reported(made, step=2)
    (past,) = [past for past in history(made.population) if past.member == 3]
    assert (past.score, past.steps, past.hyperparams) == (1.0, 1, {"learning_rate": 0.04})
    assert (past.parent, past.parent_generation, past.hyperparameter_parent) == (0, 0, 1)


def test_a_scheduler_that_is_resumed_has_its_strategys_state(tmp_path, theirs):
    """Four ask in every round, the fourth for the worst, which takes the first one's weights and a rate of its turn."""
    found = []
    for stops in (False, True):
        made = scheduler(tmp_path, strategy="their_strategies:Turns")
        for step in (1, 2):
            if stops and step == 2:
                state = json.loads(json.dumps(made.state_dict()))
                made = scheduler(tmp_path, strategy="their_strategies:Turns")
                made.load_state_dict(state)
            reported(made, step)
            outcomes = [made.exploit_and_explore(member) for member in made.population]
            assert outcomes[3][1]["learning_rate"] == pytest.approx(0.004 * step)
            assert made.population[3].exploited_from == 0
        found.append([values for _, values, _ in outcomes])
    assert found[0] == found[1]
    other = scheduler(tmp_path, strategy="evolution")
    other.load_state_dict(state)  # another strategy begins without it
    assert other.state_dict()["strategy"]["of"] == "evolution"


def test_the_scheduler_takes_methods_by_name_and_by_class(tmp_path, theirs):
    found = []
    for given in (
        (theirs.RankWeighted, theirs.Doubled),
        ("their_strategies:RankWeighted", "their_strategies:Doubled"),
    ):
        made = scheduler(tmp_path, exploit_method=given[0], explore_method=given[1])
        reported(made)
        outcomes = [made.exploit_and_explore(member) for member in made.population]
        found.append([values["learning_rate"] for _, values, _ in outcomes])
        donor = made.population[3].exploited_from
        assert found[-1] == [0.01, 0.02, 0.03, 2 * [0.01, 0.02, 0.03][donor]]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("pbt", "message"),
    [
        ({"strategy": "their_strategies:RankWeighted"}, "pbt.strategy='their_strategies:RankWeighted' is .*subclass"),
        ({"exploit_method": "their_strategies:Missing"}, "has no 'Missing'"),
        ({"exploit_method": "popgraft.pbt:Exploit"}, "pbt.exploit_method='popgraft.pbt:Exploit' lacks __call__"),
        ({"exploit_method": "best"}, "must be one of truncation, .*, or module:Class"),
        ({"strategy": "their_strategies:Nobody"}, r"the parents \[5, 5, 5, 5\] for 4 members; name one of 0 to"),
        (
            {"strategy": "their_strategies:Forgetful"},
            "the state of strategy='their_strategies:Forgetful' holds 0, which",
        ),
        ({"strategy": "their_strategies:Wild"}, r"gamma: 2.0 must be a number in \[0, 1\]"),
        ({"strategy_kwargs": {"factor": 1}}, "strategy_kwargs are for an own strategy"),
        ({**CROSSED, "strategy_kwargs": {"colour": 1}}, "pbt.strategy='their_strategies:Crossed': Crossed cannot be"),
        (
            {**CROSSED, "exploit_method": "none", "schedule": [{"steps": 0, "hyperparams": {"learning_rate": 0.1}}]},
            "schedule takes the place of a strategy",
        ),
    ],
)
def test_what_cannot_decide_is_refused_in_words(make, pbt, message):
    with pytest.raises(ConfigError, match=message):
        train(make("run", **pbt))


def test_a_configuration_is_read_without_running_what_it_names():
    config = load_config({"env": {"id": "CartPole-v1"}, "pbt": {"strategy": "no_such_module:Strategy"}})
    assert config.pbt.strategy == "no_such_module:Strategy"
