"""Kinds from a module outside the package: trained, grafted, saved, resumed, exported, loaded; or refused in words."""

import importlib
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch

from popgraft import (
    ConfigError,
    DistributionalPPO,
    PBTAdversarialConfig,
    PBTConfig,
    PBTTrainingCoordinator,
    export,
    load_config,
    resume,
    train,
    tree,
)
from popgraft.config import NetworkConfig
from popgraft.config.network import MEMORIES
from popgraft.execute import make_executor
from popgraft.nn.blocks import initialise
from popgraft.sb3 import MlpLstmPolicy
from popgraft.sb3.arguments import Settings
from popgraft.sb3.kinds import KINDS, Kind
from popgraft.store import snapshot

from ..nn.conftest import _check_laws, _run
from ..sb3.graphs import check_onnx, check_program

HERE = Path(__file__).parent
NAMES = {
    "encoder": "their_kinds:Squares",
    "recurrent": "their_kinds:Leaky",
    "critic": "their_kinds:Gaussian",
    "action_head": "their_kinds:Gumbel",
}
NETWORK: dict[str, Any] = {
    **NAMES,
    "encoder_kwargs": {"width": 6},
    "recurrent_kwargs": {"leak": 0.8},
    "critic_kwargs": {"least": -2.0},
    "hidden_size": 4,
}
GENERATION = 4 * 2 * 8


@pytest.fixture(autouse=True)
def theirs(monkeypatch):
    monkeypatch.syspath_prepend(str(HERE))
    return importlib.import_module("their_kinds")


@pytest.fixture
def make(tmp_path):
    """Four members, one of which is replaced in every generation."""

    def build(name, generations=2, **network):
        return {
            "env": {"source": "tensor", "id": "CartPole", "num_envs": 2, "kwargs": {"time_limit": 11}},
            "model": {
                "n_steps": 8,
                "n_epochs": 1,
                "n_minibatches": 1,
                "normalize_reward": False,
                "normalize_returns": True,
                "network": {**NETWORK, **network},
            },
            "pbt": {
                "population_size": 4,
                "perturbation_interval": 1,
                "truncation_ratio": 0.25,
                "hyperparams": [{"name": "learning_rate", "min_value": 1e-3, "max_value": 1e-1, "is_log_scale": True}],
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


def grafts(run):
    assert run.lineage
    return [(graft.generation, graft.member, graft.parent) for graft in run.lineage]


def told(run):
    return [(record.generation, record.member, record.score) for record in run.scores]


@pytest.mark.heavy
def test_a_run_grafts_them_in_one_process_and_in_two(make):
    alone = train(make("alone"))
    divided = train(make("divided"), {"execute.shards": 2})
    assert grafts(divided) == grafts(alone)
    torch.testing.assert_close(members(divided), members(alone), rtol=1e-4, atol=1e-5)
    assert not torch.equal(members(alone)[0], members(alone)[1])


@pytest.mark.slow
def test_all_of_them_at_once_in_actors_at_their_own_pace(make):
    """Network, update rule and strategy; the rate that a graft brings says in which of its turns it was decided."""
    pytest.importorskip("ray")
    settings = make("actors", generations=3)
    settings["model"] |= {"optimizer": "their_rules:Momentum", "optimizer_kwargs": {"momentum": 0.8}}
    settings["pbt"] |= {"strategy": "their_strategies:Turns"}
    settings["execute"] = {"kind": "ray", "mode": "async", "shards": 2}
    run = train(settings)
    before, grafted = 0, set()
    for parts in (6, 4):  # of a generation, of two members each
        if before:
            run = resume(run.path, {"total_timesteps": 5 * GENERATION})
        turns = snapshot.verified(run.folder, "last")["strategy"]["state"]["turns"]
        found = sorted(graft.hyperparams_after["learning_rate"] / 0.001 for graft in run.lineage)
        new = [turn for turn in found if round(turn) not in grafted]
        assert found == pytest.approx(sorted({*map(round, found)}), rel=1e-5)
        assert before < min(new) <= max(new) < turns + 0.5
        assert turns >= before + parts
        assert not [event.text for event in run.events if event.kind in ("lost", "environment")]
        before, grafted = turns, {*map(round, found)}
    assert all(member.optimizer.averages["velocity"].any() for member in (run.agent(i).member for i in range(4)))
    assert members(run).isfinite().all()


def test_a_run_goes_on_to_the_bit(make):
    straight = train(make("straight", generations=4))
    broken = train(make("broken", generations=2))
    again = resume(broken.path, {"total_timesteps": 4 * GENERATION})
    assert torch.equal(members(again), members(straight))
    assert told(again) == told(straight)
    assert grafts(again) == grafts(straight)


def test_an_agent_is_exported_and_loaded_with_permission(make, theirs, tmp_path):
    run = train(make("run", recurrent_layers=2))
    path = tmp_path / "agent.zip"
    export(run, path)
    with pytest.raises(ConfigError) as refused:
        DistributionalPPO.load(path)
    assert all(f"{name}={kind}" in str(refused.value) for name, kind in NAMES.items())
    classes = {name: getattr(theirs, kind.partition(":")[2]) for name, kind in NAMES.items()}
    for given in (NAMES, classes):
        model = DistributionalPPO.load(path, custom_objects=dict(given))
        assert torch.equal(model.member.params, run.best.member.params)
        assert isinstance(model.policy.network.critic.kind, theirs.Gaussian)
        assert model.policy.network.critic.kind.least == -2
    agent = run.best
    step = agent.policy.act(
        agent.policy.views(agent.member.params),
        {"obs": torch.zeros(1, 1, 1, 4)},
        torch.zeros(1, 1, 16),
        torch.ones(1, 1, 1, dtype=torch.bool),
    )
    model.member.normalizer.obs["obs"].mean.zero_()
    action, state = model.predict(np.zeros(4, np.float32), deterministic=True)
    assert action == step[0].argmax()
    assert [part.shape for part in state] == [(2, 1, 4), (2, 1, 4)]  # [layers, env, hidden], of y and s
    np.testing.assert_allclose(np.stack(state, 1).ravel(), step[1].ravel(), rtol=0, atol=1e-6)


@pytest.mark.heavy
def test_an_agent_is_a_graph(tmp_path):
    model = DistributionalPPO("MlpLstmPolicy", gym.make("popgraft/RepeatPrevious-v0"), seed=1, **NAMES)
    model.member.params.copy_(0.5 * torch.randn(model.member.params.shape, generator=torch.Generator().manual_seed(2)))
    check_program(model, tmp_path / "agent.pt2")
    check_onnx(model, tmp_path)


def test_a_model_takes_classes_and_learns_on_where_its_file_ends(theirs, tmp_path):
    kinds = {"recurrent": theirs.Leaky, "critic": theirs.Gaussian, "action_head": theirs.Gumbel}
    settings = {"n_steps": 16, "batch_size": 16, "n_epochs": 1, "seed": 3, "policy_kwargs": {"lstm_hidden_size": 4}}
    model = DistributionalPPO("MlpLstmPolicy", "CartPole-v1", **kinds, **settings).learn(32)
    memory = model.policy.network.views(model.member.params)["actor_memory"]["layer0"]
    assert memory["weight_hh"].std() > 0.3  # drawn by the kind, ~ 1/√4, not as torch.nn does
    model.save(tmp_path / "model.zip")
    with pytest.raises(ConfigError, match="recurrent=their_kinds:Leaky"):
        DistributionalPPO.load(tmp_path / "model.zip")
    again = DistributionalPPO.load(tmp_path / "model.zip", custom_objects=kinds)
    assert torch.equal(again.member.params, model.member.params)
    model.policy.save(tmp_path / "policy.pkl")
    with pytest.raises(ConfigError, match="critic=their_kinds:Gaussian"):
        MlpLstmPolicy.load(tmp_path / "policy.pkl")
    obs, states = torch.zeros(1, 4), model.policy.recurrent_initial_state
    with pytest.raises(ConfigError, match="no distribution for the action head Gumbel"):
        model.policy.get_distribution(obs, states.pi, torch.ones(1))
    _, log_prob, entropy = model.policy.evaluate_actions(obs, torch.zeros(1, 1), states, torch.ones(1))
    assert log_prob.isfinite().all()
    assert entropy.isfinite().all()


def test_a_coordinator_makes_one_model_a_copy_of_another(theirs, tmp_path):
    pbt = PBTConfig(population_size=2, perturbation_interval=1, explore_method="none", checkpoint_dir=tmp_path)
    coordinator = PBTTrainingCoordinator(PBTAdversarialConfig(pbt=pbt), seed=1)
    kinds = {"recurrent": theirs.Leaky, "critic": theirs.Gaussian, "action_head": theirs.Gumbel}
    models = []
    for member in coordinator.initialize_population():
        model, _ = coordinator.create_member_model(
            member, DistributionalPPO, policy="MlpLstmPolicy", env="CartPole-v1", n_steps=16, batch_size=16,
            device="cpu", **kinds,
        )  # fmt: skip
        models.append((member, model.learn(16)))
    (winner, donor), (loser, recipient) = models
    assert not torch.equal(donor.member.params, recipient.member.params)
    for member, model in models:
        parameters = coordinator.collect_parameters(model)
        new, *_ = coordinator.on_member_update_end(member, -member.member_id, 1, model_parameters=parameters)
    coordinator.apply_exploited_parameters(recipient, new, loser, winner)
    assert torch.equal(donor.member.params, recipient.member.params)
    obs = np.array([[0.1, -0.2, 0.3, 0.4]], np.float32)
    assert recipient.predict(obs, deterministic=True)[0] == donor.predict(obs, deterministic=True)[0]


def test_a_critic_without_rescale_keeps_the_units_of_the_first_update(make):
    """… and its head is moved by nothing but gradients; one that has it follows, so that raw predictions stay."""
    for critic, frozen in (("their_kinds:Gaussian", True), ("scalar", False)):
        config = load_config(make("units", critic=critic, critic_kwargs=NETWORK["critic_kwargs"] if frozen else {}))
        values = {name: torch.full((4,), value) for name, value in config.model.hyperparams().items()}
        executor = make_executor(config, values)
        (shard,) = executor.shards
        target, valid = torch.arange(64.0).view(4, 8, 2), torch.ones(4, 8, 2)
        seen = []
        for factor in (1.0, 3.0):
            before = shard.member.params.clone()
            shard.learner.rescale_(shard.member, factor * target, valid)
            seen.append((shard.member.returns.mean.clone(), torch.equal(before, shard.member.params)))
        (first, _), (second, unmoved) = seen
        torch.testing.assert_close(first, target.mean((1, 2)))
        assert torch.equal(first, second) == frozen
        assert unmoved == frozen
        executor.close()


def test_population_laws_of_a_memory():
    network = NetworkConfig(**NETWORK)
    memory = MEMORIES.make(network.recurrent, 3, 4, 2, **network.recurrent_kwargs)
    normal = torch.Generator().manual_seed(1)
    params = initialise(memory, [torch.Generator().manual_seed(i) for i in range(3)])
    params = tree.map(torch.Tensor.double, params)
    x, state = (torch.randn(*shape, generator=normal, dtype=torch.double) for shape in ((3, 5, 2, 3), (3, 2, 16)))
    start = torch.rand(3, 5, 2, generator=normal) < 0.3
    assert start.any()

    def unrolled(params, x, state, start):
        y, last = memory(params, x, state, start)
        return torch.cat([y.flatten(1), last.flatten(1)], dim=1)

    _check_laws(unrolled, params, x, state, start)
    assert len(_run(unrolled, params, x, state, start)) == 1 + 2 * 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"critic": "their_kinds:Leaky"}, r"model.network.critic='their_kinds:Leaky' .*subclass of popgraft.nn.Critic"),
        ({"critic": "their_kinds:Unready"}, "model.network.critic='their_kinds:Unready' lacks loss"),
        ({"critic": "their_kinds:a_function"}, "name a subclass of popgraft.nn.Critic"),
        ({"recurrent": "their_kinds:Gaussian", "recurrent_kwargs": {}}, "name a subclass of popgraft.nn.Memory"),
        ({"encoder": "their_kinds:Gumbel"}, "name a subclass of torch.nn.Module or of popgraft.nn.Encoder"),
        ({"action_head": "their_kinds:Squares"}, "name a subclass of popgraft.nn.ActionHead"),
        ({"action_head": "their_kinds:Missing"}, "has no 'Missing'"),
        ({"recurrent": "no_such_module:Kind"}, "there is no module 'no_such_module'"),
        ({"recurrent": "LSTM"}, "must be one of lstm, gru, .*, none, or module:Class"),
        ({"recurrent": "lstm"}, "recurrent_kwargs are for an own recurrent, and recurrent is 'lstm'"),
        ({"recurrent_kwargs": {"leek": 1}}, r"Leaky cannot be made with {'leek': 1}.*model.network.recurrent_kwargs"),
        ({"use_sde": True}, "use_sde chooses an action head"),
        ({"recurrent": "their_kinds:Mixing"}, "other outputs beside another one than alone"),
        ({"recurrent": "their_kinds:Short"}, "their_kinds:Short' (gives outputs of shape|fails on 2 members)"),
        ({"critic": "their_kinds:Summed"}, r"critic='their_kinds:Summed' gives loss of shape \(\)"),
    ],
)
def test_what_cannot_serve_is_refused_before_anything_is_made(changes, sentence, make, tmp_path):
    with pytest.raises(ConfigError, match=sentence):
        train(make("refused", **changes))
    assert not (tmp_path / "refused").exists()


def test_a_configuration_that_names_code_is_read_without_running_it():
    settings = {"model.network.critic": "no_such_module:Kind", "model.cvar_weight": 0.5, "model.clip_range_vf": 0.2}
    assert load_config({"env": {"id": "CartPole-v1"}}, settings).uses("cvar_weight")


@pytest.mark.parametrize("name", ["cvar_weight", "clip_range_vf"])
def test_what_a_critic_cannot_do_is_refused(name, make, theirs):
    sentence = f"model.{name} .*but model.network.critic is 'their_kinds:Gaussian', which predicts none"
    with pytest.raises(ConfigError, match=sentence):
        train(make("refused"), {f"model.{name}": 0.2})
    with pytest.raises(ConfigError, match=sentence):
        DistributionalPPO("MlpLstmPolicy", "CartPole-v1", critic=theirs.Gaussian, **{name: 0.2})


def test_arguments_of_a_model_that_take_kinds_are_the_settings_that_do():
    assert {name for name, kind in Settings.__annotations__.items() if kind is Kind} == set(KINDS)


def test_a_class_that_nobody_else_could_find_is_refused(theirs):
    class Local(theirs.Gaussian): ...

    with pytest.raises(ConfigError, match=r"critic=.*Local.*define the class at the top level"):
        DistributionalPPO("MlpLstmPolicy", "CartPole-v1", critic=Local)
