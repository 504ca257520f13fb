"""The commands. Exit codes: 0 done, 1 population lost, 2 a mistake that the message explains, 130 interrupted."""

import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from popgraft import __version__
from popgraft.cli import compare as comparison
from popgraft.cli import picture as picturing
from popgraft.cli import replay as replaying
from popgraft.cli.evaluate import Row, attacks, draw, open_agent, said
from popgraft.cli.outcome import conclude, stand
from popgraft.cli.progress import Progress, progress
from popgraft.cli.table import say, show
from popgraft.dashboard.data import read
from popgraft.dashboard.report import report as write_report
from popgraft.errors import ConfigError, PopgraftError, PopulationLost, StoreError
from popgraft.messages import one_line
from popgraft.store import RunFolder
from popgraft.store.boundary import reading
from popgraft.train import Run, counted, readable
from popgraft.train import replay as replay_run
from popgraft.train import resume as resume_population
from popgraft.train import train as train_population
from popgraft.train.replay import replay_config

POPULATION_LOST, MISTAKE, INTERRUPTED = 1, 2, 130

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
SectionOption = Annotated[
    list[str] | None,
    typer.Option("--section", metavar="MODULE:FUNCTION", help="A section of your own on the page; repeat for more."),
]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _examples(*commands: str) -> str:
    """The end of a help text."""
    return "\n".join(["\b", "Examples:", *(f"  popgraft {command}" for command in commands)])


def main() -> None:
    """Runs the command line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "±" shall not end a run
    app()


def _print_version(wanted: bool) -> bool:
    if wanted:
        say(f"popgraft {__version__}")
        raise typer.Exit
    return wanted


@app.callback(epilog=_examples("train configs/quickstart.yaml", "train --help"))
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Population-based training of recurrent reinforcement-learning agents."""


@app.command(
    epilog=_examples(
        "train configs/quickstart.yaml",
        "train configs/quickstart.yaml --set run_dir=runs/second --set seed=1",
        "train configs/quickstart.yaml --set pbt.population_size=16",
    )
)
def train(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of the run.", show_default=False)],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that wins over the file; repeat for more."),
    ] = None,
) -> None:
    """Train a population.

    Ctrl-C stops after the update in progress and keeps what was reached; a second Ctrl-C stops at once.
    """
    _follow(train_population, config, settings)


@app.command(epilog=_examples("resume runs/quickstart", "resume runs/quickstart --set total_timesteps=400_000"))
def resume(
    folder: RunArgument,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that changes from now on; repeat for more."),
    ] = None,
) -> None:
    """Go on with a run that was stopped, killed, or is to train longer.

    It continues from its newest snapshot, and ends as if it had never been interrupted.
    """
    _follow(resume_population, folder, settings)


@app.command(epilog=_examples("runs", "runs experiments/monday"))
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look for runs.")] = Path("runs"),
) -> None:
    """List the runs below a folder, with what has become of them."""
    found = [run.path for run in RunFolder.find(folder)]
    if not found:
        say(f"there are no runs in {folder}")
    names = [one_line(str(path)) for path in found]
    width = max(map(len, names), default=0)
    for name, path in zip(names, found, strict=True):
        say(f"{name:<{width}}  {stand(path)}")


@app.command(
    epilog=_examples(
        "evaluate runs/quickstart",
        "evaluate runs/quickstart --episodes 200 --seed 7 --stochastic",
        "evaluate runs/quickstart --attack pgd --attack critic --epsilon 0.05 --epsilon 0.1 --picture curve.png",
        "evaluate agent.zip --env CartPole-v1",
    )
)
def evaluate(
    source: Annotated[
        Path, typer.Argument(metavar="RUN", help="Folder of a run, or file of a DistributionalPPO.", show_default=False)
    ],
    episodes: Annotated[int | None, typer.Option(min=1, help="How many [default: as after training].")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Names the episodes [default: the run's seed].")] = None,
    stochastic: Annotated[
        bool | None,
        typer.Option(
            "--stochastic/--deterministic",
            help="Sample actions, or take the most likely ones [default: as after training].",
            show_default=False,
        ),
    ] = None,
    env: Annotated[
        str | None, typer.Option(help="For a file: a registered id, or a configuration whose section env is taken.")
    ] = None,
    attack: Annotated[
        list[str] | None, typer.Option(help="pgd, fgsm, random or critic, on what the agent sees; repeat for more.")
    ] = None,
    epsilon: Annotated[
        list[float] | None, typer.Option(help="Radius of the attack; repeat for a curve [default: evaluation.attack].")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Gradient steps of pgd and critic [default: likewise].")] = None,
    restarts: Annotated[int | None, typer.Option(help="Random points to start at [default: likewise].")] = None,
    norm: Annotated[str | None, typer.Option(help="linf or l2 [default: likewise].")] = None,
    picture: Annotated[Path | None, typer.Option(help="File for a picture of return over epsilon.")] = None,
) -> None:
    """Score the best agent of a run on fresh episodes, and on the same ones under attack.

    Without options these are the episodes on which it was scored after training.
    """
    with _in_words():
        picturing.check(picture)
        agent = open_agent(source, env)
        config = agent.config
        details = {"steps": steps, "restarts": restarts, "norm": norm}
        attacked = attack or epsilon or picture or any(value is not None for value in details.values())
        against = attacks(agent, attack or [], epsilon or [], **details) if attacked else []
        deterministic = config.evaluation.deterministic if stochastic is None else not stochastic
        seed = config.seed if seed is None else seed
        count = episodes or config.evaluation.final_episodes
        rows = [Row.of(each, agent.evaluate(count, seed, deterministic, each)) for each in (None, *against)]
        show(said(rows, f"seed {seed}, {'most likely' if deterministic else 'sampled'} actions"))
        if picture is not None:
            draw(rows, picture)


@app.command(
    epilog=_examples(
        "export runs/quickstart agent.zip",
        "export runs/quickstart policy.pt2 --member 3",
        "export runs/quickstart policy.onnx",
    )
)
def export(
    folder: RunArgument,
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What to write: a .zip, .pt2 or .onnx file.", show_default=False)
    ],
    member: Annotated[
        str, typer.Option(metavar="best|NUMBER", help="The best agent, or a member of the last population.")
    ] = "best",
) -> None:
    """Write an agent of a run to a file for other programs.

    A .zip file is for DistributionalPPO.load, which acts and learns on; .pt2 (torch.export) and .onnx files hold the
    acting policy alone.
    """
    from popgraft.sb3.export import export as export_agent  # here, because Stable-Baselines3 is slow to import

    with _in_words():
        export_agent(folder, file, member)
    say(f"wrote {file}")


@app.command(
    epilog=_examples(
        "report runs/quickstart",
        "report runs/quickstart --text",
        "report runs/quickstart --compare runs/random --out comparison.html",
    )
)
def report(
    folder: RunArgument,
    out: Annotated[
        Path | None, typer.Option(help="The file to write [default: RUN/report.html].", show_default=False)
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Another run to compare with, such as a random search.")
    ] = None,
    text: Annotated[bool, typer.Option("--text", help="Print the facts instead of writing a file.")] = False,
    section: SectionOption = None,
) -> None:
    """Write what a run has done as a page for a browser, or print it.

    The page is one file that needs no network. Training writes it by itself when it ends.
    """
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
            say(f"wrote {write_report(folder, out, compare, section or ())}")


@app.command(epilog=_examples("watch runs/quickstart", "watch runs --port 8000"))
def watch(
    path: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="Folder of a run, or one above several.", show_default=False)
    ],
    host: Annotated[str, typer.Option(help="Interface to listen on; other machines then need a token.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Where to listen; 0 takes any free port.")] = 8642,
    show: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in a browser.")] = True,
    section: SectionOption = None,
) -> None:
    """Show runs in a browser while they train.

    The page follows the runs within seconds. Ctrl-C ends it; the runs go on.
    """
    from popgraft.cli.watch import watch as watch_runs  # here, because a web server is slow to import

    with _in_words():
        watch_runs(path, host, port, show, section or ())


@app.command(
    epilog=_examples(
        "replay runs/quickstart",
        "replay runs/quickstart --seeds 10 --no-grafts --out runs/replayed --picture replay.png",
        "replay runs/quickstart --export schedule.yaml",
    )
)
def replay(
    folder: RunArgument,
    seeds: Annotated[int, typer.Option(min=2, help="Fresh agents of either kind.")] = 5,
    grafts: Annotated[
        bool, typer.Option("--grafts/--no-grafts", help="Also replay the grafts, or only the values.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the replay [default: RUN/replay].", show_default=False)
    ] = None,
    picture: Annotated[Path | None, typer.Option(help="File for a picture of both kinds' curves.")] = None,
    export: Annotated[
        Path | None, typer.Option(help="Train nothing; write a configuration that follows the schedule.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that wins over the run's; repeat for more."),
    ] = None,
) -> None:
    """Train fresh agents with the winner's hyperparameters as they changed, and with those it began with.

    It shows whether the schedule is worth something without the population that found it.
    """
    display = progress()
    with _in_words(display):
        if export is not None:
            replaying.export(replay_config(Run(folder), seeds, grafts, settings or []), export)
            say(f"wrote {export}; run: popgraft train {shlex.quote(str(export))}")
            return
        picturing.check(picture)
        with display:
            result = replay_run(folder, seeds, grafts, out, settings or [], observer=display)
        show(replaying.said(result))
        if picture is not None:
            replaying.draw(result, picture)


@app.command(
    epilog=_examples(
        "compare runs/quickstart runs/seed1",
        "compare runs/pbt-* runs/random-* --threshold 450 --picture comparison.png",
    )
)
def compare(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of runs.", show_default=False)],
    threshold: Annotated[float | None, typer.Option(help="Score of which it is told how soon it is reached.")] = None,
    picture: Annotated[Path | None, typer.Option(help="File for a picture of curves and final scores.")] = None,
) -> None:
    """Compare runs; those that differ in their seeds alone make up a group.

    Interquartile means over the runs of a group, with 95 % intervals by the bootstrap.
    """
    with _in_words():
        picturing.check(picture)
        groups = comparison.groups_of(folders)
        show(comparison.said(groups, threshold))
        if picture is not None:
            comparison.draw(groups, threshold, picture)


@app.command(epilog=_examples("video runs/quickstart", "video runs/quickstart --member 3 --episodes 2 --out agent.gif"))
def video(
    folder: RunArgument,
    member: Annotated[
        str, typer.Option(metavar="best|NUMBER", help="The best agent, or a member of the last population.")
    ] = "best",
    episodes: Annotated[int, typer.Option(min=1, help="How many, one after the other.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="A .mp4 or .gif file [default: RUN/video.mp4].", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Names the episodes [default: the run's seed].")] = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Frames per second [default: the environment's].")] = None,
) -> None:
    """Film an agent of a run."""
    from popgraft.cli.video import film  # here, because its libraries are an extra

    with _in_words():
        run = Run(folder)
        file = out or run.path / "video.mp4"
        returns = film(run.agent(member), file, episodes, run.config.seed if seed is None else seed, fps)
    scores = ", ".join(readable(score) for score in returns)
    say(f"wrote {file}: {counted(episodes, 'episode')} with the return {scores}")


def _follow(work: Callable[..., Run], source: Path, settings: list[str] | None) -> None:
    """Trains with a display, and says how it ended."""
    display = progress()
    with _in_words(display), display:
        run = work(source, settings or [], observer=display)
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
