"""Observers that report a run to experiment trackers, with TensorBoard's names.

A curve is named `place/tag`, as `member_03/train/value_loss` or `population/pbt/max_performance`. The tracker's id of
the run is kept in the run folder, so that a resumed run goes on there. A tracker that fails while training goes on is
given up, with a warning: it never ends a run.
"""

import abc
import json
import time
import uuid

from popgraft.config import MlflowConfig, TrackingConfig, WandbConfig, flat_config
from popgraft.disk import read_file, write_atomic
from popgraft.errors import ConfigError, MissingExtra
from popgraft.messages import logger_of
from popgraft.train.observer import Generation, Observer, Plan
from popgraft.train.scalars import scalars

logger = logger_of(__name__)

PARAMS, METRICS, LONGEST = 100, 1000, 6000
"""What MLflow takes at once: parameters, metrics, characters of a parameter."""

Points = dict[tuple[str, int], dict[str, float]]
"""Values by tag, of every place and step."""


def make_trackers(config: TrackingConfig) -> list[Observer]:
    """The trackers that are enabled.

    Raises:
        MissingExtra: the package of one of them is not installed.
        ConfigError: one of them refuses its settings.
    """
    trackers: list[Observer] = []
    if config.wandb.enabled:
        trackers.append(Wandb(config.wandb))
    if config.mlflow.enabled:
        trackers.append(Mlflow(config.mlflow))
    return trackers


class Tracker(Observer, abc.ABC):
    """What trackers have in common: one run there for one run folder here, and that they may fail.

    Attributes:
        name: of the tracker, as in `tracking.<name>`.
    """

    name: str
    _open = False

    def on_start(self, plan: Plan) -> None:
        """Begins a run, or goes on with the one that the run folder names.

        Raises:
            ConfigError: the tracker cannot be reached, or does not let us in.
        """
        file = plan.folder / f"{self.name}.json"
        try:
            known = json.loads(read_file(file))["id"] if file.is_file() else None
            write_atomic(file, json.dumps({"id": self.begin(plan, known)}).encode())
        except Exception as error:
            raise _unusable(self.name, error) from error
        self._open = True

    def on_generation(self, generation: Generation) -> None:
        """Reports every update of every member, and the population's scores."""
        if not self._open:
            return
        points: Points = {}
        for place, tag, value, step in scalars(generation):
            points.setdefault((place, step), {})[tag] = value
        try:
            self.report(points)
        except Exception as error:
            self._open = False
            logger.warning("%s gets nothing more of this run: %s", self.name, _said(error))

    def on_end(self) -> None:
        """Ends the run."""
        try:
            if self._open:
                self.end()
        except Exception as error:
            logger.warning("%s may lack the end of this run: %s", self.name, _said(error))

    @abc.abstractmethod
    def begin(self, plan: Plan, known: str | None) -> str:
        """Begins a run, or goes on with the `known` one; returns its id."""

    @abc.abstractmethod
    def report(self, points: Points) -> None:
        """Sends the points of some curves."""

    @abc.abstractmethod
    def end(self) -> None:
        """Ends the run."""


class Wandb(Tracker):
    """Weights & Biases.

    Raises:
        MissingExtra: wandb is not installed.
    """

    name = "wandb"

    def __init__(self, config: WandbConfig) -> None:
        try:
            import wandb
        except ImportError:
            raise MissingExtra("wandb", "wandb", "tracking.wandb") from None
        self._wandb, self._config = wandb, config

    def begin(self, plan: Plan, known: str | None) -> str:
        """Begins a run whose files lie in the run folder; every place has an x axis of its own."""
        self._run = self._wandb.init(
            project=self._config.project,
            entity=self._config.entity,
            id=known or uuid.uuid4().hex,
            resume="allow",
            name=plan.folder.name,
            dir=str(plan.folder),
            mode="offline" if self._config.offline else None,
            settings=self._wandb.Settings(console="off", silent=True),
        )
        self._run.config.update(flat_config(plan.config), allow_val_change=True)
        return str(self._run.id)

    def report(self, points: Points) -> None:
        """Sends the points of some curves."""
        for (place, step), values in points.items():
            self._run.define_metric(f"{place}/*", step_metric=f"{place}/steps")
            self._run.log({f"{place}/steps": step} | {f"{place}/{tag}": value for tag, value in values.items()})

    def end(self) -> None:
        """Waits until everything is sent."""
        self._run.finish()


class Mlflow(Tracker):
    """MLflow.

    Raises:
        MissingExtra: mlflow is not installed.
        ConfigError: it does not know such a kind of address.
    """

    name = "mlflow"

    def __init__(self, config: MlflowConfig) -> None:
        try:
            import mlflow
        except ImportError:
            raise MissingExtra("mlflow", "mlflow", "tracking.mlflow") from None
        self._entities, self._config = mlflow.entities, config
        try:
            self._client = mlflow.MlflowClient(config.uri)
        except Exception as error:
            raise _unusable(self.name, error) from error

    def begin(self, plan: Plan, known: str | None) -> str:
        """Begins a run with the settings as its parameters, as far as MLflow takes them."""
        client, name = self._client, self._config.experiment
        if known:
            client.update_run(known, status="RUNNING")
            self._id = known
        else:
            experiment = client.get_experiment_by_name(name)
            number = experiment.experiment_id if experiment else client.create_experiment(name)
            self._id = client.create_run(number, run_name=plan.folder.name).info.run_id
            settings = flat_config(plan.config).items()
            params = [self._entities.Param(key, str(value)[:LONGEST]) for key, value in settings]
            for first in range(0, len(params), PARAMS):
                client.log_batch(self._id, params=params[first : first + PARAMS])
        return str(self._id)

    def report(self, points: Points) -> None:
        """Sends the points of some curves."""
        now = int(time.time() * 1000)
        metrics = [
            self._entities.Metric(f"{place}/{tag}", value, now, step)
            for (place, step), values in points.items()
            for tag, value in values.items()
        ]
        for first in range(0, len(metrics), METRICS):
            self._client.log_batch(self._id, metrics=metrics[first : first + METRICS])

    def end(self) -> None:
        """Says that the run is over."""
        self._client.set_terminated(self._id)


def _unusable(name: str, error: Exception) -> ConfigError:
    return ConfigError(
        f"tracking.{name} cannot be used: {_said(error)}; see that it can be reached, or set "
        f"tracking.{name}.enabled: false"
    )


def _said(error: Exception) -> str:
    """What an error says, in one line."""
    return " ".join(str(error).split()) or type(error).__name__
