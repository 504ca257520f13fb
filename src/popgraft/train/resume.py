"""Goes on with a run that has ended before its time, as if it had never ended."""

import contextlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from popgraft.config import Config, dump_config, flat_config, load_config, read_yaml
from popgraft.disk import write_atomic
from popgraft.errors import ConfigError
from popgraft.store import RunDatabase, RunFolder, SessionRecord
from popgraft.store.lock import locked
from popgraft.store.salvage import salvage
from popgraft.train.assemble import assemble
from popgraft.train.interrupt import signals_first, stop_on_signal
from popgraft.train.loop import Training
from popgraft.train.observer import Observer
from popgraft.train.place import Place
from popgraft.train.plausible import members_of
from popgraft.train.points import newest_point
from popgraft.train.run import Run
from popgraft.train.start import from_python
from popgraft.train.versions import versions


def resume(
    path: str | Path,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    observer: Observer | None = None,
    factory: Callable[..., Any] | None = None,
) -> Run:
    """Goes on with a run from its newest snapshot, with the results of one that was never interrupted.

    Whatever the run had done after that snapshot is done again. A run that was finished can be given more to do with
    `overrides`, such as {"total_timesteps": 2_000_000}.

    Args:
        path: the run folder.
        overrides: settings that change from now on, as for `train`; the run's database records them.
        observer: is told of progress.
        factory: makes a member's environments, for a run that was given one in Python.

    Raises:
        StoreError: there is no run at `path`, or what it has left cannot be read.
        RunExists: another process is training it.
        ConfigError: a setting that cannot work, or one that has been changed in the folder without being named here; or
            nothing is left to do.
        EnvironmentFault: the environments cannot be made.
        PopulationLost: every member has failed; what was reached before is kept.
        OutOfMemory: memory does not suffice.
    """
    observer = observer or Observer()
    place = Place.of(path)
    with place.held(), stop_on_signal(observer) as stop, contextlib.ExitStack() as stack:
        folder = RunFolder.open(place.folder.path)
        stack.enter_context(locked(folder))
        replaced = salvage(folder)
        database = stack.enter_context(RunDatabase(folder.database))
        latest = _latest_session(folder, database)
        settings = _settings(folder, latest, from_python(overrides, factory))
        damages: list[str] = []
        point = newest_point(folder, damages.append)
        members = members_of(point[1] if point else {}, settings.pbt.population_size)
        training = assemble(settings, place, lambda: database, observer, factory, stop, stack, members)
        executor, state, points, announcer = training.executor, training.state, training.points, training.announcer
        if point is not None:
            executor.restore(points.load(point, executor.export(torch.tensor(members[:1]))))
            _check_in_step(training)
        if training.is_over and training.run.is_finished:
            raise ConfigError(f"{folder.path} is finished; to go on, {_more(training)}")
        if stop.is_set():
            raise KeyboardInterrupt
        write_atomic(folder.config, dump_config(settings).encode())
        database.record_session(dump_config(settings), versions())
        for damage in damages:
            announcer.warn(damage)
            announcer.event("damaged", damage, state.generation)
        for kind, text in _news(training, latest):
            announcer.event(kind, text, state.generation)
        lost = points.rewind(point)
        for text in [*([replaced] if replaced else []), *lost]:  # which the database says already
            announcer.damage(text)
        with signals_first(stop):
            executor.restart(state.generation)
        with place.used():
            training.train()
    return training.run


def _latest_session(folder: RunFolder, database: RunDatabase) -> SessionRecord:
    """The latest session that the database knows; of one that was lost, config.yaml tells the settings."""
    sessions = database.sessions()
    if sessions:
        return sessions[-1]
    return SessionRecord(0.0, 0, "", dump_config(load_config(folder.config)), versions())


def _settings(folder: RunFolder, latest: SessionRecord, overrides: Mapping[str, Any] | Iterable[str]) -> Config:
    """The settings that the run had, with those that are changed by name.

    Raises:
        ConfigError: config.yaml says otherwise.
    """
    if not isinstance(overrides, Mapping):
        overrides = list(overrides)
    before = read_yaml(latest.config, f"the configuration in {folder.database}")
    there = load_config(folder.config)
    if not isinstance(before, dict):
        raise ConfigError(
            f"the configuration in {folder.database} must hold settings as `key: value`, not a "
            f"{type(before).__name__}; put the database of the run back"
        )
    before.setdefault("code_dir", str(there.code_dir))  # which runs of earlier versions do not know
    settings = load_config(before, overrides)
    old, wanted, found = (flat_config(config) for config in (load_config(before), settings, there))
    if wanted["run_dir"] != old["run_dir"]:
        raise ConfigError("run_dir cannot be changed: the run is where its folder is; move the folder instead")
    silent = {key for key in _changed(old, found) if found.get(key) != wanted.get(key)} - {"run_dir"}
    if silent:
        named = " ".join(f"--set '{key}={json.dumps(found.get(key))}'" for key in sorted(silent))
        raise ConfigError(
            f"{folder.config} has been changed since the run was started; undo that, or name what changes: {named}"
        )
    return settings


def _check_in_step(training: Training) -> None:
    """Raises ConfigError where the run cannot go on as `execute.mode` says."""
    low, high = training.state.rounds[training.state.members].aminmax()
    if training.config.execute.mode == "lockstep" and low < high:
        raise ConfigError(
            f"execute.mode='lockstep' cannot go on from here: some members have trained for {int(low)} generations, "
            f"others for {int(high)}; leave execute.mode: async"
        )


def _news(training: Training, latest: SessionRecord) -> Iterator[tuple[str, str]]:
    """What is to be recorded of a run that goes on: kind and text of events."""
    pairs = [
        (flat_config(load_config(read_yaml(latest.config, "the configuration"))), flat_config(training.config)),
        (latest.versions, versions()),
    ]
    for old, new in pairs:
        for key in _changed(old, new):
            yield "changed", f"{key}: {json.dumps(old.get(key))} → {json.dumps(new.get(key))}"
    state = training.state
    whole = training.config.planned_generations(state.begun, state.steps, len(state.members))
    where = "the last evaluation" if training.is_over else f"generation {state.generation + 1} of {whole}"
    yield "resumed", f"going on with {where}"


def _more(training: Training) -> str:
    """How a finished run is given more to do."""
    config = training.config
    if not training.has_taken_its_steps:
        return f"set another stop_at_score than {config.stop_at_score}, for example --set stop_at_score=null"
    one = len(training.state.members) * config.steps_of_a_member
    more = max(2 * config.total_timesteps, training.state.steps + one)
    return f"raise total_timesteps, for example --set total_timesteps={more}"


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Keys whose values differ."""
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]
