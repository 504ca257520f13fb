"""Whether the hyperparameters over time that a population has found are worth something by themselves.

Agents that never saw the population are trained twice from the same fresh seeds: with the winner's hyperparameters as
they changed in its life, and with those that its first ancestor began with. Both are ordinary runs, with everything
that a run leaves behind.

FOLDER/
├── schedule/     the run that follows the winner
├── fixed/        the run whose hyperparameters stay what they were at the beginning
└── replay.json   what came of it: `Replay.summary`
"""

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from popgraft.config import Config, dump_config, load_config
from popgraft.disk import reason, write_atomic
from popgraft.errors import ConfigError, RunExists, StoreError
from popgraft.rng import derive
from popgraft.store import RunFolder
from popgraft.store.boundary import reading
from popgraft.train.intervals import interquartile_mean, mean_interval
from popgraft.train.observer import Observer, readable
from popgraft.train.resume import resume
from popgraft.train.run import Run
from popgraft.train.start import from_python, train
from popgraft.train.winner import ancestry, schedule_of

FOLDER, FILE = "replay", "replay.json"


@dataclasses.dataclass(frozen=True)
class Replay:
    """What came of a replay. All scores are of whole agents as training left them, over the same fresh episodes.

    Attributes:
        folder: where it lies.
        config: of the run that followed the schedule.
        scores: of every agent by arm, "schedule" and "fixed"; agents with the same number began from the same seeds.
        population: of every member of the population that is replayed.
    """

    folder: Path
    config: Config
    scores: dict[str, list[float]]
    population: list[float]

    @property
    def reaches(self) -> bool:
        """Whether the median of the agents that followed the schedule is as good as the population's."""
        own, theirs = statistics.median(self.scores["schedule"]), statistics.median(self.population)
        return own >= theirs if self.config.pbt.metric_mode == "max" else own <= theirs

    @property
    def gain(self) -> tuple[float, float, float]:
        """Mean difference that the schedule makes to the fixed values, seed by seed, and its 95 % interval."""
        return mean_interval([a - b for a, b in zip(self.scores["schedule"], self.scores["fixed"], strict=True)])

    @property
    def verdict(self) -> str:
        """The result in two sentences."""
        own, theirs = (readable(statistics.median(each)) for each in (self.scores["schedule"], self.population))
        gain, low, high = self.gain
        sure = "more than chance" if low > 0 or high < 0 else "no more than chance may do"
        return (
            f"The winner's schedule alone {'reaches' if self.reaches else 'does NOT reach'} the population's median "
            f"final score: the median of {len(self.scores['schedule'])} fresh agents is {own}, that of the population "
            f"{theirs}. Against its initial values the schedule changes the score by {readable(gain)} (95 % interval "
            f"{readable(low)} to {readable(high)}), {sure}."
        )

    def summary(self) -> dict[str, Any]:
        """Everything as JSON values.

        `arms` and `population`: `scores`, their `mean` with its 95 % `interval`, `iqm` (interquartile mean), `median`;
        `gain` and its `gain_interval`; `reaches` and `verdict`; `episodes` that each score was taken over; `steps` of
        one agent; `schedule`, entries with `steps`, `hyperparams` and `graft`.
        """
        gain, *interval = self.gain
        pbt = self.config.pbt
        return {
            "verdict": self.verdict,
            "reaches": self.reaches,
            "gain": gain,
            "gain_interval": interval,
            "arms": {name: described(scores) for name, scores in self.scores.items()},
            "population": described(self.population),
            "episodes": self.config.evaluation.final_episodes,
            "steps": self.config.generations * self.config.steps_per_generation // pbt.population_size,
            "schedule": [entry.model_dump() for entry in pbt.schedule],
        }


def described(scores: list[float]) -> dict[str, Any]:
    """Scores with what is said of them, as JSON values."""
    mean, *interval = mean_interval(scores)
    return {
        "scores": scores,
        "mean": mean,
        "interval": interval,
        "iqm": float(interquartile_mean(np.array(scores))),
        "median": statistics.median(scores),
    }


def replay_config(
    run: Run, seeds: int = 5, grafts: bool = True, overrides: Mapping[str, Any] | Iterable[str] = ()
) -> Config:
    """The configuration that trains fresh agents with the hyperparameters that the best agent of a run had in its life.

    Args:
        run: any run.
        seeds: how many agents.
        grafts: whether they also go through the grafts that it went through.
        overrides: settings that win over the run's, as for `train`; not the schedule and the number of agents.

    Raises:
        ConfigError: the run varies no hyperparameters, or a setting that cannot work.
        StoreError: the run has no best agent, or has lost a part of its records.
    """
    names = list(run.config.pbt.varied)
    if not names:
        raise ConfigError(f"{run.path} has nothing to replay: nothing varies, because pbt.hyperparams is empty")
    with reading(run.path):
        line = ancestry(run)
        schedule = schedule_of(line, names, grafts)
    settings = {
        "pbt.population_size": seeds,
        "pbt.strategy": "evolution",
        "pbt.strategy_kwargs": {},
        "pbt.population_schedule": [],
        "pbt.exploit_method": "none",
        "pbt.explore_always": False,
        "pbt.schedule": schedule,
        "execute.shards": run.config.execute.shards and min(run.config.execute.shards, seeds),
        "execute.sizes": None,
        "seed": derive(run.config.seed, "replay"),
        "total_timesteps": seeds * line[-1].end,
        "stop_at_score": None,
        "run_dir": str(run.path / FOLDER / "schedule"),
    }
    given = overrides if isinstance(overrides, (str, Mapping)) else list(overrides)
    own = load_config(run.config, settings)
    wanted = load_config(load_config(own, {"pbt.schedule": []}), given)  # which any number of agents could follow
    if wanted.pbt.population_size != seeds:
        raise ConfigError(
            f"pbt.population_size={wanted.pbt.population_size} cannot be set here, because the agents of a replay are "
            "counted by --seeds (seeds in Python); give that instead"
        )
    wanted = load_config(own, given)
    if wanted.pbt.schedule != own.pbt.schedule:
        raise ConfigError(
            "pbt.schedule cannot be set here, because the winner's is what is replayed; write it to a file with "
            "--export, change it there, and train that file"
        )
    return wanted


def replay(
    path: str | Path,
    seeds: int = 5,
    grafts: bool = True,
    out: str | Path | None = None,
    overrides: Mapping[str, Any] | Iterable[str] = (),
    *,
    observer: Observer | None = None,
    factory: Callable[..., Any] | None = None,
) -> Replay:
    """Trains fresh agents with the winner's schedule and, from the same seeds, with its initial hyperparameters.

    What an interrupted replay has done is not done again.

    Args:
        path: folder of a run that has ended.
        seeds: agents of either kind; 2 at least.
        grafts: whether they also go through the grafts that the winner went through: another seat, and the optimizer
            state that was inherited. Without them only the hyperparameters change.
        out: folder of the replay; None: RUN/replay.
        overrides: settings that win over the run's, as for `train`; not the schedule, the number of agents and the
            folder.
        observer: is told of progress, of one run after the other.
        factory: makes a member's environments, for a run that was given one in Python.

    Raises:
        ConfigError: the run varies no hyperparameters, or a setting that cannot work.
        StoreError: the run has not ended, has lost a part of its records, or the result cannot be written.
        RunExists: the folder holds another replay.
        KeyboardInterrupt: training was interrupted.
    """
    if seeds < 2:
        raise ConfigError(f"seeds={seeds} give no interval of confidence; take 2 at least")
    run = Run(path, factory)
    folder = Path(out) if out is not None else run.path / FOLDER
    config = replay_config(run, seeds, grafts, from_python(overrides, factory))
    if config.run_dir != run.path / FOLDER / "schedule":
        raise ConfigError(
            f"run_dir={config.run_dir} cannot be set here, because a replay is two runs in one folder; name that with "
            "--out (out in Python)"
        )
    first = config.pbt.schedule[0].model_dump()
    population = _final_scores(run, config)
    scores = {}
    for arm, schedule in (("schedule", config.pbt.schedule), ("fixed", [first])):
        settings = load_config(config, {"pbt.schedule": schedule, "run_dir": str(folder / arm)})
        scores[arm] = _final_scores(_trained(settings, observer, factory), config)
    result = Replay(folder, config, scores, population)
    try:
        write_atomic(folder / FILE, json.dumps(result.summary(), indent=1).encode())
    except OSError as error:
        raise StoreError(f"cannot write {folder / FILE}: {reason(error, folder)}") from None
    return result


def _trained(config: Config, observer: Observer | None, factory: Callable[..., Any] | None) -> Run:
    """The run of a configuration: begun, gone on with, or as it lies there."""
    if not RunFolder(config.run_dir).config.is_file():
        run = train(config, observer=observer, factory=factory)
    else:
        run = Run(config.run_dir, factory)
        if dump_config(run.config) != dump_config(config):
            raise RunExists(f"{run.path} holds another replay; give another folder with --out, or delete this one")
        if not run.is_finished:
            run = resume(run.path, observer=observer, factory=factory)
    if not run.is_finished:
        raise KeyboardInterrupt
    return run


def _final_scores(run: Run, config: Config) -> list[float]:
    """Score of every member of a run as it was left, over the episodes that the replay's seed names."""
    settings = config.evaluation
    agents = (run.agent(member) for member in run.members)
    return [
        float(agent.evaluate(settings.final_episodes, config.seed, settings.deterministic).mean[0]) for agent in agents
    ]
