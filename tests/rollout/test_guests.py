"""Environments that exit, hang while they close, or change what training shares with them."""

import os
import signal
import threading
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from popgraft.config import EnvConfig
from popgraft.errors import EnvironmentFault
from popgraft.rollout.grid import EnvGrid
from popgraft.rollout.guests import IN_STEPS, Shared


class World(gym.Env):
    """Does something when its time has come: `at` is make, reset, step or close."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def __init__(self, at, what):
        self.at, self.what, self.bad = at, what, False
        self.do("make")

    def do(self, now):
        if self.at == now and (self.bad or now in ("make", "close")):
            self.what()

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.bad = seed == 1
        self.do("reset")
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.do("step")
        return np.zeros(2, np.float32), 1.0, False, False, {}

    def close(self):
        self.do("close")


@pytest.fixture
def grid():
    """Makes a grid of two members, of which the second gets the bad seed."""

    def make(at, what):
        def factory(num_envs):
            return SyncVectorEnv([lambda: World(at, what)] * num_envs, autoreset_mode=AutoresetMode.SAME_STEP)

        return EnvGrid(EnvConfig(id="CartPole-v1", num_envs=1), 2, factory=factory)

    return make


def leave(error):
    def what():
        raise error

    return what


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("not from the keyboard"), GeneratorExit()])
@pytest.mark.parametrize("at", ["reset", "step"])
def test_an_environment_that_exits_costs_its_member_alone(grid, at, error):
    before = signal.signal(signal.SIGINT, lambda *_: None)  # as in a run
    try:
        made = grid(at, leave(error))
        made.reset([0, 1], [0, 1])
        result = made.step(np.zeros((2, 1, 1)))
        assert made.failures == {1: f"{type(error).__name__}: {error}"}
        assert result.reward[0] == 1
        made.reset([1], [2])
        assert made.failures == {}
        assert np.isfinite(made.step(np.zeros((2, 1, 1))).reward).all()
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_is_no_failure(grid):
    made = grid("step", leave(KeyboardInterrupt()))
    made.reset([0, 1], [0, 1])
    with pytest.raises(KeyboardInterrupt):
        made.step(np.zeros((2, 1, 1)))


def test_an_environment_that_exits_while_it_is_made(grid):
    with pytest.raises(EnvironmentFault, match="cannot be made: SystemExit: 3"):
        grid("make", leave(SystemExit(3)))


def test_a_close_that_hangs_is_not_waited_for(grid, monkeypatch, caplog):
    monkeypatch.setattr("popgraft.rollout.guests.PATIENCE", 0.2)
    returns, closed = threading.Event(), []
    made = grid("close", lambda: closed.append(returns.wait(600)))
    made.close()
    assert closed == []
    returns.set()
    (text,) = caplog.messages
    assert "the environments of 2 members have not closed within 0.2 seconds" in text


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: torch.set_default_dtype(torch.float64), "PyTorch's default dtype to torch.float64"),
        (lambda: torch.set_grad_enabled(False), "PyTorch's gradient mode to False"),
        (lambda: torch.set_num_threads(3), "PyTorch's number of threads to 3"),
        (lambda: np.seterr(all="raise"), "NumPy's treatment of floating-point errors to"),
        (lambda: torch.set_default_device("meta"), "PyTorch's default device to meta"),
        (lambda: os.chdir("/"), "the working folder to /"),
        (lambda: signal.signal(signal.SIGTERM, signal.SIG_IGN), "the handler of SIGTERM to"),
        (lambda: warnings.simplefilter("error", ResourceWarning), "the warnings that are errors to"),
    ],
    ids=["dtype", "gradients", "threads", "numpy", "device", "folder", "handler", "warnings"],
)
@pytest.mark.parametrize("at", ["make", "reset", "step"])
def test_what_training_shares_is_set_back_and_named(grid, at, what, said, caplog):
    if at == "step" and not any(name in said for name in IN_STEPS):
        pytest.skip("looked at when environments are made and reset")
    outer = Shared()
    try:
        made = grid(at, what)
        made.reset([0, 1], [0, 1])
        made.step(np.zeros((2, 1, 1)))
        made.step(np.zeros((2, 1, 1)))
    finally:
        left = outer.restore()
    assert left == []
    (text,) = caplog.messages
    assert f"the factory has set {said}" in text
