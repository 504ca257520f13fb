"""Experiment trackers, with the real packages where they are installed."""

import json
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from popgraft import ConfigError, Generation, MissingExtra, Plan, Run, load_config, resume, train
from popgraft.state import Decision, Scores
from popgraft.train.scalars import scalars
from popgraft.train.trackers import Points, Tracker

Tiny = Callable[..., dict[str, Any]]


def generation(pop: int = 2, number: int = 1) -> Generation:
    values = {"learning_rate": torch.full((pop,), 0.1)}
    return Generation(
        number=number,
        members=torch.arange(pop),
        place_steps=torch.full((pop,), 64),
        update_steps=16,
        steps=64 * pop,
        seconds=1.0,
        scores=Scores(torch.tensor([float("nan"), *range(1, pop)]), torch.zeros(pop), torch.ones(pop).long()),
        hyperparams=values,
        decision=Decision(torch.arange(pop), values, {}),
        metrics={
            "value_loss": torch.ones(pop, 2),
            "ep_rew_mean": torch.full((pop, 2), float("nan")),
            "vgs/x": torch.ones(pop, 2),
        },
        best_score=1.0,
        statistics={"population_size": 2.0, "exploitation_count": 3.0},
    )


def test_every_curve_has_its_place_its_name_and_its_steps() -> None:
    found = {(scalar.place, scalar.tag, scalar.step): scalar.value for scalar in scalars(generation())}
    # two generations of two updates in 64 steps: the third and fourth update end after 48 and 64
    for place in ("member_00", "member_01"):
        for tag in ("train/value_loss", "vgs/x"):
            assert [found.pop((place, tag, step)) for step in (48, 64)] == [1.0, 1.0]
    assert found.pop(("member_01", "pbt/score", 64)) == 1.0  # the other one has none
    assert {(place, step) for place, _, step in found} == {("population", 128)}
    assert {tag.removeprefix("pbt/"): value for (_, tag, _), value in found.items()} == {
        "population_size": 2.0,
        "ready_members": 1.0,
        "exploitation_count": 3.0,
        "mean_performance": 1.0,
        "std_performance": 0.0,
        "min_performance": 1.0,
        "max_performance": 1.0,
    }
    assert {scalar.place for scalar in scalars(generation(101))} >= {"member_000", "member_100"}


def test_tensorboard_gets_all_names_that_are_promised(tiny: Tiny) -> None:
    settings = tiny(
        total_timesteps=32,
        model__optimizer="adaptive_upgd",
        model__vgs={"enabled": True},
        model__adversary={"enabled": True, "warmup_updates": 0},
        model__target_kl=0.05,
        model__kl_penalty=True,
    )
    run = train(settings)
    events = EventAccumulator(str(run.folder.tensorboard / "member_00"))
    events.Reload()
    found = set(events.Tags()["scalars"])
    names = {
        "train": "value_loss policy_loss entropy_loss approx_kl clip_fraction kl_penalty_beta ent_coef explained_variance "
        "upgd_noise_std learning_rate",
        "rollout": "ep_rew_mean ep_len_mean",
        "vgs": "scaling_factor normalized_variance step_count warmup_active",
        "lstm": "actor_layer0_norm actor_layer0_mean actor_layer0_std critic_layer0_norm critic_layer0_mean critic_layer0_std",
        "sa_ppo": "enabled update_count adversarial_samples clean_samples adversarial_ratio robust_kl_penalty "
        "current_epsilon attack_count avg_perturbation_norm",
    }
    assert {f"{room}/{name}" for room, tags in names.items() for name in tags.split()} <= found


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_missing_package_is_said_before_anything_is_written(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra, match=rf"{name} is needed for tracking.{name} .* 'popgraft\[{name}\]'"):
        train(tiny(tracking={name: {"enabled": True}}))
    assert not (tmp_path / "run").exists()


class Broken(Tracker):
    name = "broken"

    def __init__(self, where: str) -> None:
        self.where, self.asked = where, 0

    def begin(self, plan: Plan, known: str | None) -> str:
        if self.where == "begin":
            raise OSError("no\n network")
        return known or "first"

    def report(self, points: Points) -> None:
        self.asked += 1
        raise OSError("no network")

    def end(self) -> None:
        raise AssertionError("what has been given up is left alone")


def test_a_tracker_that_cannot_begin_ends_the_run_and_one_that_fails_later_is_given_up(
    tiny: Tiny, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan = Plan(load_config(tiny()), tmp_path, 10)
    with pytest.raises(
        ConfigError, match=r"tracking.broken cannot be used: no network; .* tracking.broken.enabled: false"
    ):
        Broken("begin").on_start(plan)
    tracker = Broken("report")
    tracker.on_start(plan)
    assert json.loads((tmp_path / "broken.json").read_text()) == {"id": "first"}
    for number in (0, 1):
        tracker.on_generation(generation(number=number))
    tracker.on_end()
    assert tracker.asked == 1
    assert caplog.messages == ["broken gets nothing more of this run: no network"]


def curves(run: Run) -> dict[str, list[tuple[int, float]]]:
    """What TensorBoard has of every place."""
    found = {}
    for folder in run.folder.tensorboard.iterdir():
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            found[f"{folder.name}/{tag}"] = [(event.step, pytest.approx(event.value)) for event in events.Scalars(tag)]
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_mlflow_gets_the_curves_of_tensorboard_and_a_resumed_run_goes_on_there(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    uri = f"file:{tmp_path / 'mlruns'}"
    settings = tiny(tracking={"mlflow": {"enabled": True, "uri": uri, "experiment": "tests"}}, total_timesteps=64)
    run = train(settings)
    resume(run.path, {"total_timesteps": 128})
    client = mlflow.MlflowClient(uri)
    (found,) = client.search_runs([client.get_experiment_by_name("tests").experiment_id])
    assert found.info.status == "FINISHED"
    assert found.data.params["pbt.population_size"] == "2"
    for key, points in curves(run).items():
        assert [(point.step, point.value) for point in client.get_metric_history(found.info.run_id, key)] == points, key


def records(log: bytes) -> Iterator[bytes]:
    """Records of a LevelDB log, in blocks of 32 KiB; a part has a header of checksum, length and kind."""
    at, data = 7, b""  # wandb's own header
    while at < len(log):
        if 2**15 - at % 2**15 < 7:
            at += 2**15 - at % 2**15
        length, kind = struct.unpack("<HB", log[at + 4 : at + 7])
        data += log[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield data
            data = b""


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_wandb_keeps_the_curves_of_tensorboard_without_a_network(tiny: Tiny) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    settings = tiny(tracking={"wandb": {"enabled": True, "offline": True, "project": "tests"}}, total_timesteps=64)
    run = train(settings)
    resume(run.path, {"total_timesteps": 128})
    kept: dict[str, list[tuple[int, float]]] = {}
    ids = set()
    for file in sorted(run.path.glob("wandb/offline-run-*/*.wandb")):
        for data in records(file.read_bytes()):
            record = Record.FromString(data)
            if record.run.run_id:
                ids.add(record.run.run_id)
            row = {
                item.nested_key[0] if item.nested_key else item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            for key, value in row.items():
                place, _, tag = key.partition("/")
                if "/" in tag:
                    kept.setdefault(key, []).append((row[f"{place}/steps"], value))
    assert ids == {json.loads((run.path / "wandb.json").read_text())["id"]}
    assert kept == curves(run)
