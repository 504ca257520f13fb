"""Runs that every strategy decides over: whole, interrupted and divided, they are the same."""

import dataclasses

import pytest
import torch

from popgraft import resume, train
from popgraft.train.replay import replay_config

GENERATION = 6 * 2 * 8
METHODS = {
    "mf_pbt": {"frequencies": [1, 2]},
    "pb2": {},
    "fire": {"evaluators": 2},
    "ipbt": {"patience": 1},
}


@pytest.fixture
def make(tmp_path):
    """Six members that take 16 steps each in a generation."""

    def build(name, strategy, generations=3, **pbt):
        spaces = [
            {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-1, "is_log_scale": True},
            {"name": "gamma", "values": [0.9, 0.95, 0.99]},
        ]
        small = {"encoder_layers": [4], "hidden_size": 4}
        return {
            "env": {"source": "tensor", "id": "CartPole", "num_envs": 2, "kwargs": {"time_limit": 11}},
            "model": {"n_steps": 8, "n_epochs": 1, "n_minibatches": 1, "network": small},
            "pbt": {
                "population_size": 6,
                "perturbation_interval": 1,
                "hyperparams": spaces,
                "strategy": strategy,
                "strategy_kwargs": METHODS[strategy],
                **pbt,
            },
            "evaluation": {"episodes": 4, "final_episodes": 2, "max_steps": 12},
            "snapshots": {"interval": 1},
            "execute": {"shards": 1},
            "total_timesteps": generations * GENERATION,
            "run_dir": str(tmp_path / name),
            "seed": 4,
        }

    return build


def members(run):
    return torch.cat([run.agent(i).member.params for i in range(6)])


def told(run):
    grafts = [dataclasses.replace(graft, aftermath=None) for graft in run.lineage]
    return run.scores, grafts, run.adoptions


@pytest.mark.heavy
@pytest.mark.parametrize("strategy", METHODS)
def test_a_run_goes_on_to_the_bit(make, strategy):
    straight = train(make("straight", strategy))
    broken = train(make("broken", strategy, generations=2))
    again = resume(broken.path, {"total_timesteps": 3 * GENERATION})
    assert told(again) == told(straight)
    assert torch.equal(members(again), members(straight))
    assert len(straight.lineage) > 0


@pytest.mark.parametrize(
    "strategy",
    [pytest.param(name, marks=pytest.mark.heavy if name == "fire" else pytest.mark.slow) for name in METHODS],
)
def test_two_processes_decide_as_one(make, strategy):
    alone = train(make("alone", strategy))
    divided = train(make("divided", strategy), {"execute.shards": 2})
    assert [(one.generation, one.member, one.parent) for one in divided.lineage] == [
        (one.generation, one.member, one.parent) for one in alone.lineage
    ]
    assert divided.adoptions == alone.adoptions
    torch.testing.assert_close(members(divided), members(alone), rtol=1e-4, atol=1e-5)


def test_its_hyperparameters_are_replayed_without_it(make):
    pbt = replay_config(train(make("run", "mf_pbt", generations=1)), seeds=2).pbt
    assert (pbt.strategy, pbt.strategy_kwargs, [*pbt.schedule[0].hyperparams]) == (
        "evolution",
        {},
        ["learning_rate", "gamma"],
    )
