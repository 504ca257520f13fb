"""What the commands do; `app` says what they are called, and is quick to import."""

import contextlib
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import typer
from rich.console import Console

from popgraft.cli import compare as comparison
from popgraft.cli import picture as picturing
from popgraft.cli import replay as replaying
from popgraft.cli.evaluate import Row, attacks, draw, open_agent, said
from popgraft.cli.expected import expected
from popgraft.cli.initial import about, initial
from popgraft.cli.outcome import conclude, stand
from popgraft.cli.progress import Progress, progress
from popgraft.cli.table import say, show
from popgraft.config import load_config, shipped
from popgraft.dashboard.data import read
from popgraft.dashboard.report import report as write_report
from popgraft.disk import reason
from popgraft.errors import ConfigError, PopgraftError, PopulationLost, StoreError
from popgraft.messages import one_line
from popgraft.store import RunFolder
from popgraft.store.boundary import reading
from popgraft.train import Plan, Run, counted, readable
from popgraft.train import replay as replay_run
from popgraft.train import resume as resume_population
from popgraft.train import train as train_population
from popgraft.train.place import Place
from popgraft.train.probe import probe
from popgraft.train.replay import replay_config

POPULATION_LOST, MISTAKE, INTERRUPTED = 1, 2, 130
SECONDS = 1.0
"""For how long a dry run trains."""


def train(source: str, settings: Sequence[str]) -> None:
    """Trains a population."""
    _follow(train_population, source, settings)


def dry_run(source: str, settings: Sequence[str]) -> None:
    """Says what a run would take, without writing anything."""
    with _in_words():
        config = load_config(source, settings)
        found = probe(config, SECONDS)
        folder = Place.of(config.run_dir)
        show("\n".join(expected(Plan(config, folder.given, found.parameters), found)))
        if folder.folder.path.exists():
            say(f"{folder.given} is there already; set run_dir, or go on with: popgraft resume {folder.given}")


def init(task: str | None, out: Path | None) -> None:
    """Writes a commented configuration, or lists those that come along."""
    with _in_words():
        if task is None:
            show("\n".join(f"{name:<24}{about(path)}" for name, path in shipped().items()))
            say("popgraft init NAME writes one as a file, popgraft train NAME trains it; so does an environment's id")
            return
        text, name = initial(task)
        file = out or Path(f"{name}.yaml")
        try:
            with file.open("x", encoding="utf-8") as opened:
                opened.write(text(file))
        except OSError as error:
            raise ConfigError(f"cannot write {file}: {reason(error)}; choose another file with --out") from None
    say(f"wrote {file}; run: popgraft train {shlex.quote(str(file))}")


def resume(folder: Path, settings: Sequence[str]) -> None:
    """Goes on with a run."""
    _follow(resume_population, folder, settings)


def runs(folder: Path) -> None:
    """Lists the runs below a folder."""
    found = [run.path for run in RunFolder.find(folder)]
    if not found:
        say(f"there are no runs in {folder}")
    names = [one_line(str(path)) for path in found]
    width = max(map(len, names), default=0)
    for name, path in zip(names, found, strict=True):
        say(f"{name:<{width}}  {stand(path)}")


def evaluate(
    source: Path,
    episodes: int | None,
    seed: int | None,
    stochastic: bool | None,
    member: str,
    env: str | None,
    attack: list[str],
    epsilon: list[float],
    details: dict[str, int | str | None],
    picture: Path | None,
) -> None:
    """Scores an agent on fresh episodes, and under attack.

    Args:
        source: folder of a run, or file of a DistributionalPPO.
        episodes: how many; None: as after training.
        seed: names them; None: the run's.
        stochastic: whether actions are sampled; None: as after training.
        member: of a run: "best", or a number in the last population.
        env: for a file, where its environment is configured.
        attack: methods.
        epsilon: radii.
        details: steps, restarts and norm of attacks, where they are given.
        picture: file for a picture of return over radius.
    """
    with _in_words():
        picturing.check(picture)
        agent = open_agent(source, env, member)
        config = agent.config
        attacked = attack or epsilon or picture or any(value is not None for value in details.values())
        against = attacks(agent, attack, epsilon, **details) if attacked else []
        deterministic = config.evaluation.deterministic if stochastic is None else not stochastic
        seed = config.seed if seed is None else seed
        rows = [Row.of(each, agent.evaluate(episodes, seed, deterministic, each)) for each in (None, *against)]
        show(said(rows, f"seed {seed}, {'most likely' if deterministic else 'sampled'} actions"))
        if picture is not None:
            draw(rows, picture)


def export(folder: Path, file: Path, member: str) -> None:
    """Writes an agent of a run to a file for other programs."""
    from popgraft.sb3.export import export as export_agent  # here, because Stable-Baselines3 is slow to import

    with _in_words():
        export_agent(folder, file, member)
    say(f"wrote {file}")


def report(folder: Path, out: Path | None, compare: Path | None, text: bool, section: list[str]) -> None:
    """Writes what a run has done as a page, or prints it."""
    with _in_words():
        if text and section:
            raise ConfigError("--section adds to the page, which --text does not write; leave one of them out")
        if text:
            from popgraft.dashboard.text import text as written

            data, other = read(folder), read(compare) if compare else None
            with reading(folder):
                printed = written(data, other)
            Console(highlight=False).print(printed)
        else:
            say(f"wrote {write_report(folder, out, compare, section)}")
            if not section and (own := Run(folder).config.report.sections):
                words = ["popgraft", "report", str(folder), *(part for name in own for part in ("--section", name))]
                say(f"without the sections that the run names, which are code: {shlex.join(words)}")


def watch(path: Path, host: str, port: int, show_page: bool, section: list[str]) -> None:
    """Shows runs in a browser while they train."""
    from popgraft.cli.watch import watch as watch_runs  # here, because a web server is slow to import

    with _in_words():
        watch_runs(path, host, port, show_page, section)


def replay(
    folder: Path,
    seeds: int,
    grafts: bool,
    out: Path | None,
    picture: Path | None,
    export: Path | None,
    settings: Sequence[str],
) -> None:
    """Trains fresh agents with the winner's schedule, or writes it as a configuration."""
    display = progress()
    with _in_words(display):
        if export is not None:
            replaying.export(replay_config(Run(folder), seeds, grafts, settings), export)
            say(f"wrote {export}; run: popgraft train {shlex.quote(str(export))}")
            return
        picturing.check(picture)
        with display:
            result = replay_run(folder, seeds, grafts, out, settings, observer=display)
        show(replaying.said(result))
        if picture is not None:
            replaying.draw(result, picture)


def compare(folders: list[Path], threshold: float | None, picture: Path | None) -> None:
    """Compares groups of runs."""
    with _in_words():
        picturing.check(picture)
        groups = comparison.groups_of(folders)
        show(comparison.said(groups, threshold))
        if picture is not None:
            comparison.draw(groups, threshold, picture)


def video(folder: Path, member: str, episodes: int, out: Path | None, seed: int | None, fps: int | None) -> None:
    """Films an agent of a run."""
    from popgraft.cli.video import film  # here, because its libraries are an extra

    with _in_words():
        run = Run(folder)
        file = out or run.path / "video.mp4"
        returns = film(run.agent(member), file, episodes, run.config.seed if seed is None else seed, fps)
    scores = ", ".join(readable(score) for score in returns)
    say(f"wrote {file}: {counted(episodes, 'episode')} with the return {scores}")


def _follow(work: Callable[..., Run], source: str | Path, settings: Sequence[str]) -> None:
    """Trains with a display, and says how it ended."""
    display = progress()
    with _in_words(display), display:
        run = work(source, settings, observer=display)
        if not run.is_finished:
            raise KeyboardInterrupt
    conclude(run)


@contextlib.contextmanager
def _in_words(display: Progress | None = None) -> Iterator[None]:
    """Turns errors and Ctrl-C into a message and an exit code; names what a run that had begun has kept."""
    try:
        yield
    except PopgraftError as error:
        (show if isinstance(error, ConfigError) else say)(f"error: {error}", err=True)  # settings: one below the other
        if display and display.plan:
            with contextlib.suppress(StoreError):  # the run folder is no more
                conclude(Run(display.plan.folder), err=True)
        raise typer.Exit(POPULATION_LOST if isinstance(error, PopulationLost) else MISTAKE) from None
    except KeyboardInterrupt:
        if display and display.plan:
            say("interrupted; what was reached is in the run folder")
            with contextlib.suppress(StoreError):
                conclude(Run(display.plan.folder))
        else:
            say("interrupted; nothing was written")
        raise typer.Exit(INTERRUPTED) from None
