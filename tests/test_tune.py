"""Trials of Ray Tune that exploit each other completely: one exploit by hand, and Tune's own scheduler for real."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch

from popgraft.errors import ConfigError

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # Tune's own
    pytest.mark.usefixtures("global_generators_come_back"),
]

EXAMPLE = Path(__file__).parents[1] / "examples" / "ray_tune.py"
VALUES = [{"learning_rate": 1e-3, "ent_coef": 0.01}, {"learning_rate": 4e-4, "ent_coef": 0.02}]


@pytest.fixture(scope="module", autouse=True)
def _tune():
    pytest.importorskip("ray.tune")  # not when tests are collected, because it is slow to import


@pytest.fixture(scope="module")
def example():
    spec = importlib.util.spec_from_file_location("ray_tune_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def trials(example, monkeypatch):
    """Two trials as Tune makes them, in this process."""
    monkeypatch.setattr(example.Agent, "trial_id", property(lambda self: self.name), raising=False)
    made = []
    for name, values in zip("ab", VALUES, strict=True):
        trial = example.Agent(dict(values))
        trial.name = name
        made.append(trial)
    yield made
    for trial in made:
        trial.stop()


def state_of(model):
    normalizer = model.get_vec_normalize_env()
    return {
        **{f"weights.{name}": leaf for name, leaf in model.policy.state_dict().items()},
        **{
            f"optimizer.{place}.{name}": torch.as_tensor(leaf)
            for place, state in model.policy.optimizer.state_dict()["state"].items()
            for name, leaf in state.items()
        },
        "mean": torch.from_numpy(normalizer.obs_rms.mean),
        "var": torch.from_numpy(normalizer.obs_rms.var),
    }


def check_same(found, expected):
    assert found.keys() == expected.keys()
    assert any(name.startswith("optimizer.") for name in found)
    for name, leaf in found.items():
        assert torch.equal(leaf, expected[name]), name


def rates_of(model):
    return {
        "learning_rate": [model.lr_schedule(1.0), *(group["lr"] for group in model.policy.optimizer.param_groups)],
        "ent_coef": [model.ent_coef],
    }


@pytest.mark.parametrize("reused", [False, True])
def test_an_exploit_brings_everything_and_the_explored_values_are_live(reused, trials, tmp_path):
    donor, recipient = trials
    for _ in range(2):
        donor.train()
    donor.save(str(tmp_path))
    explored = {"learning_rate": 7e-4, "ent_coef": 0.03}
    if reused:  # as Tune does with `reuse_actors`: first the new configuration, then the donor's checkpoint
        assert recipient.reset(explored)
    else:
        recipient.config = explored
    recipient.restore(str(tmp_path))
    check_same(state_of(recipient.model), state_of(donor.model))
    assert rates_of(recipient.model) == {"learning_rate": [7e-4, 7e-4], "ent_coef": [0.03]}
    assert rates_of(donor.model) == {"learning_rate": [1e-3, 1e-3], "ent_coef": [0.01]}
    assert recipient.train()["parent"] == "a"
    assert rates_of(recipient.model) == {"learning_rate": [7e-4, 7e-4], "ent_coef": [0.03]}
    assert "parent" not in recipient.train()


def test_a_trial_that_goes_on_from_its_own_checkpoint_is_nobodys_copy(trials, tmp_path):
    trial, _ = trials
    trial.train()
    trial.optimizer_strategy = "reset"  # is for exploits
    trial.save(str(tmp_path))
    before = {name: leaf.clone() for name, leaf in state_of(trial.model).items()}
    assert trial.reset(VALUES[0])
    trial.restore(str(tmp_path))
    check_same(state_of(trial.model), before)
    assert "parent" not in trial.train()


@pytest.mark.parametrize(("rate", "steps"), [(1.1e-3, 1.0), (4e-3, 0.0)])
def test_strategies_are_those_of_the_coordinator(rate, steps, trials, tmp_path):
    """Adaptive, with a momentum that is kept where the explored value is near: by `optimizer_settings`."""
    donor, recipient = trials
    space = {"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}
    near = rate < 2e-3
    recipient.optimizer_strategy = "partial" if near else "adaptive"
    recipient.optimizer_settings = {"hyperparams": [space], "optimizer_partial": "momentum"}
    donor.train()
    donor.save(str(tmp_path))
    recipient.config = {**VALUES[1], "learning_rate": rate}
    recipient.restore(str(tmp_path))
    states = recipient.model.policy.optimizer.state_dict()["state"]
    assert {float(state["step"]) for state in states.values()} == ({steps} if near else set())
    recipient.optimizer_strategy, recipient.optimizer_settings = "adaptive", {}
    with pytest.raises(ConfigError, match="optimizer_settings"):
        recipient.restore(str(tmp_path))


def test_another_trial_in_the_same_actor_begins_as_new(trials):
    trial, _ = trials
    trial.train()
    assert trial.reset(VALUES[1])
    assert rates_of(trial.model) == {"learning_rate": [4e-4, 4e-4], "ent_coef": [0.02]}
    assert not trial.model.policy.optimizer.state_dict()["state"]
    assert trial.model.get_vec_normalize_env().obs_rms.count < 1


def test_tunes_own_scheduler_exploits_and_the_lineage_is_kept(example, tmp_path, monkeypatch):
    import ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=4, include_dashboard=False, object_store_memory=200 * 2**20, log_to_driver=False)
    try:
        results = example.main(["--members", "4", "--iterations", "16", "--folder", str(tmp_path)])
    finally:
        ray.shutdown()
    assert len(results) == 4
    assert not results.errors
    (file,) = tmp_path.glob("*/lineage.json")
    grafts = json.loads(file.read_text())
    assert grafts
    trials = {result.metrics["trial_id"]: result for result in results}
    for graft in grafts:
        assert graft["trial"] != graft["parent"]
        assert {graft["trial"], graft["parent"]} <= trials.keys()
        assert 1e-6 < graft["hyperparams"]["learning_rate"] < 1e-1
    latest = {graft["trial"]: graft["hyperparams"] for graft in grafts}
    for trial, values in latest.items():
        assert trials[trial].config == values
