"""What a script has defined, in another process: named, registered, passed by value, and nothing run again."""

import subprocess
import sys
import threading

import pytest

from popgraft.config import load_config
from popgraft.errors import ConfigError
from popgraft.rollout.definitions import Definitions, check_names

WORLD = """
import gymnasium as gym
import numpy as np

class World(gym.Env):
    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, worth=1.0):
        self.worth = worth

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), self.worth, False, False, {}
"""

MODULE = WORLD + "gym.register('Module-v0', 'a_world:World', max_episode_steps=5)"

SCRIPT = f"""
print("RUN", flush=True)
{WORLD}
class Doubled(gym.RewardWrapper):
    def reward(self, reward):
        return 2 * reward

from gymnasium.envs.registration import WrapperSpec
import a_world, subprocess, sys

doubled = (WrapperSpec("Doubled", "__main__:Doubled", {{}}),)
gym.register("Class-v0", World, max_episode_steps=3, kwargs={{"worth": 3.0}})
gym.register("mine/Text-v1", "__main__:World", additional_wrappers=doubled)
gym.register("ByName-v0", "a_script:World")
gym.register("Closed-v0", lambda **kwargs: World(7.0))
gym.register("Stuck-v0", lambda stuck=sys.stdin: stuck)  # nobody asks for it, and it cannot be sent
gym.registry.pop("Module-v0")
gym.register("Module-v0", "a_world:World", max_episode_steps=9)  # later than the module's own
gym.registry.pop("CartPole-v1")
gym.register("CartPole-v1", World)

import cloudpickle
from popgraft.config import load_config
from popgraft.names import searched
from popgraft.rollout.definitions import Definitions

def make(num_envs):
    return gym.make_vec("mine/Text-v1", num_envs)

wrappers = [{{"name": "a_script:Doubled"}}]
sent = []
with searched():
    for env in ({{"id": "a_world:Module-v0"}}, {{"id": "Class-v0", "wrappers": wrappers}}, {{"factory": "__main__:make"}}):
        sent.append(Definitions.of(load_config({{"env": env}})))
    sent.append(Definitions.of(load_config({{"env": {{"source": "python"}}}}), make))
subprocess.run([sys.executable, "-c", CHILD], input=cloudpickle.dumps(sent), check=True, cwd="/")
"""

CHILD = """
import pickle, sys, warnings
warnings.simplefilter("error")
import gymnasium as gym
from popgraft.names import import_name

def steps_and_reward(env):
    env.reset(seed=0)
    steps, over = 0, False
    while not over and steps < 20:
        _, reward, _, over, _ = env.step(0)
        steps += 1
    return steps, reward

module, named, factory, passed = pickle.load(sys.stdin.buffer)
assert module.adopt() is None
assert steps_and_reward(gym.make("Module-v0")) == (9, 1.0), gym.spec("Module-v0")
import a_world
assert steps_and_reward(gym.make("Module-v0")) == (9, 1.0)
assert named.adopt() is None
assert steps_and_reward(gym.make("Class-v0")) == (3, 3.0)
assert steps_and_reward(gym.make("ByName-v0", max_episode_steps=4)) == (4, 1.0)
assert steps_and_reward(gym.make("Closed-v0", max_episode_steps=4)) == (4, 7.0)
assert steps_and_reward(gym.make("CartPole-v1", max_episode_steps=4)) == (4, 1.0)
assert "Stuck-v0" not in gym.registry
assert import_name("a_script:Doubled", "env.wrappers")(a_world.World()).reward(4) == 8
assert factory.adopt() is None
named = import_name("__main__:make", "env.factory")
for each in (named, passed.adopt()):
    envs = each(num_envs=2)
    envs.reset(seed=1)
    assert envs.step([0, 0])[1].tolist() == [2.0, 2.0]
print("CHILD", flush=True)
"""


@pytest.mark.heavy
def test_what_a_script_defines_is_there_in_another_process(tmp_path):
    """A script without a guard that registers environments in every way, and names itself in two."""
    (tmp_path / "a_world.py").write_text(MODULE)
    (tmp_path / "a_script.py").write_text(f"CHILD = {CHILD!r}\n{SCRIPT}")
    command = [sys.executable, "-W", "ignore", "a_script.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["RUN", "CHILD"]


FAR = """
import pickle, sys, warnings
warnings.simplefilter("error")
import gymnasium as gym
from popgraft.names import import_name

definitions = pickle.load(sys.stdin.buffer)
passed = definitions.adopt()
for make in (passed, import_name("a_package.envs:make", "env.factory")):
    envs = make(num_envs=2)
    envs.reset(seed=1)
    assert envs.step([0, 0])[1].tolist() == [14.0, 14.0]
env = gym.make("Module-v0")
env.reset(seed=0)
assert env.step(0)[1] == 1.0
assert import_name("a_package.envs:Sevenfold", "env.wrappers")(env).reward(2) == 14
print("FAR", sorted(name for name in definitions.sources))
"""

HOME = f"""
import os, shutil, subprocess, sys, cloudpickle
sys.path.insert(0, "/nowhere")  # the folders are found through the configuration alone
from popgraft.config import load_config
from popgraft.names import searched
from popgraft.rollout.definitions import Definitions

config = load_config("there/config.yaml")
with searched(config.code_dir):
    from a_package.envs import make
    sent = cloudpickle.dumps(Definitions.of(config, make, far=True))
    assert not Definitions.of(config, make).sources
shutil.rmtree("there")
subprocess.run([sys.executable, "-c", {FAR!r}], input=sent, check=True, cwd="/")
"""


@pytest.mark.heavy
def test_modules_beside_the_configuration_go_to_other_machines(tmp_path):
    """A package with relative imports, and a module that registers an environment; their folder is not there."""
    package = tmp_path / "there" / "a_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("SEVEN = 7.0")
    (package / "envs.py").write_text(
        "from . import SEVEN\nfrom a_world import World, gym\n"
        "class Sevenfold(gym.RewardWrapper):\n    def reward(self, reward):\n        return SEVEN * reward\n"
        "def make(num_envs):\n    return gym.vector.SyncVectorEnv([lambda: Sevenfold(World(2.0))] * num_envs)\n"
    )
    (tmp_path / "there" / "a_world.py").write_text(MODULE)
    (tmp_path / "there" / "config.yaml").write_text(
        "env: {id: 'a_world:Module-v0', wrappers: [{name: 'a_package.envs:Sevenfold'}]}"
    )
    command = [sys.executable, "-W", "ignore", "-c", HOME]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "FAR ['a_package', 'a_package.envs', 'a_world']\n"


@pytest.mark.parametrize(
    ("setting", "value", "words"),
    [
        ("env.factory", "no_such:make", "env.factory: there is no module 'no_such'"),
        ("env.id", "no_such:Id-v0", "env.id='no_such:Id-v0': there is no module 'no_such'"),
        ("env.id", "NoSuch-v0", "is unknown to Gymnasium.*go on from that script.*env.id: my_module:NoSuch-v0"),
        ("env.wrappers", [{"name": "no_such:Wrap"}], "env.wrappers: there is no module 'no_such'"),
        ("model.network.encoder", "no_such:Net", "model.network.encoder: there is no module 'no_such'"),
    ],
)
def test_a_name_that_is_not_there_is_refused(setting, value, words):
    source = {setting: value} if setting in ("env.factory", "env.id") else {setting: value, "env.id": "CartPole-v1"}
    with pytest.raises(ConfigError, match=words):
        check_names(load_config({}, source))
    tensor = {"env.source": "tensor", "env.id": "no_such:Env"}
    with pytest.raises(ConfigError, match=r"env.id: there is no module 'no_such'"):
        check_names(load_config({}, tensor))


def test_what_cannot_be_sent_is_refused_in_words():
    lock = threading.Lock()
    with pytest.raises(ConfigError, match=r"the factory .* cannot go .*move it into a module.*execute.shards: 1"):
        Definitions.of(load_config({"env": {"source": "python"}}), lambda num_envs: lock)
