"""Shards in processes of their own: the same results, one stop for all, and no member lost with a process."""

import logging
import os
import signal
import subprocess
import sys
import time

import gymnasium as gym
import numpy as np
import pytest
import torch

from popgraft import tree
from popgraft.errors import ConfigError, EnvironmentFault, ShardLost
from popgraft.execute import InlineExecutor, ProcessExecutor
from popgraft.rng import derive
from popgraft.state import Decision

pytestmark = pytest.mark.heavy


def never():
    return False


@pytest.fixture
def execute(configured, initial):
    """Makes an executor of two processes, or the same shards in this one."""
    executors = []

    def make(kind=ProcessExecutor, *overrides, env="CartPole", pop=3, factory=None):
        config = configured(env, *overrides, pop=pop)
        executors.append(kind(config, initial(config), factory, shards=2))
        return executors[-1]

    yield make
    for executor in executors:
        executor.close()


def everyone(executor, pop=3):
    return tree.map(torch.clone, executor.export(torch.arange(pop)))


def check_same(found, expected):
    for (path, leaf), (_, other) in zip(tree.items(found), tree.items(expected), strict=True):
        torch.testing.assert_close(leaf, other, atol=0, rtol=0, equal_nan=True, msg=lambda text, p=path: f"{p}: {text}")


@pytest.mark.parametrize("env", ["CartPole", pytest.param("Pendulum", marks=pytest.mark.slow)])
def test_processes_make_no_difference(env, execute):
    """The same shards, in this process or in two others: equal to the bit, also after grafts across the border."""
    executors = [execute(kind, env=env) for kind in (InlineExecutor, ProcessExecutor)]
    parents = torch.tensor([2, 1, 1])
    for generation in (1, 2):
        inline, process = (executor.advance(2, never) for executor in executors)
        for name, values in inline.metrics.items():
            assert torch.equal(values.nan_to_num(), process.metrics[name].nan_to_num()), name
        assert inline.steps == process.steps
        assert torch.equal(inline.scores.mean.nan_to_num(), process.scores.mean.nan_to_num())
        check_same(everyone(executors[1]), everyone(executors[0]))
        hyperparams = {name: values[parents] for name, values in everyone(executors[0]).hyperparams.items()}
        hyperparams["clip_range"] = torch.tensor([0.1, 0.2, 0.3])
        for executor in executors:
            executor.graft(Decision(parents, hyperparams, {0: "truncation", 2: "truncation"}), generation)
        check_same(everyone(executors[1]), everyone(executors[0]))
        scores = [executor.evaluate(8).mean for executor in executors]
        assert torch.equal(*scores)
    exported = executors[1].export(torch.tensor([2, 0, 2]))
    assert torch.equal(exported.params, everyone(executors[0]).params[[2, 0, 2]])


@pytest.mark.parametrize("after", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(4, marks=pytest.mark.slow)])
def test_all_shards_stop_at_the_same_update(after, execute):
    executor, asked = execute(pop=3), []

    def stop():
        asked.append(True)
        return len(asked) == after

    advance = executor.advance(4, stop)
    updates = next(iter(advance.metrics.values())).shape[1]
    assert after <= updates <= 4
    assert len({leaf.shape for leaf in advance.metrics.values()}) == 1
    assert everyone(executor).age.tolist() == [updates] * 3
    assert executor.advance(1, never).steps > 0  # nobody is left waiting
    assert everyone(executor).age.tolist() == [updates + 1] * 3


def test_a_process_that_dies_is_named_and_the_others_members_are_whole(execute):
    executor = execute()
    executor.advance(1, never)
    os.kill(executor.shards[1]._process.pid, signal.SIGKILL)
    with pytest.raises(ShardLost, match="the process of member 2 was killed by SIGKILL; if the machine"):
        executor.advance(3, never)
    member = everyone(executor)
    assert member.age.tolist() == [4, 4, 1]
    assert tree.finite({"params": member.params}).all()


@pytest.mark.slow
def test_what_cannot_be_built_is_said_as_in_this_process(execute):
    with pytest.raises(ConfigError, match="NoSuchEnv") as found:
        execute(ProcessExecutor, "env.id=NoSuchEnv-v0")
    assert not hasattr(found.value, "__notes__")
    with pytest.raises(ConfigError, match="needs images"):
        execute(ProcessExecutor, "model.network.encoder=cnn")


@pytest.mark.slow
def test_a_factory_that_only_this_process_knows(execute):
    """Written in a script, it cannot be imported elsewhere; it travels by value, and its log records come back."""

    def factory(num_envs, poles=("CartPole-v1",)):
        import logging

        import gymnasium as gym

        logging.getLogger("poles").warning("making %d", num_envs)
        return gym.make_vec(poles[0], num_envs)

    records = []
    handler = logging.Handler()
    handler.emit = records.append
    logging.getLogger("poles").addHandler(handler)
    try:
        executor = execute(ProcessExecutor, "env.id=null", "env.factory=not:used", factory=factory)
        assert executor.advance(1, never).steps == 3 * 16 * 4
    finally:
        logging.getLogger("poles").removeHandler(handler)
    assert [record.getMessage() for record in records] == ["making 4"] * 3


def test_an_error_in_a_process_says_where(execute):
    def factory(num_envs):
        raise ZeroDivisionError("no poles")

    with pytest.raises(EnvironmentFault, match="no poles"):
        execute(ProcessExecutor, "env.id=null", "env.factory=not:used", factory=factory)


def test_no_process_outlives_its_executor(execute, monkeypatch):
    monkeypatch.setattr("popgraft.execute.process.PATIENCE", 120.0)
    executor = execute()
    processes = [shard._process for shard in executor.shards]
    assert [process.poll() for process in processes] == [None, None]
    executor.close()
    assert [process.poll() for process in processes] == [0, 0], "they left by themselves"


SCRIPT = """
import sys
from pathlib import Path
from popgraft.config import load_config
from popgraft.execute import ProcessExecutor
from popgraft.pbt import Evolution
config = load_config({"env": {"id": "CartPole-v1", "vectorization": "async"}, "pbt": {"population_size": 2}})
executor = ProcessExecutor(config, Evolution(config.pbt, 0).initial_hyperparams(config.model.hyperparams()), None, 2)
shards = [shard._process.pid for shard in executor.shards]
stats = [path.read_text().rpartition(")")[2].split() + [path.parent.name] for path in Path("/proc").glob("[0-9]*/stat")]
environments = [stat[-1] for stat in stats if int(stat[1]) in shards]
print(*shards, *environments, flush=True)
executor.advance(100000, lambda: False)
"""


@pytest.mark.slow
def test_no_process_outlives_a_killed_program():
    program = subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, text=True)
    pids = [int(pid) for pid in program.stdout.readline().split()]
    program.kill()
    program.wait()
    program.stdout.close()
    deadline = time.monotonic() + 60
    while any(os.path.exists(f"/proc/{pid}") for pid in pids) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(pids) == 2 + 2 * 8
    assert not any(os.path.exists(f"/proc/{pid}") for pid in pids)


@pytest.mark.parametrize("kind", [InlineExecutor, pytest.param(ProcessExecutor, marks=pytest.mark.slow)])
def test_after_a_restart_all_depends_on_the_members_alone(kind, execute):
    """Members that are written into other executors go on there as they do where they come from."""
    first, second = execute(kind), execute(InlineExecutor)
    first.advance(2, never)
    second.evaluate(3)
    second.restore(everyone(first))
    check_same(everyone(second), everyone(first))
    found = []
    for executor in (first, second):
        executor.restart(7)
        found.append(executor.advance(2, never))
    for name, values in found[0].metrics.items():
        assert torch.equal(values.nan_to_num(), found[1].metrics[name].nan_to_num()), name
    check_same(everyone(second), everyone(first))
    first.restart(8)
    first.restore(everyone(second))
    second.restart(9)
    assert not torch.equal(first.advance(1, never).scores.mean, second.advance(1, never).scores.mean)


@pytest.mark.slow
def test_what_ends_a_whole_job_leaves_the_processes_to_their_executor(execute, monkeypatch):
    original = subprocess.Popen

    def popen(*arguments, **options):  # signals from the very beginning
        process = original(*arguments, **options)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(process.pid, number)
        return process

    monkeypatch.setattr(subprocess, "Popen", popen)
    executor = execute()
    monkeypatch.undo()
    for shard in executor.shards:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(shard._process.pid, number)
    assert executor.advance(1, never).steps == 3 * 16 * 4
    asynchronous = execute(ProcessExecutor, "env.vectorization=async")
    monkeypatch.setattr("popgraft.execute.process.PATIENCE", 120.0)
    asynchronous.close()
    assert [shard._process.poll() for shard in asynchronous.shards] == [0, 0], "environments can still be terminated"


class Sleeper(gym.Env):
    """Never comes back from its third step where its seed is that of a certain member."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (2,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.seed, self.time = (seed if seed is not None else 0), 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.time == 3 and self.seed == self.bad:
            time.sleep(1000)
        return np.zeros(2, np.float32), 1.0, False, False, {}


def test_an_environment_that_hangs_in_a_shard_ends_the_run_with_its_name(execute, configured):
    seed = derive(configured().seed, "environment", 0, 2)

    def factory(num_envs, **_):
        class Bad(Sleeper):
            bad = seed

        return gym.vector.SyncVectorEnv([Bad] * num_envs)

    executor = execute(
        ProcessExecutor, "env.step_timeout=3", "env.id=null", "env.factory=a:b", "env.wrappers=[]", factory=factory
    )
    began = time.monotonic()
    with pytest.raises(
        EnvironmentFault, match=r"of member 2 has not come back .* for 3 seconds; .*vectorization: async"
    ):
        executor.advance(1, never)
    assert time.monotonic() - began < 300


class Crashing(gym.Env):
    """Ends its process in its third step, or where it is made or begun."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, when, how):
        self.when, self.how, self.time = when, how, 0
        self.crash("made")

    def crash(self, moment):
        if moment == self.when:
            os._exit(7) if self.how == "exit" else os.kill(os.getpid(), signal.SIGSEGV)

    def reset(self, *, seed=None, options=None):
        self.crash("begun")
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.time += 1
        if self.time == 3:
            self.crash("step")
        return np.zeros(4, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize(
    ("when", "how", "words"),
    [
        ("step", "crash", "crashed with SIGSEGV while the environments of member 1 were at work, in compiled code"),
        ("step", "exit", "ended with exit status 7 while the environments of member 1 were at work: something"),
        pytest.param("begun", "exit", "7 while the environments of member 1 were at work", marks=pytest.mark.slow),
        pytest.param("made", "exit", "7 while the environments of member 1 were at work", marks=pytest.mark.slow),
    ],
)
def test_whoever_ends_the_process_is_named(execute, when, how, words, capfd):
    def factory(num_envs):
        made.append(when if len(made) == 1 else "never")  # counted in each process: members 1 and none
        return gym.vector.SyncVectorEnv([lambda: Crashing(made[-1], how)] * num_envs)

    made = []
    with pytest.raises(ShardLost, match=f"the process of members 0-1 {words}"):
        execute(ProcessExecutor, "env.id=null", "env.factory=not:used", factory=factory).advance(1, never)
    capfd.readouterr()  # faulthandler's traceback


def test_who_has_ended_is_not_blamed(execute):
    executor = execute()
    executor.advance(1, never)
    os.kill(executor.shards[0]._process.pid, signal.SIGSEGV)
    with pytest.raises(ShardLost, match="the process of members 0-1 crashed with SIGSEGV, in compiled code"):
        executor.advance(1, never)
