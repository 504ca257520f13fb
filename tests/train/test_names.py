"""Where a run's environments and networks come from: what is named, what is passed in Python, and who finds it."""

import json
import subprocess
import sys

import gymnasium as gym
import pytest
from typer.testing import CliRunner

from popgraft import ConfigError, Run, resume, train
from popgraft.cli.app import app

SMALL = {
    "env": {"num_envs": 2},
    "model": {"n_steps": 8, "n_minibatches": 1, "network": {"hidden_size": 4, "encoder_layers": [4]}},
    "pbt": {"population_size": 2, "perturbation_interval": 1},
    "evaluation": {"episodes": 1, "final_episodes": 1, "max_steps": 20},
    "execute": {"shards": 1},
    "total_timesteps": 32,
}


def make(num_envs):
    """A world of the test's own, of which every step is worth 7."""
    worlds = [lambda: gym.wrappers.TransformReward(gym.make("CartPole-v1"), lambda _: 7.0)] * num_envs
    return gym.vector.SyncVectorEnv(worlds, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


@pytest.mark.parametrize("env", [None, {"num_envs": 2, "id": "CartPole-v1"}])
def test_a_factory_needs_no_other_source_and_takes_the_place_of_one(env, tmp_path):
    rest = {**SMALL, "total_timesteps": 1}
    del rest["env"]
    run = train({**rest, **({"env": env} if env else {}), "run_dir": str(tmp_path / "run")}, factory=make)
    assert all(record.score % 7 == 0 for record in run.scores)
    assert run.config.env.source == "python"

    more = 2 * run.config.steps_per_generation
    again = resume(run.path, {"total_timesteps": more}, factory=make)
    assert again.generations == 2
    assert all(record.score % 7 == 0 for record in again.scores)
    assert Run(run.path, factory=make).best.evaluate(1, seed=1).mean.item() % 7 == 0


def test_a_run_of_a_factory_says_what_it_needs(tmp_path):
    run = train({**SMALL, "run_dir": str(tmp_path / "run")}, factory=make)
    with pytest.raises(ConfigError, match=r"pass it again, as in .*resume\(RUN, factory=make\)"):
        resume(run.path, {"total_timesteps": 64})
    with pytest.raises(ConfigError, match=r"Run\(RUN, factory=make\)\.best\.evaluate"):
        _ = Run(run.path).best
    for command in ("evaluate", "resume"):
        more = ["--set", "total_timesteps=64"] if command == "resume" else []
        result = CliRunner().invoke(app, [command, str(run.path), *more])
        assert result.exit_code == 2
        assert "factory that is passed in Python" in result.output
    with pytest.raises(ConfigError, match=r"give either env.id or env.factory"):
        train({**SMALL, "run_dir": str(tmp_path / "nothing")})
    assert not (tmp_path / "nothing").exists()


MODULE = """
import gymnasium as gym
from torch import nn

def make(num_envs, worth):
    import worth_of_mine  # only when it is called
    worlds = [lambda: worth_of_mine.Worth(gym.make("CartPole-v1"), worth)] * num_envs
    return gym.vector.SyncVectorEnv(worlds, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)

class Net(nn.Sequential):
    def __init__(self, observation_space):
        super().__init__(nn.Linear(observation_space.shape[0], 4))
"""
LAZY = """
import gymnasium as gym

class Worth(gym.wrappers.TransformReward):
    def __init__(self, env, worth):
        super().__init__(env, lambda _: worth)
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with modules and a configuration that names them, which is not the current one."""
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "world_of_mine.py").write_text(MODULE)
    (folder / "worth_of_mine.py").write_text(LAZY)
    network = {**SMALL["model"]["network"], "encoder": "world_of_mine:Net"}
    del network["encoder_layers"]
    env = {"factory": "world_of_mine:make", "kwargs": {"worth": 3.0}, "num_envs": 2}
    settings = {**SMALL, "env": env, "model": {**SMALL["model"], "network": network}, "run_dir": str(tmp_path / "run")}
    (folder / "config.yaml").write_text(json.dumps(settings))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    yield folder
    forget()


def forget():
    """As in a process that has not imported them yet."""
    for name in ("world_of_mine", "worth_of_mine"):
        sys.modules.pop(name, None)


@pytest.mark.heavy
def test_modules_beside_the_configuration_are_found_from_everywhere(project, tmp_path, monkeypatch):
    before = list(sys.path)
    command = CliRunner().invoke(app, ["train", "../project/config.yaml"])
    assert command.exit_code == 0, command.output
    run = Run(tmp_path / "run")
    assert {record.score % 3 for record in run.scores} == {0}
    assert run.config.code_dir == project

    (tmp_path / "third").mkdir()
    monkeypatch.chdir(tmp_path / "third")
    for words in (["evaluate"], ["resume", "--set", "total_timesteps=64"], ["export", "agent.pt2"]):
        forget()
        command = CliRunner().invoke(app, [words[0], str(run.path), *words[1:]])
        assert command.exit_code == 0, command.output
    forget()
    assert Run(run.path).best.evaluate(1, seed=3).mean.item() % 3 == 0
    assert sys.path == before

    project.rename(tmp_path / "moved")
    forget()
    with pytest.raises(ConfigError, match=r"no module 'world_of_mine'.*--set code_dir=FOLDER"):
        resume(run.path, {"total_timesteps": 128})
    assert resume(run.path, {"total_timesteps": 128, "code_dir": str(tmp_path / "moved")}).is_finished
    forget()
    assert Run(run.path).best.evaluate(1, seed=3).mean.item() % 3 == 0


def test_a_name_that_is_not_there_leaves_no_folder(project, tmp_path):
    for override in ({"env.factory": "world_of_mine:mike"}, {"model.network.encoder": "world_of_yours:Net"}):
        with pytest.raises(ConfigError, match=r"did you mean '(make|world_of_mine)'"):
            train(project / "config.yaml", override)
    assert not (tmp_path / "run").exists()


SCRIPT = """
import sys
print("RUN", flush=True)
import gymnasium as gym, numpy as np, torch
from gymnasium.envs.registration import WrapperSpec
from popgraft import train, resume, Run

class World(gym.Env):
    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 5.0, False, False, {}

class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward

class Net(torch.nn.Linear):
    def __init__(self, observation_space):
        super().__init__(1, 4)

doubled = (WrapperSpec("Doubled", f"{__name__}:Doubled", {}),)
gym.register("mine/World-v2", f"{__name__}:World", max_episode_steps=4, additional_wrappers=doubled)

def make(num_envs):
    return gym.make_vec("mine/World-v2", num_envs, vectorization_mode="async")

shards = {"execute.shards": 2} if sys.argv[2] == "local" else {"execute.kind": "ray", "execute.shards": 2}
named = {"id": "mine/World-v2", "vectorization": "async", "wrappers": [{"name": f"{__name__}:Doubled"}]}
for number, env in enumerate([named, {"factory": f"{__name__}:make"}]):
    settings = SMALL
    settings["env"] = {"num_envs": 2, **env}
    settings["model"]["network"] = {"hidden_size": 4, "encoder": f"{__name__}:Net"}
    settings["run_dir"] = f"{sys.argv[1]}/{number}"
    run = train(settings, shards)
    run = resume(run.path, {"total_timesteps": 64})
    print([record.score for record in run.scores], run.summary["final_score"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["local", "ray"])
@pytest.mark.parametrize("how", ["script.py", "-"])
def test_a_script_without_a_guard_defines_everything_itself(how, kind, tmp_path):
    """From a file, or as a notebook has it, from nowhere; with asynchronous environments inside shards."""
    text = SCRIPT.replace("SMALL", repr(SMALL))
    (tmp_path / "script.py").write_text(text)
    command = [sys.executable, how, str(tmp_path / "runs"), kind]
    result = subprocess.run(command, cwd=tmp_path, input=text, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines() == ["RUN", f"{[80.0] * 4} 80.0", f"{[40.0] * 4} 40.0"]


SPAWNING = """
import sys
import gymnasium as gym, numpy as np

class World(gym.Env):
    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 5.0, False, False, {}

START = sys.argv[2]
gym.register("mine/World-v3", World, max_episode_steps=4)

def make(num_envs):
    worlds = [lambda: gym.make("mine/World-v3")] * num_envs
    return gym.vector.AsyncVectorEnv(worlds, context=START)

if __name__ == "__main__":
    from popgraft import train

    settings = SMALL
    run = train(settings, {"execute.shards": int(sys.argv[3])}, factory=make)
    print([record.score for record in run.scores], run.summary["final_score"], flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("start", ["spawn", "forkserver"])
@pytest.mark.parametrize("shards", [1, 2])
def test_processes_that_environments_spawn_find_what_the_script_defines(start, shards, tmp_path):
    """With one shard Python runs the script in them once more; with two, shards do not run it, and hand on what they have."""
    settings = {**SMALL, "run_dir": str(tmp_path / "run")}
    del settings["env"]
    (tmp_path / "script.py").write_text(SPAWNING.replace("SMALL", repr(settings)))
    command = [sys.executable, "script.py", "run", start, str(shards)]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == f"{[20.0] * 2} 20.0"
