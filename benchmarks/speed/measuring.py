"""Clock, processor time and memory of a program and its processes; the environment of the reference work.

Peers run with libraries of their own, so this file needs Gymnasium, NumPy and psutil only. Memory needs Linux.
"""

import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import psutil

N_ENVS, N_STEPS, N_EPOCHS, N_MINIBATCHES, WIDTH = 16, 128, 4, 4, 64
"""Of the reference work: environments and steps of an agent's rollout; epochs; minibatches; units of either layer."""

Update = Callable[[], int]
"""Collects a rollout, learns from it, and returns the environment steps taken."""


class Positions(gym.ObservationWrapper):  # type: ignore[type-arg]
    """CartPole without velocities: its components 1 and 3 are left out."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        box = env.observation_space
        self.observation_space = gym.spaces.Box(box.low[::2], box.high[::2], dtype=np.float32)

    def observation(self, observation: np.ndarray) -> np.ndarray:
        """Positions of cart and pole."""
        return observation[::2]


def cartpole() -> gym.Env[Any, Any]:
    """CartPole-v1 without velocities."""
    return Positions(gym.make("CartPole-v1"))


def timed(updates: Sequence[Update], seconds: float) -> tuple[int, float]:
    """Environment steps and seconds of whole updates, taken in turn, for at least `seconds`."""
    steps, start = 0, time.perf_counter()
    while not steps or time.perf_counter() - start < seconds:
        steps += sum(update() for update in updates)
    return steps, time.perf_counter() - start


def by_hand(make: Callable[[int], Update], agents: int, processes: int, seconds: float) -> dict[str, float]:
    """Trains agents in turn in each of several processes, at the same time; the first update of an agent is not timed.

    Args:
        make: makes agent i; called in its process.
        agents: how many in all.
        processes: how many share them.
        seconds: time to measure for.

    Returns:
        `steps`, `seconds`, `steps_per_second` of all processes together, and the memory at the end.
    """
    context = multiprocessing.get_context("fork")  # nothing but this file has been imported: no thread is lost
    ready = context.Barrier(processes)
    pipes = [context.Pipe() for _ in range(processes)]
    children = [
        context.Process(target=_share, args=(make, range(agents)[i::processes], ready, seconds, child))
        for i, (_, child) in enumerate(pipes)
    ]
    for process in children:
        process.start()
    for _, child in pipes:
        child.close()
    results = [parent.recv() for parent, _ in pipes]
    used = memory()
    for (parent, _), process in zip(pipes, children, strict=True):
        parent.send("end")
        process.join()
    return {
        "steps": sum(steps for steps, _ in results),
        "seconds": max(elapsed for _, elapsed in results),
        "steps_per_second": sum(steps / elapsed for steps, elapsed in results),
        **used,
    }


def _share(make: Callable[[int], Update], agents: range, ready: Any, seconds: float, pipe: Connection) -> None:
    updates = [make(agent) for agent in agents]
    for update in updates:
        update()
    ready.wait()
    pipe.send(timed(updates, seconds))
    pipe.recv()


def processes() -> list[psutil.Process]:
    """This process and all that it has started."""
    own = psutil.Process()
    return [own, *own.children(recursive=True)]


def cpu_seconds() -> float:
    """Processor time of all processes so far."""
    return sum(sum(process.cpu_times()[:2]) for process in processes())


def memory() -> dict[str, float]:
    """Memory of all processes, MiB.

    `peak_mib` is the sum of their largest resident sets so far, in which memory that several processes map counts
    several times; `pss_mib` divides it among them, and is what they hold now.
    """
    peak = pss = 0
    found = processes()
    for process in found:
        folder = Path("/proc") / str(process.pid)
        peak += _kib(folder / "status", "VmHWM:")
        pss += _kib(folder / "smaps_rollup", "Pss:")
    return {"peak_mib": peak / 2**10, "pss_mib": pss / 2**10, "processes": len(found)}


def _kib(file: Path, name: str) -> int:
    """A number of a file in /proc; 0 for a process that has ended."""
    try:
        return int(file.read_text().split(name)[1].split()[0])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


def tell(result: dict[str, Any], packages: Sequence[str]) -> NoReturn:
    """Prints a result with the packages' versions, one line of JSON, and ends the program.

    At once, for some libraries take a minute to end their processes; run.py kills what is left.
    """
    told = result | {"versions": {name: version(name) for name in packages}}
    print(json.dumps(told), file=sys.__stdout__, flush=True)
    os._exit(0)
