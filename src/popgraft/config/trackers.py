"""Settings of what a run reports, and to whom."""

from typing import Annotated

from pydantic import Field, StrictBool

from popgraft.config.fields import Reference, Section
from popgraft.config.kinds import Kinds

OBSERVERS = Kinds("observers", ("popgraft.train.observer:Observer",), {})


class WandbConfig(Section):
    """Weights & Biases; needs the extra `wandb`."""

    enabled: StrictBool = False
    """Whether the run is reported to Weights & Biases."""
    project: Annotated[str, Field(min_length=1)] = "popgraft"
    """Project that the run belongs to."""
    entity: str | None = None
    """User or team that the project belongs to; null: the one who is logged in."""
    offline: StrictBool = False
    """Whether everything stays in the run folder, for `wandb sync`."""


class MlflowConfig(Section):
    """MLflow; needs the extra `mlflow`."""

    enabled: StrictBool = False
    """Whether the run is reported to MLflow."""
    experiment: Annotated[str, Field(min_length=1)] = "popgraft"
    """Experiment that the run belongs to."""
    uri: str | None = None
    """Address of the tracking server, or of a database such as sqlite:///mlflow.db; null: as the environment variable
    MLFLOW_TRACKING_URI or MLflow itself says."""


class ReportConfig(Section):
    """The page that training leaves in the run folder."""

    sections: list[Reference] = []
    """Functions that make sections of your own, behind the others. A page that is made later names them itself, with
    `--section`, because it would run code of whoever has sent the run."""


class TrackingConfig(Section):
    """Experiment trackers, which get the same curves as TensorBoard."""

    wandb: WandbConfig = WandbConfig()
    """Weights & Biases."""
    mlflow: MlflowConfig = MlflowConfig()
    """MLflow."""
