"""Update rules from a module outside the package: trained, grafted, saved, resumed, exported, loaded; or refused."""

import importlib
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from popgraft import ConfigError, DistributionalPPO, Run, export, load_config, resume, train
from popgraft.execute import InlineExecutor
from popgraft.inheritance import inherit_
from popgraft.optim import make_rule
from popgraft.state import Decision
from popgraft.store import RunDatabase

HERE = Path(__file__).parent
GENERATION = 4 * 2 * 8
SPACE = {"name": "learning_rate", "min_value": 1e-3, "max_value": 1e-1, "is_log_scale": True}


@pytest.fixture
def theirs(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("their_rules")


@pytest.fixture
def make(tmp_path):
    """Four members, one of which is replaced in every generation; the module is found by `code_dir` alone."""

    def build(name="run", optimizer: Any = "their_rules:Momentum", generations=2, kwargs=None, **pbt):
        return {
            "env": {"source": "tensor", "id": "CartPole", "num_envs": 2, "kwargs": {"time_limit": 11}},
            "model": {
                "n_steps": 8,
                "n_epochs": 2,
                "n_minibatches": 1,
                "optimizer": optimizer,
                "optimizer_kwargs": kwargs or {},
                "network": {"recurrent": "none", "encoder_layers": [4], "head_layers": [4]},
            },
            "pbt": {
                "population_size": 4,
                "perturbation_interval": 1,
                "truncation_ratio": 0.25,
                "hyperparams": [],
                **pbt,
            },
            "evaluation": {"episodes": 2, "final_episodes": 2, "max_steps": 12},
            "snapshots": {"interval": 1},
            "execute": {"shards": 1},
            "total_timesteps": generations * GENERATION,
            "run_dir": str(tmp_path / name),
            "code_dir": str(HERE),
            "seed": 4,
        }

    yield build
    sys.modules.pop("their_rules", None)


def members(run):
    return [run.agent(i).member for i in range(4)]


def recorded(run):
    with RunDatabase(run.folder.database) as database:
        return database.metrics()


def weights(run):
    return torch.cat([member.params for member in members(run)])


def test_it_is_torchs_for_every_member(make):
    config = load_config(make(kwargs={"momentum": 0.8}))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(HERE))
        rule = make_rule(config.model, [3, 4])
    params, generator = torch.zeros(2, 7), torch.Generator().manual_seed(1)
    state, rates = rule.initial_state(params), torch.tensor([0.1, 0.3])
    own = [torch.zeros(7, requires_grad=True) for _ in rates]
    decays = {"weight_decay": torch.tensor([0.0, 0.5])}
    theirs = [
        torch.optim.SGD([p], lr=float(rate), momentum=0.8, weight_decay=float(decay))
        for p, rate, decay in zip(own, rates, decays["weight_decay"], strict=True)
    ]
    for _ in range(4):
        grad = torch.randn(2, 7, generator=generator)
        rule.step_(params, grad, state, rates, torch.tensor([True, True]), decays, [])
        for p, g, optimizer in zip(own, grad, theirs, strict=True):
            p.grad = g.clone()
            optimizer.step()
    torch.testing.assert_close(params, torch.stack(own).detach())


@pytest.mark.parametrize("strategy", ["reset", pytest.param("partial", marks=pytest.mark.heavy)])
def test_a_run_goes_on_to_the_bit(strategy, make):
    settings = {"hyperparams": [SPACE], "optimizer_exploit_strategy": strategy}
    straight = train(make("straight", generations=3, **settings))
    broken = train(make("broken", generations=1, **settings))
    again = resume(broken.path, {"total_timesteps": 3 * GENERATION})
    assert straight.lineage
    assert torch.equal(weights(again), weights(straight))
    assert len(torch.unique(weights(straight), dim=0)) > 1
    assert any(member.optimizer.averages["velocity"].any() for member in members(straight))


def test_diagnostics_show_the_momentum_that_the_rule_declares(make):
    """Momenta are as far apart as √(Σᵢⱼ ‖mᵢ − mⱼ‖²/(2P(P − 1)) / (Σᵢ ‖mᵢ‖²/P)) says."""
    run = train(make(generations=2))
    velocity = torch.stack([member.optimizer.averages["velocity"][0] for member in members(run)]).double()
    apart = torch.cdist(velocity, velocity).square().sum() / (2 * 4 * 3)
    expected = math.sqrt(apart / velocity.square().sum(1).mean())
    (*_, latest), (*_, none) = recorded(run), recorded(train(make("plain", "their_rules:Plain")))
    assert latest.population["optimizer_distance"] == pytest.approx(expected, rel=1e-5)
    assert all(-1 <= cosine <= 1 for cosine in latest.members["momentum_cosine"])
    assert "optimizer_distance" not in none.population
    assert "momentum_cosine" not in none.members


@pytest.mark.slow
def test_shards_in_processes_find_it_too(make):
    alone = train(make("alone", hyperparams=[SPACE]))
    divided = train(make("divided", hyperparams=[SPACE]), {"execute.shards": 2})
    torch.testing.assert_close(weights(divided), weights(alone), rtol=1e-4, atol=1e-5)


def test_what_is_not_given_is_what_the_class_says(make, tmp_path):
    run = train(make(generations=1, exploit_method="none"))
    for member in members(run):
        assert float(member.hyperparams["learning_rate"]) == pytest.approx(0.02)
        assert float(member.hyperparams["weight_decay"]) == pytest.approx(0.001)
    other = train(make("other", generations=1, exploit_method="none"), {"model.learning_rate": 0.5})
    assert float(members(other)[0].hyperparams["learning_rate"]) == 0.5
    sys.modules.pop("their_rules")
    read = Run(tmp_path / "run")
    assert read.config.model.optimizer == "their_rules:Momentum"
    assert read.scores
    assert "their_rules" not in sys.modules  # a configuration is read without running what it names


def grafted(config, recipient_rate=0.25):
    """State of a recipient before its graft and after it, and its donor's."""
    values = {name: torch.full((4,), value) for name, value in config.model.hyperparams().items()}
    executor = InlineExecutor(config, values)
    executor.advance(2, lambda: False)
    (shard,) = executor.shards
    donor = {name: average[0].clone() for name, average in shard.member.optimizer.averages.items()}
    new = {name: column.clone() for name, column in shard.member.hyperparams.items()}
    new["learning_rate"][3] = recipient_rate
    executor.graft(Decision(torch.tensor([0, 1, 2, 0]), new, {3: "truncation"}), 1)
    after = {name: average[3].clone() for name, average in shard.member.optimizer.averages.items()}
    executor.close()
    assert all(average.any() for average in donor.values())
    return donor, after


ALL = {"mean", "square", "ups"}


@pytest.mark.parametrize(
    ("strategy", "kept"),
    [
        ({"optimizer_exploit_strategy": "copy"}, ALL),
        ({"optimizer_exploit_strategy": "reset"}, set()),
        ({"optimizer_exploit_strategy": "partial"}, {"mean"}),
        ({"optimizer_exploit_strategy": "partial", "optimizer_partial": "scale"}, ALL - {"mean"}),
        ({"optimizer_exploit_strategy": "adaptive"}, ALL),
        ({"optimizer_exploit_strategy": "adaptive", "hyperparams": [SPACE]}, set()),
    ],
)
def test_a_graft_takes_what_the_strategy_says_of_what_the_class_declares(strategy, kept, make, theirs):
    """The recipient's rate is far from its donor's, if anything is explored at all."""
    donor, after = grafted(load_config(make(optimizer=theirs.Heavy, exploit_method="none", **strategy)))
    for name, average in donor.items():
        assert torch.equal(after[name], average if name in kept else torch.zeros_like(average)), name


def test_an_inherited_velocity_is_rescaled_with_the_learning_rate(make, theirs):
    config = load_config(make(exploit_method="none", optimizer_rescale=True))
    donor, after = grafted(config, recipient_rate=0.2)
    torch.testing.assert_close(after["velocity"], donor["velocity"] * 0.1)


def test_a_part_of_what_is_not_declared_is_not_taken(theirs):
    with pytest.raises(ConfigError, match="not defined for an optimizer that remembers other"):
        inherit_({"other": torch.ones(2)}, None, "momentum", theirs.Momentum((2,)), None)


def test_an_agent_is_exported_and_loaded_with_permission(make, theirs, tmp_path):
    run = train(make(kwargs={"momentum": 0.7}))
    export(run, tmp_path / "agent.zip")
    with pytest.raises(ConfigError, match="optimizer=their_rules:Momentum"):
        DistributionalPPO.load(tmp_path / "agent.zip")
    for given in ("their_rules:Momentum", theirs.Momentum):
        model = DistributionalPPO.load(tmp_path / "agent.zip", custom_objects={"optimizer": given})
        assert torch.equal(model.member.params, run.best.member.params)
        assert torch.equal(model.member.optimizer.averages["velocity"], run.best.member.optimizer.averages["velocity"])
        assert model.learner.rule.momentum == 0.7


def test_a_model_takes_the_class_and_learns_on_where_its_file_ends(theirs, tmp_path):
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 3, "policy_kwargs": {"lstm_hidden_size": 4}}
    settings |= {"optimizer": theirs.Momentum, "optimizer_kwargs": {"momentum": 0.5}}
    model = DistributionalPPO("MlpLstmPolicy", "CartPole-v1", **settings).learn(32)
    group = model.policy.optimizer.param_groups[0]
    assert (group["lr"], group["weight_decay"]) == (0.02, pytest.approx(0.001))
    assert "sigma" not in group
    model.save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match="optimizer=their_rules:Momentum"):
        DistributionalPPO.load(tmp_path / "model.zip")
    again = DistributionalPPO.load(
        tmp_path / "model.zip", env=model.get_env(), custom_objects={"optimizer": theirs.Momentum}
    )
    assert torch.equal(again.member.optimizer.averages["velocity"], model.member.optimizer.averages["velocity"])
    first = next(iter(again.policy.optimizer.state.values()))["velocity"]
    assert first.any()
    before = again.member.params.clone()
    again.learn(16)
    assert not torch.equal(again.member.params, before)


def test_what_is_no_row_of_parameters_is_remembered_and_saved_too(theirs, tmp_path):
    """One number for a member, by a rule that neither counts nor logs: the largest gradient never falls."""
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 3, "policy_kwargs": {"lstm_hidden_size": 4}}
    model = DistributionalPPO("MlpLstmPolicy", "CartPole-v1", optimizer=theirs.Counted, **settings)
    seen = [float(model.learn(16).member.optimizer.averages["largest"]) for _ in range(4)]
    assert seen[0] > 0
    assert seen == sorted(seen)
    model.save(tmp_path / "model.zip")
    again = DistributionalPPO.load(tmp_path / "model.zip", custom_objects={"optimizer": theirs.Counted})
    assert float(again.member.optimizer.averages["largest"]) == seen[-1]


def test_what_pytorch_has_and_the_engine_has_not_is_refused_with_what_to_do():
    with pytest.raises(ConfigError, match=r"SGD is not available; choose one of Adam, .* or give optimizer="):
        DistributionalPPO("MlpLstmPolicy", "CartPole-v1", policy_kwargs={"optimizer_class": torch.optim.SGD})


@pytest.mark.parametrize(
    ("optimizer", "changes", "sentence"),
    [
        ("their_rules:NoRule", {}, r"model.optimizer='their_rules:NoRule' .*subclass of popgraft.optim.UpdateRule"),
        ("torch.optim:SGD", {}, "name a subclass of popgraft.optim.UpdateRule"),
        ("their_rules:Unready", {}, "lacks step_"),
        ("their_rules:Missing", {}, "has no 'Missing'"),
        ("no_such_module:Rule", {}, "there is no module 'no_such_module'"),
        ("sgd", {}, "must be one of adam, adamw, upgd, adaptive_upgd, upgdw, or module:Class"),
        ("their_rules:Momentum", {"kwargs": {"momenum": 1}}, r"cannot be made with {'momenum': 1}.*optimizer_kwargs"),
        ("their_rules:Momentum", {"kwargs": {"weight_decay": -1}}, "optimizer_kwargs.weight_decay = -1"),
        ("their_rules:Momentum", {"kwargs": {"nested": {"object": object()}}}, "nested.object=.*written to a file"),
        ("their_rules:Secret", {}, "Secret remembers hidden and does not say what that is"),
        (
            "their_rules:Plain",
            {"optimizer_exploit_strategy": "partial"},
            "'their_rules:Plain' has none; set it to copy",
        ),
        ("upgd", {"optimizer_exploit_strategy": "partial"}, "'upgd' has none; set it to copy or reset"),
        ("adaptive_upgd", {"optimizer_exploit_strategy": "relative"}, "'adaptive_upgd' is no Adam; set it to copy or"),
        ("their_rules:Momentum", {"optimizer_exploit_strategy": "relative"}, "is no Adam"),
        (
            "their_rules:Heavy",
            {"hyperparams": [{"name": "weight_decay", "min_value": 0.0, "max_value": 0.1}]},
            "pbt.hyperparams lists 'weight_decay', which nothing reads",
        ),
        (
            "their_rules:Momentum",
            {"hyperparams": [{"name": "sigma", "min_value": 0.0, "max_value": 0.1}]},
            "lists 'sigma', which nothing reads",
        ),
    ],
)
def test_what_cannot_serve_is_refused_before_anything_is_made(optimizer, changes, sentence, make, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        train(make("refused", optimizer, **changes))
    assert not (tmp_path / "refused").exists()
