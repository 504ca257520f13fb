"""Runs that get signals at random moments, gone on with until they are finished, and compared with undisturbed ones.

Runs and their shards are forked from the process that uses this module, which has imported everything and computed
nothing, so that a run takes a second and not the five of its imports; `spawned` shards are started as ever. A forked
shard is one in every other way: in a process group of its own, with the signals' handlers of a fresh interpreter.
"""

import atexit
import contextlib
import dataclasses
import faulthandler
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from configurations import settings_of
from same import check_same

from popgraft import PopgraftError, Run, train
from popgraft.execute import process as shards
from popgraft.native import native
from popgraft.train import resume

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGKILL", "SIGSTOP")
TARGETS = ("parent", "shard", "environment", "all")
FATAL = ("SIGTERM", "SIGKILL")
"""What ends an environment's process."""
RESCUED = "member rescued"
PATIENCE = 600.0
"""Seconds after which a run that is neither finished nor ended is stuck."""
ORPHANS = 60.0
"""Seconds that processes may outlive the one that began them."""
FINISHED, FAULT, MISTAKE, INTERRUPTED = 0, 1, 2, 130
"""Exit statuses of a run: those of the command line."""


class Forked(subprocess.Popen[bytes]):
    """A shard's process, forked and not started anew."""

    def __init__(self, command: list[str], env: dict[str, str], pass_fds: tuple[int, ...], process_group: int) -> None:
        self.args, self.returncode, self._waitpid_lock = command, None, _Lock()
        self.stdin = self.stdout = self.stderr = None
        self._child_created = True
        self.pid = os.fork()
        if self.pid:
            return
        status = 1
        try:
            os.setpgid(0, process_group)
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
            low = 3
            for descriptor in sorted(pass_fds):
                os.closerange(low, descriptor)
                low = descriptor + 1
            os.closerange(low, 4096)
            atexit._clear()  # what is to be done at the end of this process is not for that one
            os.environ.clear()
            os.environ.update(env)
            exec(command[-1], {})
            status = 0
        except BaseException:
            traceback.print_exc()
            sys.stderr.flush()
        finally:
            os._exit(status)


class _Lock(contextlib.nullcontext[None]):
    """What `Popen` asks its lock for."""

    def acquire(self, blocking: bool = True) -> bool:
        return True

    def release(self) -> None:
        pass


@dataclasses.dataclass(frozen=True)
class Disturbance:
    """A signal to some processes of a run.

    Attributes:
        name: of the signal; SIGSTOP is followed by SIGCONT.
        target: the process that was started, one of those that it has started, or all of them.
        moment: seconds after the start.
        pause: seconds from SIGSTOP to SIGCONT.
        pick: which of several, between 0 and 1.
    """

    name: str
    target: str
    moment: float
    pause: float
    pick: float


def processes(session: int) -> dict[int, int]:
    """Living processes of a session, and the process group of each."""
    found = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                state, _, group, of = Path(entry.path, "stat").read_text().rpartition(")")[2].split()[:4]
                if int(of) == session and state != "Z":
                    found[int(entry.name)] = int(group)
    return found


def begun(settings: dict[str, Any], output: Path, spawned: bool) -> int:
    """A process that trains a run or goes on with it, the leader of a session of its own."""
    native()  # once, and not in every run
    pid = os.fork()
    if pid:
        return pid
    status = FAULT
    try:
        os.setsid()
        with output.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        if not spawned:
            shards.subprocess = types.SimpleNamespace(Popen=Forked, TimeoutExpired=subprocess.TimeoutExpired)
        torch.set_num_threads(1)
        try:
            path = Path(settings["run_dir"])
            run = resume(path) if (path / "config.yaml").is_file() else train(settings)
            status = FINISHED if run.is_finished else INTERRUPTED
        except KeyboardInterrupt:
            status = INTERRUPTED
        except PopgraftError as error:
            print(f"{type(error).__name__}: {error}", flush=True)
            status = MISTAKE
        except BaseException:
            traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


class Stuck(Exception):
    """A run that does not end, or a process that outlives it."""


def ended(pid: int, output: Path, limit: float) -> int | None:
    """Exit status of a run, None while it is at work after `limit` seconds."""
    deadline = time.monotonic() + limit
    while time.monotonic() < deadline:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    return None


def check_alone(session: int) -> None:
    """Raises `Stuck` where processes of a run that has ended live on."""
    deadline = time.monotonic() + ORPHANS
    while left := processes(session):
        if time.monotonic() > deadline:
            names = [Path(f"/proc/{pid}/stat").read_text()[:60] for pid in left]
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            raise Stuck(f"orphans: {names}")
        time.sleep(0.02)


def strike(pid: int, disturbance: Disturbance) -> str:
    """Sends the signal; says to whom, nobody where there are no such processes."""
    groups = processes(pid)
    of_kind = {
        "parent": [pid],
        "shard": [each for each, group in groups.items() if each == group != pid],
        "environment": [each for each, group in groups.items() if each != group],
        "all": list(groups),
    }
    struck = of_kind[disturbance.target]
    if disturbance.target == "all":
        random.Random(disturbance.pick).shuffle(struck)
    else:
        struck = struck[int(disturbance.pick * len(struck)) :][:1]
    numbers = [getattr(signal, disturbance.name)]
    if disturbance.name == "SIGSTOP":
        numbers.append(signal.SIGCONT)
    for number in numbers:
        for each in struck:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, number)
        if number == signal.SIGSTOP:
            time.sleep(disturbance.pause)
    return disturbance.target if struck else "nobody"


def disturbed(
    settings: dict[str, Any], disturbances: Iterator[Disturbance], output: Path, spawned: bool
) -> Iterator[tuple[Disturbance, str, str]]:
    """Trains a run to its end under disturbances, one for every start, and then without.

    Yields:
        Every signal that was sent, to whom, and what became of the process.

    Raises:
        Stuck: a run does not end, or leaves processes behind.
        AssertionError: it ended as it should not.
    """
    path = Path(settings["run_dir"])
    while True:
        disturbance = next(disturbances, None)
        if not (path / "config.yaml").is_file():
            shutil.rmtree(path, ignore_errors=True)  # there was no run yet
        pid = begun(settings, output, spawned)
        status = ended(pid, output, PATIENCE if disturbance is None else disturbance.moment)
        struck = "nobody"
        if status is None and disturbance is not None:
            struck = strike(pid, disturbance)
            status = ended(pid, output, PATIENCE)
        if status is None:
            os.kill(pid, signal.SIGUSR1)
            time.sleep(0.5)
            for each in processes(pid):
                os.kill(each, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise Stuck(f"stuck after {disturbance}: {output.read_text()}")
        check_alone(pid)
        expected = {FINISHED}
        if struck != "nobody" and disturbance is not None:
            expected |= expected_of(disturbance)
        assert status in expected, f"{status} after {disturbance}: {output.read_text()}"
        if disturbance is not None and struck != "nobody":
            yield disturbance, struck, outcome_of(status)
        if (path / "config.yaml").is_file() and Run(path).is_finished:  # perhaps struck in its very last moment
            return


def expected_of(disturbance: Disturbance) -> set[int]:
    """Exit statuses after a signal, besides that of a finished run."""
    if disturbance.name == "SIGSTOP":
        return set()
    if disturbance.target == "environment":  # one that is being made is missed at once
        return {MISTAKE} if disturbance.name in FATAL else set()
    if disturbance.target == "shard":
        return {MISTAKE} if disturbance.name == "SIGKILL" else set()
    if disturbance.name == "SIGKILL":
        return {-signal.SIGKILL}
    # Before a handler is there, a signal ends a process as it ends any other.
    return {INTERRUPTED, -getattr(signal, disturbance.name)}


def outcome_of(status: int) -> str:
    return {FINISHED: "finished", MISTAKE: "ended with an error", INTERRUPTED: "stopped"}.get(status, "killed")


@dataclasses.dataclass
class Straight:
    """Undisturbed runs of every configuration, each made when it is first needed.

    Args:
        folder: where they lie.
    """

    folder: Path
    known: dict[str, tuple[Run, float]] = dataclasses.field(default_factory=dict)

    def __call__(self, name: str) -> tuple[Run, float]:
        """The run, and the seconds that it took."""
        if name not in self.known:
            path, began = self.folder / str(len(self.known)), time.monotonic()
            output = self.folder / f"{len(self.known)}.txt"
            pid = begun(settings_of(name, str(path)), output, spawned=False)
            status = ended(pid, output, PATIENCE)
            assert status == FINISHED, (status, output.read_text())
            self.known[name] = Run(path), time.monotonic() - began
        return self.known[name]


def drawn(draw: random.Random, seconds: float, settings: dict[str, Any]) -> Iterator[Disturbance]:
    """Disturbances of one run: up to three, more than half of them of workers where there are any."""
    workers = ["shard"] if settings["execute"]["shards"] > 1 else []
    workers += ["environment"] if settings["env"].get("vectorization") == "async" else []
    for _ in range(draw.randint(1, 3)):
        target = draw.choice(workers if workers and draw.random() < 0.65 else ["parent", "all"])
        yield Disturbance(
            draw.choice(SIGNALS), target, draw.uniform(0, 1.1) * seconds, draw.uniform(0.05, 0.5), draw.random()
        )


def check(
    name: str,
    seed: int,
    straight: Callable[[str], tuple[Run, float]],
    folder: Path,
    spawned: bool = False,
) -> list[tuple[Disturbance, str, str]]:
    """Trains one run under the signals that a seed names, and compares it with the undisturbed one.

    Raises:
        Stuck: it does not end, or leaves processes behind.
        AssertionError: it ended as it should not, or is another run than the undisturbed one.
    """
    expected, seconds = straight(name)
    draw = random.Random(f"{name} {seed}")
    path, output = folder / "run", folder / "output.txt"
    shutil.rmtree(path, ignore_errors=True)
    output.unlink(missing_ok=True)
    settings = settings_of(name, str(path))
    done = list(disturbed(settings, drawn(draw, seconds, settings), output, spawned))
    run = Run(path)
    if any(event.kind == "environment" for event in run.events):  # its member was replaced, in no other run
        lost = [disturbance.name in FATAL and struck == "environment" for disturbance, struck, _ in done]
        assert any(lost), run.events
        assert run.is_finished
        return [(*each[:2], RESCUED if here else each[2]) for each, here in zip(done, lost, strict=True)]
    check_same(run, expected)
    return done
