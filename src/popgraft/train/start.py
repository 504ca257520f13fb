"""Begins a run."""

import contextlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from popgraft.config import Config, dump_config, load_config
from popgraft.store import RunDatabase, RunFolder
from popgraft.store.lock import locked
from popgraft.train.assemble import assemble
from popgraft.train.interrupt import stop_on_signal
from popgraft.train.observer import Observer
from popgraft.train.place import Place
from popgraft.train.run import Run
from popgraft.train.versions import versions


def from_python(
    overrides: Mapping[str, Any] | Iterable[str], factory: Callable[..., Any] | None
) -> Mapping[str, Any] | Iterable[str]:
    """Overrides that also say where environments come from, if that is a factory in Python."""
    if factory is None:
        return overrides
    if isinstance(overrides, Mapping):
        return {**overrides, "env.source": "python"}
    return [*([overrides] if isinstance(overrides, str) else overrides), "env.source=python"]


def train(
    config: str | Path | Mapping[str, Any] | Config,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    observer: Observer | None = None,
    factory: Callable[..., Any] | None = None,
) -> Run:
    """Trains a population and returns the run it leaves behind.

    Ctrl-C, SIGTERM or SIGHUP ends the run after the update in progress; what was reached is kept, and `resume` goes on
    with it. A second one interrupts at once.

    Args:
        config: path of a YAML file, a mapping of the same shape, or a `Config`.
        overrides: settings that win over it, as {"env.id": "Pendulum-v1"} or ["env.id=Pendulum-v1"].
        observer: is told of progress.
        factory: makes a member's environments, called as factory(num_envs=..., **env.kwargs); takes the place of the
            configured source, of which there may be none. The run's configuration says `env.source: python` then.

    Raises:
        ConfigError: a setting that cannot work.
        RunExists: the run folder is in use.
        EnvironmentFault: the environments cannot be made.
        PopulationLost: every member has failed; what was reached before is kept.
        StoreError: the run folder cannot be written.
        OutOfMemory: memory does not suffice.
    """
    settings = load_config(config, from_python(overrides, factory))
    observer, place = observer or Observer(), Place.of(settings.run_dir)
    with place.held(), stop_on_signal(observer) as stop, contextlib.ExitStack() as stack:

        def made() -> RunDatabase:
            folder = RunFolder.create(place.folder.path, dump_config(settings), versions())
            stack.enter_context(locked(folder))
            return stack.enter_context(RunDatabase(folder.database))

        training = assemble(settings, place, made, observer, factory, stop, stack)
        with place.used():
            training.train()
    return training.run
