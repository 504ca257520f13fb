"""Processes of environments that die, hang, or do not let themselves be ended."""

import os
import re
import select
import signal
import time
import types
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics
from stable_baselines3.common.vec_env import SubprocVecEnv, VecMonitor

from popgraft.config import EnvConfig
from popgraft.rollout import EnvGrid, workers

BAD_SEED = 90
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of newer Pythons, about forks beside threads


class Odd(gym.Env):
    """Its second environment does what `how` says, in its second step or at its reset, where its seed is BAD_SEED + 1."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, how: str, when: str) -> None:
        self.how, self.when, self.odd = how, when, False

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.odd, self.time = seed == BAD_SEED + 1, 0
        self.misbehave("reset")
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        self.time += 1
        if self.time == 2:
            self.misbehave("step")
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), 1.0, False, False, {}

    def misbehave(self, when: str) -> None:
        if not self.odd or self.when != when:
            return
        if self.how == "dies":
            os._exit(7)
        if self.how == "stopped":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.how == "deaf":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        time.sleep(1000)


def asynchronous(num_envs: int, how: str, when: str) -> Any:
    return AsyncVectorEnv([lambda: Odd(how, when)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def forked(num_envs: int, how: str, when: str) -> Any:
    return SubprocVecEnv([lambda: Odd(how, when)] * num_envs, start_method="fork")


def wrapped(num_envs: int, how: str, when: str) -> Any:
    return RecordEpisodeStatistics(asynchronous(num_envs, how, when))


def monitored(num_envs: int, how: str, when: str) -> Any:
    return VecMonitor(forked(num_envs, how, when))


@pytest.fixture
def grid_of(monkeypatch: pytest.MonkeyPatch):
    """Makes a grid of two members of two environments each, with a short time limit: long for what only has to answer."""
    monkeypatch.setattr(workers, "PATIENCE", 0.2)
    grids = []

    def make(factory: Callable[..., Any], how: str = "hangs", when: str = "step", limit: float | None = 2.0) -> EnvGrid:
        config = EnvConfig(factory="not:used", num_envs=2, kwargs={"how": how, "when": when}, step_timeout=limit)
        grids.append(EnvGrid(config, 2, factory=factory))
        return grids[-1]

    yield make
    for grid in grids:
        grid.close()


@pytest.mark.heavy
@pytest.mark.parametrize("factory", [asynchronous, forked, wrapped, monitored])
@pytest.mark.parametrize(
    ("how", "when"),
    [("dies", "step"), ("dies", "reset"), ("hangs", "step"), pytest.param("hangs", "reset", marks=pytest.mark.slow)],
)
def test_a_process_that_dies_or_hangs_costs_its_member_alone(
    grid_of: Callable[..., EnvGrid], factory: Callable[..., Any], how: str, when: str
) -> None:
    grid, calm = grid_of(factory, how, when), grid_of(factory)
    assert not grid.in_process
    processes = list(grid._envs[1]._workers.processes)
    began = time.monotonic()
    grid.reset([0, 1], [50, BAD_SEED])
    calm.reset([0, 1], [50, 20])
    for _ in range(4):
        found, expected = grid.step(np.zeros((2, 2, 1), np.int64)), calm.step(np.zeros((2, 2, 1), np.int64))
        np.testing.assert_array_equal(grid.observations["obs"][0], calm.observations["obs"][0])
        np.testing.assert_array_equal(found.reward[0], expected.reward[0])
    assert time.monotonic() - began < 300
    words = "has ended with exit status 7" if how == "dies" else "has not answered for 2 seconds; .*env.step_timeout"
    assert list(grid.failures) == [1]
    assert re.search(words, grid.failures[1])
    assert not found.valid[1].any()
    assert not any(process.is_alive() for process in processes)
    for each in (grid, calm):
        each.reset([1], [30])
    assert not grid.failures
    np.testing.assert_array_equal(grid.observations["obs"], calm.observations["obs"])


@pytest.mark.parametrize("how", ["deaf", pytest.param("stopped", marks=pytest.mark.slow)])
def test_a_process_that_does_not_heed_is_killed(
    grid_of: Callable[..., EnvGrid], how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 2.0)  # the other one ends by itself
    grid = grid_of(forked, how)
    processes = list(grid._envs[1]._workers.processes)
    grid.reset([0, 1], [50, BAD_SEED])
    for _ in range(2):
        grid.step(np.zeros((2, 2, 1), np.int64))
    assert list(grid.failures) == [1]
    assert [process.exitcode for process in processes] == [0, -signal.SIGKILL]


def test_without_a_limit_a_dead_process_is_noticed_all_the_same(grid_of: Callable[..., EnvGrid]) -> None:
    grid = grid_of(forked, "dies", limit=None)
    grid.reset([0, 1], [50, BAD_SEED])
    for _ in range(2):
        grid.step(np.zeros((2, 2, 1), np.int64))
    assert list(grid.failures) == [1]


def test_the_time_of_all_members_runs_at_once(grid_of: Callable[..., EnvGrid], monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []  # in vain, in milliseconds

    class Poll:
        def __init__(self) -> None:
            self._poll = select.poll()
            self.register = self._poll.register

        def poll(self, milliseconds: float) -> list[tuple[int, int]]:
            found = self._poll.poll(milliseconds)
            waits.extend([] if found else [milliseconds])
            return found

    monkeypatch.setattr(workers, "select", types.SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    monkeypatch.setattr(workers, "GRACE", 0.05)
    grid = grid_of(asynchronous)
    grid.reset([0, 1], [BAD_SEED, BAD_SEED])
    for _ in range(2):
        grid.step(np.zeros((2, 2, 1), np.int64))
    assert list(grid.failures) == [0, 1]
    assert len(waits) == 2
    assert waits[0] <= 2000
    assert waits[1] == 50


def test_sound_processes_close_their_environments(
    grid_of: Callable[..., EnvGrid], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Closing(Odd):
        def close(self) -> None:
            (tmp_path / str(os.getpid())).touch()

    monkeypatch.setattr(workers, "PATIENCE", 5.0)
    made = [lambda: Closing("", "")] * 2
    for kind, options in ((AsyncVectorEnv, {}), (SubprocVecEnv, {"start_method": "fork"})):
        grid = grid_of(lambda num_envs, how, when, kind=kind, options=options: kind(made, **options))
        grid.reset([0, 1], [1, 2])
        pids = {process.pid for env in grid._envs for process in env._workers.processes}
        grid.close()
        assert pids <= {int(file.name) for file in tmp_path.iterdir()}
