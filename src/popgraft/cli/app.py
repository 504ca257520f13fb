"""The commands. Exit codes: 0 done, 1 population lost, 2 a mistake that the message explains, 130 interrupted."""

import contextlib
import io
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

import typer

from popgraft import __version__
from popgraft.cli.evaluate import Row, attacks, draw, open_agent, require_matplotlib, said
from popgraft.cli.progress import Progress, counted, progress
from popgraft.errors import PopgraftError, PopulationLost, StoreError
from popgraft.store import RunFolder
from popgraft.train import Run, readable
from popgraft.train import resume as resume_population
from popgraft.train import train as train_population

POPULATION_LOST, MISTAKE, INTERRUPTED = 1, 2, 130

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]

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
        typer.echo(f"popgraft {__version__}")
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
        typer.echo(f"there are no runs in {folder}")
    width = max((len(str(path)) for path in found), default=0)
    for path in found:
        typer.echo(f"{path!s:<{width}}  {_standing(path)}")


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
    norm: Annotated[str | None, typer.Option(help="linf or l2 [default: likewise].")] = None,
    picture: Annotated[Path | None, typer.Option(help="File for a picture of return over epsilon.")] = None,
) -> None:
    """Score the best agent of a run on fresh episodes, and on the same ones under attack.

    Without options these are the episodes on which it was scored after training.
    """
    with _in_words():
        if picture is not None:
            require_matplotlib()
        agent = open_agent(source, env)
        config = agent.config
        attacked = attack or epsilon or steps is not None or norm is not None or picture is not None
        against = attacks(agent, attack or [], epsilon or [], steps, norm) if attacked else []
        deterministic = config.evaluation.deterministic if stochastic is None else not stochastic
        seed = config.seed if seed is None else seed
        count = episodes or config.evaluation.final_episodes
        rows = [Row.of(each, agent.evaluate(count, seed, deterministic, each)) for each in (None, *against)]
        typer.echo(said(rows, f"seed {seed}, {'most likely' if deterministic else 'sampled'} actions"))
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
    typer.echo(f"wrote {file}")


def _follow(work: Callable[..., Run], source: Path, settings: list[str] | None) -> None:
    """Trains with a display, and says how it ended."""
    display = progress()
    with _in_words(display), display:
        run = work(source, settings or [], observer=display)
        if not run.is_finished:
            raise KeyboardInterrupt
    _conclude(run)


def _standing(path: Path) -> str:
    """State, generations and best score of a run."""
    try:
        run = Run(path)
        whole, state = run.config.generations, run.state
    except PopgraftError as error:
        return f"damaged   {error}"
    try:
        done = f"{run.generations:,} of {whole:,} generations"
    except StoreError as error:
        return f"damaged   {error}; popgraft resume {shlex.quote(str(path))} goes on with what can be read"
    try:
        score = readable(run.summary["score"])
    except StoreError:
        score = "none"
    return f"{state:<8}  {done}, best score {score}"


@contextlib.contextmanager
def _in_words(display: Progress | None = None) -> Iterator[None]:
    """Turns errors and Ctrl-C into a message and an exit code; names what a run that had begun has kept."""
    try:
        yield
    except PopgraftError as error:
        typer.echo(f"error: {error}", err=True)
        if display and display.plan:
            _conclude(Run(display.plan.folder), err=True)
        raise typer.Exit(POPULATION_LOST if isinstance(error, PopulationLost) else MISTAKE) from None
    except KeyboardInterrupt:
        if display and display.plan:
            typer.echo("interrupted; what was reached is in the run folder")
            _conclude(Run(display.plan.folder))
        else:
            typer.echo("interrupted; nothing was written")
        raise typer.Exit(INTERRUPTED) from None


def _conclude(run: Run, err: bool = False) -> None:
    """Says how good the best agent is, where the run lies, and what to do with it."""
    folder = shlex.quote(str(run.path))
    try:
        found = run.summary
    except StoreError:
        lines = {
            "best agent": "none: the first generation had not ended",
            "run folder": folder,
        }
    else:
        if "final_score" in found:
            score = readable(found["final_score"], found["final_stderr"])
            score += f" over {counted(found['final_episodes'], 'fresh episode')}"
            if "final_attacked_score" in found:
                score += f", under attack {readable(found['final_attacked_score'], found['final_attacked_stderr'])}"
        else:
            score = readable(found["score"], found["stderr"]) + " when it was found"
        lines = {
            "best agent": f"{score}, after {found['steps']:,} steps",
            "run folder": folder,
            "evaluate": f"popgraft evaluate {folder}",
            "curves": f"tensorboard --logdir {shlex.quote(str(run.folder.tensorboard))}",
        }
    if not run.is_finished:
        lines["resume"] = f"popgraft resume {folder}"
    for name, text in lines.items():
        typer.echo(f"{name:<12}{text}", err=err)
