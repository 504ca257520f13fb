"""A run's folder while it trains: guests that go elsewhere, and a folder that is taken away."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft import Observer, Plan, resume, train
from popgraft.errors import StoreError
from popgraft.train.place import Place
from popgraft.train.run import Run

Tiny = Callable[..., dict[str, Any]]


class Wanderer(gym.Env[Any, Any]):
    """Leaves for another folder in its steps."""

    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, folder: Path) -> None:
        self.folder, self.time = folder, 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        os.chdir(self.folder)
        self.time += 1
        return np.zeros(2, np.float32), 1.0, False, self.time == 5, {}


class Guide(Observer):
    """Leaves for another folder whenever it is told something."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, Path()

    def on_start(self, plan: Plan) -> None:
        self.told = plan.folder
        os.chdir(self.folder)

    def on_update(self, steps: int) -> None:
        os.chdir(self.folder)

    on_generation = on_event = on_end = on_final_evaluation = lambda self, *_: os.chdir(self.folder)


@pytest.mark.filterwarnings("ignore")
def test_a_relative_folder_stays_where_it_was_named(
    tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    monkeypatch.chdir(home)

    def factory(num_envs: int) -> Any:
        os.chdir(away)
        return SyncVectorEnv([lambda: Wanderer(away)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

    settings = tiny(run_dir="runs/one", snapshots={"interval": 1})
    settings["env"] = {"num_envs": 2}
    guide = Guide(away)
    run = train(settings, observer=guide, factory=factory)
    assert (run.path, guide.told, Path.cwd()) == (Path("runs/one"), Path("runs/one"), home)
    assert list(away.iterdir()) == []
    assert run.is_finished
    assert len(run.scores) == 6
    os.chdir(away)  # whoever has the run finds it from everywhere
    assert run.best.predict(np.zeros((1, 2), np.float32))[0].shape == (1,)
    os.chdir(home)
    again = resume("runs/one", {"total_timesteps": 256}, observer=guide, factory=factory)
    assert (again.path, Path.cwd(), len(again.scores)) == (Path("runs/one"), home, 8)
    assert list(away.iterdir()) == []
    assert [path.name for path in home.iterdir()] == ["runs"]


def test_errors_name_the_folder_as_it_was_given(tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train(tiny(run_dir="runs/one"))
    for manifest in Path("runs/one/snapshots").glob("generation_*/manifest.json"):
        manifest.write_text("{}")
    with pytest.raises(StoreError, match=r"^runs/one has no snapshot from which it can go on: runs/one/snapshots/gen"):
        resume("runs/one", {"total_timesteps": 256})
    with pytest.raises(StoreError, match=r"^runs/two is not a folder"):
        resume("runs/two")


def test_a_working_folder_that_is_gone_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    with pytest.raises(StoreError, match=r"^runs/one leads nowhere: the current folder has been deleted"):
        resume("runs/one")
    assert Place.of(tmp_path).folder.path == tmp_path


def delete(folder: Path) -> None:
    while folder.exists():  # a file that is being written meanwhile keeps its folder
        shutil.rmtree(folder, ignore_errors=True)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def lose_database(folder: Path) -> None:
    for file in folder.glob("run.sqlite*"):
        file.unlink()


GONE = "error: the run folder runs/one is gone: it was deleted or moved while the run went on"


@pytest.mark.parametrize(
    ("command", "take", "message"),
    [
        pytest.param("train", delete, GONE, marks=pytest.mark.heavy),
        pytest.param("train", move, GONE, marks=pytest.mark.slow),
        pytest.param("resume", delete, GONE, marks=pytest.mark.slow),
        pytest.param("resume", move, GONE, marks=pytest.mark.slow),
        pytest.param("train", lose_database, "error: the database runs/one/run.sqlite is gone", marks=pytest.mark.slow),
    ],
)
def test_a_folder_that_is_taken_away_ends_the_run_in_words(
    tiny: Tiny, tmp_path: Path, command: str, take: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "runs" / "one"
    endless = tiny(run_dir="runs/one", total_timesteps=10**8, snapshots={"interval": 1})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(endless))
    arguments = ["train", "config.yaml"]
    if command == "resume":
        train({**endless, "run_dir": str(folder), "total_timesteps": 64})
        arguments = ["resume", "runs/one", "--set", "total_timesteps=100_000_000"]
    before = set(folder.glob("snapshots/generation_*"))
    process = subprocess.Popen(
        [sys.executable, "-c", "from popgraft.cli.app import main; main()", *arguments],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 60
        while len(set(folder.glob("snapshots/generation_*")) - before) < 2:
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.02)
        take(folder)
        said, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
    assert process.returncode == 2, said
    assert message in said
    assert "Traceback" not in said
    assert "Exception" not in said
    if take is not lose_database:
        assert said.splitlines()[-1].startswith(message)
        assert not folder.exists()
    if take is move:
        assert not Run(folder.with_name("elsewhere")).is_finished
