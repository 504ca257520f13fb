"""Wrappers with running statistics of their own are refused wherever they are, and named with the setting in their place."""

from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import wrappers
from gymnasium.envs.registration import WrapperSpec
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv
from gymnasium.wrappers import vector
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecMonitor, VecNormalize

from popgraft.config import EnvConfig, WrapperConfig
from popgraft.errors import ConfigError
from popgraft.rollout import EnvGrid
from popgraft.sb3 import DistributionalPPO

FIX = r"Remove it, and set model\.normalize_obs: true or model\.normalize_reward: true"
Env = gym.Env[Any, Any]
SAME_STEP = {"autoreset_mode": AutoresetMode.SAME_STEP}


def pendulum() -> Env:
    return gym.make("Pendulum-v1")


class Mine(wrappers.NormalizeObservation):
    """Somebody's subclass."""


class Baselines(gym.ObservationWrapper[Any, Any, Any]):
    """A normaliser of another origin, with the statistics of Stable-Baselines3."""

    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.seen = VecNormalize(DummyVecEnv([pendulum])).obs_rms

    def observation(self, observation: Any) -> Any:
        return observation


def frozen(env: Env) -> Env:
    env = wrappers.NormalizeObservation(env)
    env.update_running_mean = False
    return env


def made(factory: Callable[..., Any]) -> None:
    EnvGrid(EnvConfig(factory="not:used", num_envs=2), 1, factory=factory).close()


INSIDE = [wrappers.NormalizeObservation, wrappers.NormalizeReward, Mine, Baselines]


@pytest.mark.parametrize("wrapper", INSIDE)
@pytest.mark.parametrize("kind", [lambda envs: SyncVectorEnv(envs, **SAME_STEP), DummyVecEnv])
def test_inside_single_environments(kind: Callable[..., Any], wrapper: Callable[..., Env]) -> None:
    with pytest.raises(ConfigError, match=rf"wrapped in {wrapper.__name__}: running statistics .* {FIX}"):
        made(lambda num_envs: kind([lambda: wrappers.TimeAwareObservation(wrapper(pendulum()))] * num_envs))


@pytest.mark.parametrize("wrapper", [wrappers.NormalizeObservation, wrappers.NormalizeReward])
@pytest.mark.parametrize(
    "kind", [lambda envs: AsyncVectorEnv(envs, **SAME_STEP), lambda envs: SubprocVecEnv(envs, start_method="fork")]
)
def test_inside_processes(kind: Callable[..., Any], wrapper: Callable[..., Env]) -> None:
    environments = []

    def factory(num_envs: int) -> Any:
        environments.append(kind([lambda: wrapper(pendulum())] * num_envs))
        return environments[-1]

    with pytest.raises(ConfigError, match=FIX):
        made(factory)
    assert not any(process.is_alive() for process in environments[0].processes)


@pytest.mark.parametrize("wrapper", [vector.NormalizeObservation, vector.NormalizeReward])
def test_around_vector_environments(wrapper: Callable[..., Any]) -> None:
    with pytest.raises(ConfigError, match=rf"wrapped in {wrapper.__name__}: .* {FIX}"):
        made(lambda num_envs: vector.ClipReward(wrapper(SyncVectorEnv([pendulum] * num_envs)), -1, 1))


def test_around_vec_envs() -> None:
    with pytest.raises(ConfigError, match=rf"wrapped in VecNormalize: .* {FIX}"):
        made(lambda num_envs: VecMonitor(VecNormalize(DummyVecEnv([pendulum] * num_envs))))


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize("name", ["NormalizeObservation", "NormalizeReward"])
def test_by_the_configuration(vectorization: Any, name: str) -> None:
    entry = WrapperConfig(name=f"gymnasium.wrappers:{name}")
    with pytest.raises(ConfigError, match=FIX):
        EnvGrid(EnvConfig(id="Pendulum-v1", num_envs=1, vectorization=vectorization, wrappers=[entry]), 1)


def test_by_an_id() -> None:
    registered = WrapperSpec("NormalizeReward", "gymnasium.wrappers:NormalizeReward", {"gamma": 0.9, "epsilon": 1e-8})
    spec = gym.spec("Pendulum-v1")
    gym.register("popgraft-test/Scaled-v0", spec.entry_point, additional_wrappers=(registered,))
    with pytest.raises(ConfigError, match=f"NormalizeReward: .* {FIX}"):
        EnvGrid(EnvConfig(id="popgraft-test/Scaled-v0", num_envs=1), 1)


@pytest.mark.parametrize(
    "factory",
    [
        lambda num_envs: SyncVectorEnv([lambda: frozen(pendulum())] * num_envs, **SAME_STEP),
        lambda num_envs: AsyncVectorEnv([lambda: frozen(pendulum())] * num_envs, **SAME_STEP),
        lambda num_envs: SyncVectorEnv([lambda: wrappers.ClipReward(pendulum(), -1, 1)] * num_envs, **SAME_STEP),
        lambda num_envs: VecNormalize(DummyVecEnv([pendulum] * num_envs), training=False),
    ],
)
def test_what_has_no_memory_is_a_transformation_like_others(factory: Callable[..., Any]) -> None:
    grid = EnvGrid(EnvConfig(factory="not:used", num_envs=2), 1, factory=factory)
    grid.reset([0], [1])
    assert np.ptp(grid.observations["obs"], axis=1).all()  # of two environments, on seeds of their own
    grid.close()


def test_a_model_of_stable_baselines_warns(recwarn: pytest.WarningsRecorder) -> None:
    env = DummyVecEnv([lambda: wrappers.NormalizeObservation(pendulum())])
    arguments: dict[str, Any] = {
        "n_steps": 4,
        "batch_size": 4,
        "device": "cpu",
        "policy_kwargs": {"lstm_hidden_size": 4},
    }
    with pytest.warns(UserWarning, match="NormalizeObservation keeps running statistics .*; use VecNormalize, or norm"):
        DistributionalPPO("MlpLstmPolicy", env, **arguments).learn(8)
    recwarn.clear()
    DistributionalPPO("MlpLstmPolicy", VecNormalize(DummyVecEnv([pendulum])), **arguments).learn(8)
    assert not recwarn.list
    assert np.isfinite(env.envs[0].obs_rms.mean).all()
