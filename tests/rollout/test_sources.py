import sys
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from popgraft.config import EnvConfig, WrapperConfig
from popgraft.errors import ConfigError, EnvironmentFault, MissingExtra
from popgraft.rollout import EnvGrid
from popgraft.rollout.sources import maker_of

FRAME_STACK = WrapperConfig(name="gymnasium.wrappers:FrameStackObservation", kwargs={"stack_size": 2})

MODULE = """
import gymnasium as gym
from gymnasium.envs.classic_control import CartPoleEnv
from stable_baselines3.common.vec_env import DummyVecEnv

gym.register("popgraft-test/Local-v0", entry_point=CartPoleEnv)
number = 3

def vector(num_envs, length):
    return gym.make_vec("CartPole-v1", num_envs, max_episode_steps=length)

def stable_baselines(num_envs):
    return DummyVecEnv([lambda: gym.make("CartPole-v1")] * num_envs)

def broken(num_envs):
    raise OSError("no display")
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "popgraft_test_sources.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return "popgraft_test_sources"


def vector_class(config: EnvConfig) -> type:
    env = maker_of(config, 2)()
    env.close()
    return type(env._env.unwrapped)


def test_auto_prefers_the_vector_entry_point() -> None:
    from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

    assert vector_class(EnvConfig(id="CartPole-v1")) is CartPoleVectorEnv
    assert vector_class(EnvConfig(id="CartPole-v1", vectorization="vector_entry_point")) is CartPoleVectorEnv
    assert vector_class(EnvConfig(id="CartPole-v1", wrappers=[FRAME_STACK])) is SyncVectorEnv
    assert vector_class(EnvConfig(id="Pendulum-v1")) is SyncVectorEnv
    assert vector_class(EnvConfig(id="CartPole-v1", vectorization="sync")) is SyncVectorEnv
    assert vector_class(EnvConfig(id="CartPole-v1", vectorization="async")) is AsyncVectorEnv


@pytest.mark.parametrize(
    "entry_point", ["no_such_module:VectorEnv", "gymnasium.envs.phys2d.cartpole:CartPoleJaxVectorEnv"]
)
def test_auto_does_without_a_vector_entry_point_that_cannot_be_imported(
    entry_point: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "jax", None)
    spec = gym.envs.registration.EnvSpec(
        "Half-v0", entry_point="gymnasium.envs.classic_control:CartPoleEnv", vector_entry_point=entry_point
    )
    monkeypatch.setitem(gym.registry, "Half-v0", spec)
    assert vector_class(EnvConfig(id="Half-v0")) is SyncVectorEnv


def test_keyword_arguments_reach_the_environment() -> None:
    grid = EnvGrid(EnvConfig(id="Pendulum-v1", num_envs=2, kwargs={"max_episode_steps": 3}), 1)
    grid.reset([0], [0])
    assert [bool(grid.step(np.zeros((1, 2, 1), np.float32)).truncated.all()) for _ in range(3)] == [False, False, True]


def test_an_id_may_name_the_module_that_registers_it(module: str) -> None:
    grid = EnvGrid(EnvConfig(id=f"{module}:popgraft-test/Local-v0", num_envs=2), 1)
    assert grid.spaces.obs["obs"].shape == (4,)


def test_factories_by_name(module: str) -> None:
    grid = EnvGrid(EnvConfig(factory=f"{module}:vector", kwargs={"length": 3}, num_envs=2), 2)
    grid.reset([0, 1], [0, 1])
    assert [bool(grid.step(np.zeros((2, 2, 1), np.int64)).truncated.all()) for _ in range(3)] == [False, False, True]
    grid = EnvGrid(EnvConfig(factory=f"{module}:stable_baselines", num_envs=2), 2)
    grid.reset([0, 1], [0, 1])
    assert not grid.step(np.zeros((2, 2, 1), np.int64)).started.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"id": "CartPol-v1"}, r"env.id='CartPol-v1' is unknown to Gymnasium: .*; did you mean 'CartPole-v1'"),
        ({"id": "CartPole-v9"}, r"env.id='CartPole-v9' is unknown to Gymnasium: .*; did you mean 'CartPole-v"),
        ({"id": "CartPole"}, "env.id='CartPole' is unknown to Gymnasium.*did you mean 'CartPole-v"),
        ({"id": "qqqqqqqq"}, "go on from that script, or name the module, as in env.id: my_module:qqqqqqqq"),
        ({"id": "no_such_module:X-v0"}, "env.id='no_such_module:X-v0': there is no module 'no_such_module'"),
        (
            {"id": "Pendulum-v1", "vectorization": "vector_entry_point"},
            "has no vector entry point; set env.vectorization: sync",
        ),
        (
            {"id": "CartPole-v1", "vectorization": "vector_entry_point", "wrappers": [FRAME_STACK]},
            "FrameStackObservation' act inside single environments, which env.vectorization: vector_entry_point does not",
        ),
        (
            {"factory": "no_such_module:f"},
            "env.factory: there is no module 'no_such_module'",
        ),
        ({"factory": "{module}:f"}, "the module 'popgraft_test_sources' .*has no 'f'"),
        ({"factory": "{module}:number"}, "env.factory='popgraft_test_sources:number' is 3, not a function"),
        (
            {"factory": "{module}:vector", "wrappers": [FRAME_STACK]},
            "which a factory does not have; wrap in the source",
        ),
        (
            {"factory": "{module}:vector", "vectorization": "async"},
            "env.vectorization='async' has no effect on a factory",
        ),
        (
            {"factory": "builtins:dict"},
            "env.factory='builtins:dict' returned dict, which is neither a gymnasium VectorEnv",
        ),
    ],
)
def test_sources_that_are_refused(settings: dict[str, Any], message: str, module: str) -> None:
    settings = {key: value.format(module=module) if key == "factory" else value for key, value in settings.items()}
    with pytest.raises(ConfigError, match=message):
        EnvGrid(EnvConfig(**settings), 1)


def test_an_environment_that_cannot_be_made(module: str) -> None:
    with pytest.raises(
        EnvironmentFault, match=r"env.id='Pendulum-v1' with kwargs=\{'gg': 9\} cannot be made: TypeError: .*gg"
    ):
        EnvGrid(EnvConfig(id="Pendulum-v1", kwargs={"gg": 9}), 1)
    with pytest.raises(EnvironmentFault, match=r"env.factory='.*:broken' cannot be made: OSError: no display"):
        EnvGrid(EnvConfig(factory=f"{module}:broken"), 1)


def test_envpool_sources_that_are_refused() -> None:
    pytest.importorskip("envpool")
    with pytest.raises(ConfigError, match=r"env.id='CartPole-v7' is unknown to EnvPool; did you mean 'CartPole-v"):
        EnvGrid(EnvConfig(id="CartPole-v7", vectorization="envpool"), 1)
    with pytest.raises(ConfigError, match=r"which env.vectorization: envpool does not have"):
        EnvGrid(EnvConfig(id="CartPole-v1", vectorization="envpool", wrappers=[FRAME_STACK]), 1)
    with pytest.raises(
        EnvironmentFault, match=r"env.id='CartPole-v1' with kwargs=\{'speed': 2\} cannot be made: TypeError"
    ):
        EnvGrid(EnvConfig(id="CartPole-v1", vectorization="envpool", kwargs={"speed": 2}), 1)


def test_missing_extras_name_their_install_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "envpool", None)
    with pytest.raises(
        MissingExtra, match=r"envpool is needed for env.vectorization: envpool .* 'popgraft\[envpool\]'"
    ):
        EnvGrid(EnvConfig(id="CartPole-v1", vectorization="envpool"), 1)
    for name in [name for name in sys.modules if name.startswith("gymnasium.envs.mujoco")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(MissingExtra, match=r"mujoco is needed for env.id='HalfCheetah-v5' .* 'popgraft\[mujoco\]'"):
        EnvGrid(EnvConfig(id="HalfCheetah-v5"), 1)
