"""A run that is interrupted in any way and resumed leaves the same folder as one that never was."""

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import ConfigError, Observer, Run, RunExists, StoreError, train
from popgraft.dashboard.status import status_of
from popgraft.store import RunDatabase, RunFolder, snapshot
from popgraft.store.lock import locked
from popgraft.train import resume
from popgraft.train.points import LASTING
from popgraft.train.tensorboard import TensorBoard

from .same import check_same, contents

Make = Callable[..., dict[str, Any]]
STEPS = 96  # of the population in a generation
GENERATIONS = 7

VARIANTS: dict[str, dict[str, Any]] = {
    "truncation": {},
    "backtracking": {"pbt__exploit_method": "backtracking"},
    "explore always": {"pbt__exploit_method": "ttest", "pbt__explore_always": True},
    "training scores": {"pbt__fitness": "training"},
    "episodes that go on": {"pbt__reset_envs_on_exploit": False, "pbt__lstm_reset_mode": "burn_in"},
    "a fault": {"pbt__graft_faults": ["overwrite_learning_rate"], "pbt__metric_mode": "min"},
    "reset": {"pbt__optimizer_exploit_strategy": "reset", "evaluation__deterministic": False},
    "everything": {
        "model__optimizer": "adaptive_upgd",
        "model__vgs": {"enabled": True},
        "model__kl_penalty": True,
        "model__target_kl": 0.01,
        "model__ent_coef_final": 0.0,
        "model__adversary": {"enabled": True},
        "env__wrappers": [{"name": "flicker", "kwargs": {"probability": 0.2}}],
    },
}


@pytest.fixture
def make(tiny: Make, tmp_path: Path) -> Make:
    """Three members, 7 generations, a snapshot after every second."""

    def make(name: str, **changes: Any) -> dict[str, Any]:
        settings = {
            "env__kwargs": {"delay": 1, "length": 7},  # no multiple of a rollout
            "pbt__population_size": 3,
            "pbt__truncation_ratio": 0.34,
            "snapshots": {"interval": 2, "keep": 2},
            "total_timesteps": GENERATIONS * STEPS,
        }
        return tiny(**settings | changes | {"run_dir": str(tmp_path / name)})

    return make


@pytest.fixture
def straight(make: Make, kept: dict[str, Run], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The run that nobody interrupts; the same for all tests, which only read it."""
    if "straight" not in kept:
        settings = make("") | {"run_dir": str(tmp_path_factory.mktemp("runs") / "straight")}
        kept["straight"] = train(settings)
    return kept["straight"]


@pytest.fixture
def broken(make: Make, kept: dict[str, Run], tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run that was stopped in its sixth generation; a copy for every test."""
    if "broken" not in kept:
        settings = make("") | {"run_dir": str(tmp_path_factory.mktemp("runs") / "broken")}
        kept["broken"] = interrupted(settings, updates=11)
    return Run(shutil.copytree(kept["broken"].path, tmp_path / "broken"))


class Interrupter(Observer):
    """Sends Ctrl-C after a number of updates; twice, to stop in the middle of one."""

    def __init__(self, updates: int, times: int = 1) -> None:
        self.updates, self.times = updates, times

    def on_update(self, steps: int) -> None:
        self.updates -= 1
        if self.updates == 0:
            for _ in range(self.times):
                os.kill(os.getpid(), signal.SIGINT)


def interrupted(settings: dict[str, Any], updates: int, times: int = 1) -> Run:
    """A run that was stopped after some updates; two are a generation."""
    with contextlib.suppress(KeyboardInterrupt):
        train(settings, observer=Interrupter(updates, times))
    return Run(settings["run_dir"])


# What a variant adds to "everything" is one decision of many.
TIERS = dict.fromkeys(VARIANTS, pytest.mark.slow) | {"everything": (), "backtracking": pytest.mark.heavy}


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("variant", [pytest.param(name, marks=TIERS[name]) for name in VARIANTS])
def test_an_interrupted_run_ends_as_the_straight_one(make: Make, variant: str) -> None:
    straight = train(make("straight", **VARIANTS[variant]))
    assert straight.lineage or "always" in variant
    run = interrupted(make("broken", **VARIANTS[variant]), updates=11)
    assert run.state == "stopped"
    assert run.generations == 5
    check_same(resume(run.path), straight)
    told = [(event.kind, event.generation) for event in run.events if event.kind in LASTING]
    assert told == [("stopped", 5), ("resumed", 4)]


@pytest.mark.slow
def test_shards_in_processes_are_resumed_too(make: Make) -> None:
    straight = train(make("straight", execute__shards=2))
    run = interrupted(make("broken", execute__shards=2), updates=11)
    check_same(resume(run.path), straight)


class Fragile(gym.Env):
    """Breaks now and then in training, as its seed decides."""

    risk = 0.015
    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.left = 7
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        if self.np_random.random() < self.risk:
            raise RuntimeError("broken")
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action), self.left == 0, False, {}


class Solid(Fragile):
    risk = 0


def fragile(num_envs: int) -> SyncVectorEnv:
    return SyncVectorEnv([Fragile if num_envs == 2 else Solid] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def test_failed_members_and_readiness_checks_are_remembered(make: Make) -> None:
    changes = {"env__kwargs": {}, "pbt__ready_percentage": 1.0, "pbt__population_size": 6, "total_timesteps": 1300}
    straight = train(make("straight", **changes), factory=fragile)
    assert {"environment", "rescue"} <= {event.kind for event in straight.events}
    settings = make("broken", **changes)
    train(settings, observer=Interrupter(11), factory=fragile)
    run = Run(settings["run_dir"])
    assert snapshot.verified(run.folder, "generation_000004")["strategy"]["state"]["failed_ready_checks"] > 0
    check_same(resume(run.path, factory=fragile), straight)


@pytest.mark.parametrize(
    ("updates", "times", "first"), [slow(1, 1, 1), (4, 2, 1), slow(5, 1, 3), slow(9, 2, 5), (14, 1, 7)], ids=str
)
def test_the_moment_of_the_interrupt_does_not_matter(
    make: Make, straight: Run, updates: int, times: int, first: int
) -> None:
    run = interrupted(make("broken"), updates, times)
    check_same(resume(run.path), straight)
    resumed = [event.text for event in run.events if event.kind == "resumed"]
    assert resumed == [f"going on with generation {first} of {GENERATIONS}"]


def test_a_run_that_lacks_its_last_evaluation_alone_gets_it(make: Make, straight: Run) -> None:
    class Late(Observer):
        def on_final_evaluation(self, episodes: int) -> None:
            raise KeyboardInterrupt

    settings = make("broken")
    with pytest.raises(KeyboardInterrupt):
        train(settings, observer=Late())
    points = Run(settings["run_dir"]).folder.snapshots
    shutil.copytree(points / "generation_000006", points / "generation_000004")  # as if killed before it was removed
    run = resume(settings["run_dir"])
    check_same(run, straight)
    assert [event.text for event in run.events if event.kind == "resumed"] == ["going on with the last evaluation"]


FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["popgraft"])


def begun(settings: dict[str, Any]) -> Any:
    """A process that trains a run, or goes on with it."""
    path = Path(settings["run_dir"])
    if not (path / "config.yaml").is_file():
        shutil.rmtree(path, ignore_errors=True)  # killed before there was a run
        target: tuple[Any, Any] = (train, settings)
    else:
        target = (resume, path)
    process = FORKS.Process(target=target[0], args=target[1:])
    process.start()
    return process


def generations(settings: dict[str, Any]) -> int:
    with contextlib.suppress(StoreError):
        return Run(settings["run_dir"]).generations
    return 0


def kill_and_resume(settings: dict[str, Any], kills: int, draw: random.Random) -> Run:
    """Kills the run again and again, each time when some generation is over and some milliseconds more."""
    for _ in range(kills):
        process = begun(settings)
        wanted = draw.randrange(0, GENERATIONS)
        began = time.monotonic()
        while process.is_alive() and generations(settings) < wanted and time.monotonic() < began + 60:
            time.sleep(0.002)
        time.sleep(draw.uniform(0, 0.2))
        process.kill()
        process.join()
        finished = Path(settings["run_dir"], "config.yaml").exists() and Run(settings["run_dir"]).state == "finished"
        assert process.exitcode == -signal.SIGKILL or finished
        if finished:  # perhaps killed in its very last moment
            break
    else:
        process = begun(settings)
        process.join()
        assert process.exitcode == 0
    return Run(settings["run_dir"])


@pytest.mark.heavy
def test_a_killed_run_ends_as_the_straight_one(make: Make, straight: Run) -> None:
    check_same(kill_and_resume(make("broken"), kills=3, draw=random.Random(1)), straight)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "shards"), [*((variant, 1) for variant in VARIANTS), ("truncation", 2)])
def test_a_run_that_is_killed_again_and_again_ends_as_the_straight_one(make: Make, variant: str, shards: int) -> None:
    straight = train(make("straight", execute__shards=shards, **VARIANTS[variant]))
    settings = make("broken", execute__shards=shards, **VARIANTS[variant])
    check_same(kill_and_resume(settings, kills=5, draw=random.Random(variant)), straight)


def damage(folder: RunFolder, name: str, how: str) -> None:
    (tensors,) = (folder.snapshots / name).glob("*.safetensors")
    if how == "truncated":
        os.truncate(tensors, tensors.stat().st_size // 2)
    elif how == "altered":
        data = bytearray(tensors.read_bytes())
        data[-5] ^= 1
        tensors.write_bytes(data)
    elif how == "without tensors":
        tensors.unlink()
    else:
        (folder.snapshots / name / "manifest.json").write_text(how)


@pytest.mark.parametrize("how", [slow("truncated"), "altered", slow("without tensors"), "[]"])
def test_a_damaged_snapshot_costs_one_interval(
    broken: Run, straight: Run, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert snapshot.names(broken.folder) == ["best", "generation_000002", "generation_000004", "last"]
    damage(broken.folder, "generation_000004", how)
    check_same(resume(broken.path), straight)
    told = {event.kind: event.text for event in broken.events if event.kind in ("damaged", "resumed")}
    assert "generation_000004" in told["damaged"]
    assert told["resumed"] == "going on with generation 3 of 7"
    assert told["damaged"] in caplog.messages


@pytest.mark.parametrize("updates", [slow(3), 11])
def test_a_snapshot_that_was_being_written_is_not_missed(make: Make, straight: Run, updates: int) -> None:
    run = interrupted(make("broken"), updates)
    half = run.folder.snapshots / "generation_000006"
    half.mkdir()
    (half / ".tensors-0123456789abcdef.safetensors.tmp").write_bytes(b"half")
    check_same(resume(run.path), straight)
    assert "damaged" not in {event.kind for event in run.events}


def test_a_run_whose_snapshots_are_all_damaged_is_left_as_it_is(broken: Run) -> None:
    for name in ("generation_000002", "generation_000004"):
        damage(broken.folder, name, "altered")
    before = {path: path.read_bytes() for path in broken.folder.snapshots.rglob("*") if path.is_file()}, broken.events
    with pytest.raises(
        StoreError, match=r"no snapshot from which it can go on: .* does not match its checksum.*delete"
    ):
        resume(broken.path)
    assert before == ({path: path.read_bytes() for path in before[0]}, broken.events)


def test_a_database_that_lacks_generations_says_so_and_the_run_goes_on(broken: Run, straight: Run) -> None:
    with contextlib.closing(sqlite3.connect(broken.folder.database)) as connection, connection:
        connection.execute("DELETE FROM grafts WHERE generation = 2")
        connection.execute("DELETE FROM members WHERE generation = 2")
    resume(broken.path)
    (text,) = (event.text for event in broken.events if event.kind == "damaged")
    assert "has lost the scores of generations 2" in text
    assert [row for row in straight.scores if row.generation != 2] == broken.scores
    assert contents(broken, "last") == contents(straight, "last")


def ruined(run: Run, how: str) -> None:
    """Damages the database of a run that holds five generations."""
    path = run.folder.database
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "zeros in the middle":
        path.write_bytes(data[:8192] + bytes(4096) + data[12288:])
    else:
        path.write_bytes({"empty": b"", "half": data[: len(data) // 2], "nonsense": b"\x07" * len(data)}[how])


@pytest.mark.parametrize("how", ["missing", slow("empty"), slow("half"), slow("nonsense"), "zeros in the middle"])
def test_a_damaged_database_is_kept_and_the_run_goes_on_without_it(
    broken: Run, straight: Run, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    class Listening(Observer):
        def on_event(self, kind: str, text: str) -> None:
            told.append((kind, text))

    told: list[tuple[str, str]] = []
    ruined(broken, how)
    old = None if how == "missing" else broken.folder.database.read_bytes()
    resume(broken.path, observer=Listening())
    assert contents(broken, "last") == contents(straight, "last")
    assert [row for row in broken.scores if row.generation >= 4] == [
        row for row in straight.scores if row.generation >= 4
    ]
    assert [row for row in straight.scores if row in broken.scores] == broken.scores
    damages = [(event.kind, event.text) for event in broken.events if event.kind == "damaged"]
    assert set(damages) <= set(told)
    assert {text for _, text in damages} <= set(caplog.messages)
    assert "A new one holds the" in damages[0][1]
    kept = broken.path / "run.sqlite.damaged-1"
    assert (kept.read_bytes() if kept.exists() else None) == old
    assert (kept.name in damages[0][1]) == (old is not None)
    assert broken.state == "finished"
    with RunDatabase(broken.folder.database) as database:
        database.check()


def test_an_interrupted_run_without_its_database_can_be_interrupted_again(broken: Run, straight: Run) -> None:
    ruined(broken, "missing")
    with contextlib.suppress(KeyboardInterrupt):
        resume(broken.path, observer=Interrupter(3))
    resume(broken.path)
    kept = [(event.kind, event.generation) for event in broken.events if event.kind not in LASTING]
    assert kept[-1:] == [(event.kind, event.generation) for event in straight.events if event.kind == "final"]
    assert {kind for kind, _ in kept} <= {"tie", "best", "final"}
    assert contents(broken, "last") == contents(straight, "last")


@pytest.mark.parametrize(
    "place", [(RunDatabase, "rewind"), slow((TensorBoard, "cut")), (snapshot, "save"), slow((snapshot, "remove"))]
)
def test_going_back_can_be_cut_short(
    broken: Run, straight: Run, place: tuple[Any, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(broken.folder, "generation_000004", "altered")  # so that there is a snapshot to be removed

    def fail(*_: Any) -> None:
        raise StoreError("no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*place, fail)
        with pytest.raises(StoreError, match="no space left"):
            resume(broken.path)
    check_same(resume(broken.path), straight)


def test_a_full_disk_ends_the_run_with_its_reason(make: Make, straight: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    save, settings = snapshot.save, make("broken")

    def fail(folder: RunFolder, name: str, *rest: Any) -> None:
        if name == "generation_000004":
            raise StoreError("cannot write snapshot: no space left on device")
        save(folder, name, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(snapshot, "save", fail)
        with pytest.raises(StoreError, match="no space left"):
            train(settings)
    run = Run(settings["run_dir"])
    texts = [event.text for event in run.events if event.kind != "tie"]
    assert texts == ["cannot write snapshot: no space left on device"]
    check_same(resume(run.path), straight)


def test_one_process_at_a_time(make: Make) -> None:
    run = interrupted(make("broken"), updates=3)
    with locked(run.folder):
        assert run.state == "running"
        with pytest.raises(RunExists, match=rf"is being trained by process {os.getpid()} on .*; wait for it"):
            resume(run.path)
    assert run.state == "stopped"


def test_a_changed_configuration_is_refused_unless_it_is_named(broken: Run) -> None:
    settings = yaml.safe_load(broken.folder.config.read_text())
    settings["model"]["gamma"] = 0.5
    broken.folder.config.write_text(yaml.safe_dump(settings))
    with pytest.raises(ConfigError, match=r"has been changed since .*name what changes: --set 'model.gamma=0.5'$"):
        resume(broken.path)
    with pytest.raises(ConfigError, match="has been changed"):
        resume(broken.path, ["model.gamma=0.6"])
    assert not any(event.kind == "changed" for event in broken.events)
    resumed = resume(broken.path, ["model.gamma=0.5"])
    assert resumed.config.model.gamma == 0.5
    gammas = {record.generation: record.hyperparams["gamma"] for record in broken.scores}
    assert {gammas[generation] for generation in range(4)} == {0.99}
    texts = [event.text for event in broken.events if event.kind == "changed"]
    assert texts == ["model.gamma: 0.99 → 0.5"]
    with RunDatabase(broken.folder.database) as database:
        assert [yaml.safe_load(session.config)["model"]["gamma"] for session in database.sessions()] == [0.99, 0.5]


@pytest.mark.parametrize("text", ["5", "null", "[1]", "a"])
def test_a_recorded_configuration_that_is_none_is_refused_in_words(broken: Run, text: str) -> None:
    with contextlib.closing(sqlite3.connect(broken.folder.database)) as connection, connection:
        connection.execute("UPDATE sessions SET config = ?", (text,))
        connection.execute("DROP TABLE IF EXISTS checksums")  # as in a run of an earlier version
    with pytest.raises(ConfigError, match=r"run\.sqlite must hold settings as `key: value`, not a"):
        resume(broken.path)


def test_a_setting_that_changes_shapes_is_refused_and_changes_nothing(broken: Run) -> None:
    before = broken.folder.config.read_text(), broken.events, snapshot.names(broken.folder)
    for change in ("pbt.population_size=4", "model.network.hidden_size=9"):
        with pytest.raises(StoreError, match="does not fit this configuration"):
            resume(broken.path, [change])
    with pytest.raises(ConfigError, match="run_dir cannot be changed"):
        resume(broken.path, {"run_dir": "elsewhere"})
    assert before == (broken.folder.config.read_text(), broken.events, snapshot.names(broken.folder))


def test_a_finished_run_goes_on_only_with_more_to_do(make: Make) -> None:
    straight = train(make("straight", total_timesteps=6 * STEPS))
    run = train(make("short", total_timesteps=4 * STEPS))
    with pytest.raises(ConfigError, match="short is finished; to go on, raise total_timesteps, for example --set"):
        resume(run.path)
    assert run.state == "finished"
    check_same(resume(run.path, {"total_timesteps": 6 * STEPS}), straight)


def test_a_run_may_go_on_in_generations_of_another_size(make: Make) -> None:
    run = train(make("short", total_timesteps=2 * STEPS))
    standings = []
    for changes, sizes in [
        ({"env.num_envs": 4, "total_timesteps": 8 * STEPS}, [2 * STEPS] * 3),
        ({"model.n_steps": 4, "total_timesteps": 8 * STEPS + 1}, [STEPS]),
        ({"pbt.perturbation_interval": 3, "total_timesteps": 10 * STEPS}, [3 * STEPS // 2]),
    ]:
        before = run.generations, max(record.steps for record in run.scores)
        run = resume(run.path, changes)
        assert run.state == "finished"
        taken = sorted({3 * record.steps for record in run.scores if record.generation >= before[0]})
        assert taken == [3 * before[1] + sum(sizes[: i + 1]) for i in range(len(sizes))]
        standings.append(status_of(run))
    assert [(found.done, found.planned) for found in standings] == [(5, 5), (6, 6), (7, 7)]
    told = [event.text for event in run.events if event.kind == "resumed"]
    assert told == [f"going on with generation {i} of {whole}" for i, whole in ((3, 5), (6, 6), (7, 7))]
    with pytest.raises(ConfigError, match=rf"--set total_timesteps={20 * STEPS}$"):
        resume(run.path)
    with pytest.raises(ConfigError, match=r"--set total_timesteps=(\d+)$") as refused:
        resume(run.path, {"total_timesteps": 1})
    more = int(str(refused.value).rpartition("=")[2])
    assert resume(run.path, {"total_timesteps": more}).generations == 8


def test_a_run_that_has_reached_its_score_goes_on_without_it(make: Make) -> None:
    run = train(make("short", stop_at_score=-1.0))
    assert run.generations == 1
    with pytest.raises(
        ConfigError, match=r"set another stop_at_score than -1\.0, for example --set stop_at_score=null"
    ):
        resume(run.path)
    assert resume(run.path, ["stop_at_score=null"]).generations == GENERATIONS


def test_a_run_can_be_moved(broken: Run, straight: Run, tmp_path: Path) -> None:
    moved = broken.path.rename(tmp_path / "moved")
    check_same(resume(moved), straight)


def test_a_run_without_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a folder"):
        resume(tmp_path / "nowhere")
