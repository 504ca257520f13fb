"""What a training run tells whoever watches it."""

import dataclasses
from pathlib import Path

from jaxtyping import Float, Int
from torch import Tensor

from popgraft.config import Config
from popgraft.config.trackers import OBSERVERS
from popgraft.errors import ConfigError
from popgraft.messages import told
from popgraft.state import Decision, Scores


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is about to happen.

    Attributes:
        config: every setting.
        folder: where the run is kept.
        parameters: numbers that one member's networks hold.
        done: environment steps of the whole population that were taken before, where the run is resumed.
        begun: generations that were over then, or begun.
        left: members that train on; None: as many as there are by the configuration.
    """

    config: Config
    folder: Path
    parameters: int
    done: int = 0
    begun: int = 0
    left: int | None = None

    @property
    def steps(self) -> int:
        """Environment steps of the whole population in the whole run: full generations."""
        return self.config.planned_steps(self.done, self.left)


@dataclasses.dataclass(frozen=True)
class Generation:
    """One generation, scored and decided upon; of everybody, or with `execute.mode: async` of a shard's members.

    Attributes:
        number: counted from 0; with `execute.mode: async`, what the population has come to on average.
        members: who has trained.
        place_steps: environment steps taken at the place of each since the run began.
        update_steps: environment steps that an update of one of them takes.
        steps: environment steps of the whole population since the run began.
        seconds: wall-clock time since the run began, or was resumed.
        scores: fitness of every member, the latest that is known.
        hyperparams: values that they were trained with.
        decision: who inherits from whom.
        metrics: what every update reported, a row for each of `members`.
        best_score: highest score so far (lowest with metric_mode "min").
        statistics: what else is known of the population: `population_size`; `exploitation_count`, `exploration_count`,
            `failed_ready_checks` and `evaluation_steps` so far (environment steps beside those of training),
            `member_distance` between two members per parameter, `optimizer_distance` between their momenta relative
            to these (for an optimizer that has them), and `post_exploit_value_loss_ratio` of the members that were
            overwritten a generation ago (where there are any).
    """

    number: int
    members: Int[Tensor, "part"]
    place_steps: Int[Tensor, "part"]
    update_steps: int
    steps: int
    seconds: float
    scores: Scores
    hyperparams: dict[str, Float[Tensor, "pop"]]
    decision: Decision
    metrics: dict[str, Float[Tensor, "part updates"]]
    best_score: float
    statistics: dict[str, float]

    @property
    def exploits(self) -> Int[Tensor, "recipients"]:
        """Members that were overwritten."""
        return self.decision.recipients


class Observer:
    """Hears about a run while it goes on; the methods do nothing, for a subclass to override those it needs."""

    def on_start(self, plan: Plan) -> None:
        """Training is about to begin."""

    def on_update(self, steps: int) -> None:
        """An update is done; `steps` counts the environment steps of the whole population since the run began."""

    def on_generation(self, generation: Generation) -> None:
        """A generation has been scored, decided upon and recorded."""

    def on_event(self, kind: str, text: str) -> None:
        """Something happened that a person should hear of; it has been recorded."""

    def on_interrupt(self) -> None:
        """The first Ctrl-C, SIGTERM or SIGHUP: this update is the last. A signal handler calls this, so be brief."""

    def on_final_evaluation(self, episodes: int) -> None:
        """Training is over; the best member plays its last evaluation episodes."""

    def on_end(self) -> None:
        """The run is over, whichever way it ended."""


def own_observers(config: Config) -> list[Observer]:
    """The observers that a configuration names.

    Raises:
        ConfigError: there is no such class, or it cannot be made.
    """
    made = []
    for name in config.observers:
        cls = OBSERVERS.load(name)
        try:
            made.append(cls())
        except Exception as error:
            raise ConfigError(
                f"observers: {name} cannot be made ({told(error)}); it is made as {cls.__name__}(), so give its "
                "arguments defaults, or pass an object to train(observer=...)"
            ) from error
    return made


def readable(score: float, stderr: float | None = None) -> str:
    """A score in about three significant digits, never in powers of ten; with its standard error, if given one."""
    size = max(abs(score), abs(stderr or 0))
    digits = 1 if size >= 100 else 2 if size >= 10 else 3
    return f"{score:,.{digits}f}" + ("" if stderr is None else f" ± {stderr:,.{digits}f}")


def counted(number: int, noun: str) -> str:
    """The number, and the noun in singular or plural."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
