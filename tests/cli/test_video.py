"""`popgraft video`: the frames are those of the episode that the agent plays."""

import sys
from pathlib import Path
from typing import Any

import imageio.v2 as imageio
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from popgraft import Run
from popgraft.cli.app import app

SOURCE = """
import gymnasium as gym, numpy as np
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv

class Count(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 25}
    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        return np.zeros(1, np.float32), 1.0, self.steps == 5, False, {}

    def render(self):
        return np.full((32, 48, 3), 40 * self.steps, np.uint8)

if "Count-v0" not in gym.registry:
    gym.register("Count-v0", Count)

def same_step(num_envs, render_mode=None):
    return SyncVectorEnv([lambda: Count(render_mode)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

def vec_env(num_envs, render_mode=None):
    return DummyVecEnv([lambda: Count(render_mode)] * num_envs)

def blind(num_envs):
    return DummyVecEnv([Count] * num_envs)
"""


# Which imageio's reader leaves to the garbage collector: the pipes of its ffmpeg.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def popgraft(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments), prog_name="popgraft")


@pytest.fixture
def trained(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration whose environment counts its steps in shades of grey."""
    (tmp_path / "my_count.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_count", raising=False)
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    return config


def train(config: Path, env: str) -> None:
    result = popgraft("train", str(config), "--set", f"env={{num_envs: 2, {env}}}", "--set", "total_timesteps=1")
    assert result.exit_code == 0, result.output


def shades(file: str) -> list[int]:
    with imageio.get_reader(file) as reader:
        return [round(float(np.asarray(frame)[..., :3].mean()) / 40) for frame in reader]


def metadata(file: str) -> dict[str, Any]:
    with imageio.get_reader(file) as reader:
        found: dict[str, Any] = reader.get_meta_data()
        return found


def test_a_film_of_whole_episodes(trained: Path) -> None:
    train(trained, "id: 'my_count:Count-v0', wrappers: [{name: flicker, kwargs: {probability: 0.5}}]")
    result = popgraft("video", "run", "--episodes", "2", "--seed", "3")
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout == "wrote run/video.mp4: 2 episodes with the return 5.000, 5.000\n"
    assert shades("run/video.mp4") == [0, 1, 2, 3, 4, 5] * 2  # the last one before the next episode, too
    assert metadata("run/video.mp4")["fps"] == 25
    assert popgraft("video", "run", "--member", "1", "--out", "one.gif", "--fps", "10").exit_code == 0
    assert shades("one.gif") == [0, 1, 2, 3, 4, 5]
    assert metadata("one.gif")["duration"] == 100
    assert sorted(path.name for path in Path().glob("*.gif")) == ["one.gif"]


@pytest.mark.parametrize("factory", ["same_step", "vec_env"])
def test_the_environments_of_a_factory_are_filmed(trained: Path, factory: str) -> None:
    train(trained, f"factory: 'my_count:{factory}'")
    assert popgraft("video", "run", "--out", "film.gif").exit_code == 0
    assert shades("film.gif")[:5] == [0, 1, 2, 3, 4]


def test_what_cannot_be_filmed_is_said(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert popgraft("train", str(trained), "--set", "total_timesteps=1").exit_code == 0

    def refused(*arguments: str) -> str:
        result = popgraft("video", "run", *arguments)
        assert (result.exit_code, result.stdout) == (2, "")
        return result.stderr

    assert refused().startswith("error: env.id='popgraft/RepeatPrevious-v0' cannot be ")
    assert refused("--out", "film.avi") == "error: --out film.avi must end in .mp4 or .gif\n"
    assert refused("--out", "nowhere/film.gif").startswith(
        "error: --out nowhere/film.gif cannot be written: nowhere is "
    )
    assert not list(Path("run").glob("*video*"))
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    assert refused() == (
        "error: imageio_ffmpeg is needed for popgraft video but is not installed; run: pip install 'popgraft[video]'\n"
    )


def test_a_factory_that_knows_no_render_mode_is_said(trained: Path) -> None:
    train(trained, "factory: 'my_count:blind'")
    result = popgraft("video", "run")
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the environment of the factory cannot be made for rendering: " in result.stderr
    assert "render_mode" in result.stderr


@pytest.mark.slow
def test_cartpole_moves(trained: Path) -> None:
    train(trained, "id: CartPole-v1")
    assert popgraft("video", "run").exit_code == 0
    with imageio.get_reader("run/video.mp4") as reader:
        frames = [np.asarray(frame) for frame in reader]
    assert frames[0].shape == (400, 600, 3)
    assert np.abs(frames[0].astype(int) - frames[-1]).mean() > 0.1
    assert Run("run").best.film(lambda frame, fps: None, 1, 0)[0] >= 8
