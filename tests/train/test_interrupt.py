"""A signal to a whole job that other processes of a run get first: what it does to them is not told as a fault."""

import functools
import os
import signal
import threading
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv

from popgraft import Observer, Run, resume, train

Tiny = Callable[..., dict[str, Any]]
HERE = os.getpid()


class World(gym.Env):
    """May be ended by a signal while it is made, and fail at its fifth step."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, is_struck: bool = False, is_lost: bool = False) -> None:
        self.is_lost, self.steps = is_lost, 0
        if is_struck and os.getpid() != HERE:
            os.kill(os.getpid(), signal.SIGTERM)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        if self.is_lost and self.steps == 5:
            raise ConnectionResetError("the process is gone")
        return np.zeros(2, np.float32), 1.0, self.steps % 6 == 0, False, {}


def worlds(num_envs: int, **options: bool) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: World(**options)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)


def soon(kind: signal.Signals = signal.SIGTERM) -> None:
    """Sends this process the signal that others have already got."""
    threading.Timer(0.02, os.kill, (HERE, kind)).start()


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_training_nothing_is_left(tiny: Tiny, tmp_path, kind):
    def make(num_envs: int) -> Any:
        soon(kind)
        raise ConnectionResetError("the process is gone")

    with pytest.raises(KeyboardInterrupt):
        train(tiny(env__kwargs={}), factory=make)
    assert list(tmp_path.iterdir()) == []


def test_processes_that_are_being_made_are_ended(tiny: Tiny, tmp_path):
    def make(num_envs: int) -> AsyncVectorEnv:
        soon()
        return AsyncVectorEnv([lambda: World(is_struck=True)] * num_envs)

    with pytest.raises(KeyboardInterrupt):
        train(tiny(env__kwargs={}), factory=make)
    assert list(tmp_path.iterdir()) == []


def test_a_population_that_is_lost_to_it_can_go_on(tiny: Tiny):
    class Listener(Observer):
        told = 0

        def on_event(self, name: str, text: str) -> None:
            if name == "environment":
                self.told += 1
                if self.told == 2:  # the population
                    soon()

    settings = tiny(env__kwargs={}, pbt__fitness="training")
    with pytest.raises(KeyboardInterrupt):
        train(settings, observer=Listener(), factory=functools.partial(worlds, is_lost=True))
    assert Run(settings["run_dir"]).state == "stopped"


def test_the_last_evaluation_is_made_good(tiny: Tiny):
    def make(num_envs: int) -> SyncVectorEnv:
        if num_envs == 4:
            soon()
            raise ConnectionResetError("the process is gone")
        return worlds(num_envs)

    settings = tiny(env__kwargs={}, pbt__fitness="training", total_timesteps=64, snapshots={"interval": 1})
    with pytest.raises(KeyboardInterrupt):
        train(settings, factory=make)
    run = Run(settings["run_dir"])
    assert run.state == "stopped"
    assert "final_score" in resume(run.path, factory=worlds).summary
    assert "environment" not in {event.kind for event in run.events}
