"""Puts a run together from its settings: one that begins, and one that goes on."""

import contextlib
import threading
from collections.abc import Callable
from typing import Any

from popgraft.config import Config
from popgraft.execute import make_executor
from popgraft.names import import_name, searched
from popgraft.pbt import make_strategy
from popgraft.store import RunDatabase
from popgraft.train.announce import Announcer
from popgraft.train.contest import Contest
from popgraft.train.incumbent import Incumbent
from popgraft.train.interrupt import beginning
from popgraft.train.ledger import Ledger
from popgraft.train.loop import Training
from popgraft.train.observer import Observer, own_observers
from popgraft.train.out_of_memory import in_words
from popgraft.train.pace import InStep, OwnPace, Pace
from popgraft.train.place import Place
from popgraft.train.points import Points
from popgraft.train.recover import Alone, Recovery, Together
from popgraft.train.run import Run
from popgraft.train.run_state import RunState
from popgraft.train.tensorboard import TensorBoard
from popgraft.train.trackers import make_trackers


def assemble(
    config: Config,
    place: Place,
    open_database: Callable[[], RunDatabase],
    observer: Observer,
    factory: Callable[..., Any] | None,
    stop: threading.Event,
    stack: contextlib.ExitStack,
    members: list[int] | None = None,
) -> Training:
    """Makes all parts of a run.

    Args:
        config: every setting.
        place: of the run's folder.
        open_database: from the folder, which may be made only then: a setting that cannot work leaves nothing behind.
        observer: is told of progress.
        factory: makes the environments, in place of the configured source.
        stop: whether to stop.
        stack: closes what is to be closed.
        members: those that train; None: everybody.
    """
    stack.enter_context(searched(config.code_dir))
    strategy = make_strategy(config)
    for section in config.report.sections:  # which the command that trains will ask for at the end
        import_name(section, "report.sections")
    watching = [*make_trackers(config.tracking), *own_observers(config), observer]
    state = RunState(strategy.initial_hyperparams(config.model.hyperparams()))
    with beginning(stop), in_words(config):
        made = make_executor(config, state.hyperparams, factory, members)
        executor = stack.enter_context(contextlib.closing(made))
    database = open_database()
    run, board = Run.at(place, factory), TensorBoard(place.folder.tensorboard)
    announcer = Announcer(place, database, [board, *watching])
    points = Points(config, place.folder, state, strategy, database, board)
    incumbent = Incumbent(config, state, executor, points, announcer, Contest(config, factory))
    ledger = Ledger(config, state, strategy, executor, database, points, announcer)
    pace: type[Pace] = OwnPace if config.execute.mode == "async" else InStep
    recovery: type[Recovery] = Alone if config.execute.mode == "async" else Together
    return Training(
        config,
        executor,
        run,
        state,
        pace(config, strategy, state, database, announcer),
        ledger,
        incumbent,
        points,
        recovery(executor, state, points, announcer),
        announcer,
        stop,
    )
