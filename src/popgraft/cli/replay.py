"""What `popgraft replay` shows: a table, a verdict, a picture."""

from pathlib import Path

import numpy as np

from popgraft.cli.picture import save
from popgraft.cli.table import table
from popgraft.config import Config, dump_config
from popgraft.disk import reason, write_atomic
from popgraft.errors import StoreError
from popgraft.train import Replay, Run, readable
from popgraft.train.intervals import mean_interval
from popgraft.train.replay import described

ARMS = {"schedule": "the winner's schedule", "fixed": "its initial values"}
HEADER = ("", "agents", "mean", "95 % interval", "interquartile mean", "median")


def said(replay: Replay) -> str:
    """The table of final scores, and the verdict."""
    groups = {ARMS[name]: scores for name, scores in replay.scores.items()} | {"the population": replay.population}
    rows = []
    for name, scores in groups.items():
        found = described(scores)
        interval = " to ".join(readable(bound) for bound in found["interval"])
        rows.append(
            (
                name,
                str(len(scores)),
                readable(found["mean"]),
                interval,
                readable(found["iqm"]),
                readable(found["median"]),
            )
        )
    episodes = replay.config.evaluation.final_episodes
    return f"final scores over {episodes} fresh episodes, the same for all\n\n{table(HEADER, rows)}\n\n{replay.verdict}"


def draw(replay: Replay, path: Path) -> None:
    """Mean score over an agent's steps with its 95 % interval, one curve for every arm.

    Raises:
        ConfigError: the picture cannot be written there, or not in that format.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    for (arm, name), style in zip(ARMS.items(), ("-", "--"), strict=True):
        scores: dict[int, list[float]] = {}
        for record in Run(replay.folder / arm).scores:
            scores.setdefault(record.steps, []).append(record.score)
        mean, low, high = np.array([mean_interval(own) for own in scores.values()]).T
        axes.plot(list(scores), mean, style, label=name)
        axes.fill_between(list(scores), low, high, alpha=0.15, linewidth=0)
    median = float(np.median(replay.population))
    axes.axhline(median, color="gray", linestyle=":", label="median of the population")
    axes.set_xlabel("environment steps of one agent")
    axes.set_ylabel("score (band: 95 % confidence)")
    axes.legend(frameon=False)
    save(figure, path)


def export(config: Config, path: Path) -> None:
    """Writes the configuration that follows the schedule.

    Raises:
        StoreError: it cannot be written there.
    """
    try:
        write_atomic(path, dump_config(config).encode())
    except OSError as error:
        raise StoreError(f"cannot write {path}: {reason(error, path.parent)}") from None
