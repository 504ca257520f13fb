"""The commands: their names, options and help.

Exit codes: 0 done, 1 population lost, 2 a mistake that the message explains, 130 interrupted.
What a command does is imported when it is called, so that help is there at once.
"""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from popgraft import __version__
from popgraft.cli.table import say

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a run.", show_default=False)]
MemberOption = Annotated[
    str, typer.Option(metavar="best|NUMBER", help="The best agent, or a member of the last population.")
]
SectionOption = Annotated[
    list[str] | None,
    typer.Option("--section", metavar="MODULE:FUNCTION", help="A section of your own on the page; repeat for more."),
]

app = typer.Typer(
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
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


@app.callback(epilog=_examples("train quickstart", "init", "train --help"))
def options(
    version: Annotated[
        bool,
        typer.Option("--version", "-V", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Population-based training of recurrent reinforcement-learning agents."""


@app.command(
    epilog=_examples(
        "train quickstart",
        "train CartPole-v1 --seed 1",
        "train my.yaml --set pbt.population_size=16 --dry-run",
    )
)
def train(
    config: Annotated[
        str,
        typer.Argument(
            metavar="CONFIG",
            help="YAML file of the run, name of a configuration that comes along (see init), or id of an environment.",
            show_default=False,
        ),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting that wins over the file; repeat for more."),
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Short for --set seed=SEED.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Train for a second and say what the run would take; write nothing.")
    ] = False,
) -> None:
    """Train a population.

    Ctrl-C stops after the update in progress and keeps what was reached; a second Ctrl-C stops at once.
    """
    from popgraft.cli import commands

    given = (settings or []) + ([] if seed is None else [f"seed={seed}"])
    (commands.dry_run if dry_run else commands.train)(config, given)


@app.command(epilog=_examples("init", "init pendulum_novel", "init LunarLander-v3 --out lander.yaml"))
def init(
    task: Annotated[
        str | None,
        typer.Argument(
            metavar="TASK",
            help="Configuration that comes along, or id of an environment; without it, they are listed.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="The file to write [default: TASK.yaml].", show_default=False)
    ] = None,
) -> None:
    """Write a commented configuration to begin with."""
    from popgraft.cli import commands

    commands.init(task, out)


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
    from popgraft.cli import commands

    commands.resume(folder, settings or [])


@app.command(epilog=_examples("runs", "runs experiments/monday"))
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Where to look for runs.")] = Path("runs"),
) -> None:
    """List the runs below a folder, with what has become of them."""
    from popgraft.cli import commands

    commands.runs(folder)


@app.command(
    epilog=_examples(
        "evaluate runs/quickstart",
        "evaluate runs/quickstart --episodes 200 --seed 7 --stochastic",
        "evaluate runs/quickstart --member 3",
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
    member: MemberOption = "best",
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
    """Score an agent of a run on fresh episodes, and on the same ones under attack.

    Without options these are the episodes on which it was scored after training.
    """
    details: dict[str, int | str | None] = {"steps": steps, "restarts": restarts, "norm": norm}
    from popgraft.cli import commands

    commands.evaluate(source, episodes, seed, stochastic, member, env, attack or [], epsilon or [], details, picture)


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
    member: MemberOption = "best",
) -> None:
    """Write an agent of a run to a file for other programs.

    A .zip file is for DistributionalPPO.load, which acts and learns on; .pt2 (torch.export) and .onnx files hold the
    acting policy alone.
    """
    from popgraft.cli import commands

    commands.export(folder, file, member)


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
    from popgraft.cli import commands

    commands.report(folder, out, compare, text, section or [])


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
    from popgraft.cli import commands

    commands.watch(path, host, port, show, section or [])


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
    from popgraft.cli import commands

    commands.replay(folder, seeds, grafts, out, picture, export, settings or [])


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
    from popgraft.cli import commands

    commands.compare(folders, threshold, picture)


@app.command(epilog=_examples("video runs/quickstart", "video runs/quickstart --member 3 --episodes 2 --out agent.gif"))
def video(
    folder: RunArgument,
    member: MemberOption = "best",
    episodes: Annotated[int, typer.Option(min=1, help="How many, one after the other.")] = 1,
    out: Annotated[
        Path | None, typer.Option(help="A .mp4 or .gif file [default: RUN/video.mp4].", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Names the episodes [default: the run's seed].")] = None,
    fps: Annotated[int | None, typer.Option(min=1, help="Frames per second [default: the environment's].")] = None,
) -> None:
    """Film an agent of a run."""
    from popgraft.cli import commands

    commands.video(folder, member, episodes, out, seed, fps)
