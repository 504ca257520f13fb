"""Rows of the database, as Python sees them."""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class MemberRecord:
    """One member in one generation.

    Attributes:
        generation: number of the generation.
        member: index in the population.
        score: fitness; NaN if it could not be scored.
        stderr: standard error of the score.
        episodes: episodes that the score was taken over.
        steps: environment steps taken at this place since the run began.
        hyperparams: values that the generation was trained with.
    """

    generation: int
    member: int
    score: float
    stderr: float
    episodes: int
    steps: int
    hyperparams: dict[str, float]


@dataclasses.dataclass(frozen=True)
class MetricsRecord:
    """What else is known of one generation.

    Attributes:
        generation: its number.
        time: when it ended; seconds since 1970.
        members: by name, of every member: the mean over the generation's updates of what each of them reported; NaN
            where there is none.
        population: by name, of all members together, see `Generation.statistics`.
    """

    generation: int
    time: float
    members: dict[str, list[float]]
    population: dict[str, float]


@dataclasses.dataclass(frozen=True)
class GraftRecord:
    """One member that was overwritten with another after a generation.

    Attributes:
        generation: number of the generation that was scored.
        member: the recipient.
        parent: the donor.
        parent_generation: when the donor was what it was; earlier than `generation` where the recipient went back to
            the best state there ever was.
        reason: the exploit method, or "rescue".
        score_before: the recipient's score.
        parent_score: the donor's score.
        hyperparams_before: values that the recipient was trained with.
        hyperparams_after: values that it goes on with.
        strategy: what became of the optimizer state: "copy", "reset" or "partial".
        aftermath: what was seen afterwards; NaN where nothing was.
    """

    generation: int
    member: int
    parent: int
    parent_generation: int
    reason: str
    score_before: float
    parent_score: float
    hyperparams_before: dict[str, float]
    hyperparams_after: dict[str, float]
    strategy: str
    aftermath: "Aftermath"


@dataclasses.dataclass(frozen=True)
class AdoptionRecord:
    """One member that went on after a generation with other hyperparameters than those of whose weights it has.

    Attributes:
        generation: number of the generation that was scored.
        member: who took them.
        parent: whose they were, before some were explored; its own number where it kept them, but not its weights.
        parent_generation: when the parent trained with them.
    """

    generation: int
    member: int
    parent: int
    parent_generation: int


@dataclasses.dataclass(frozen=True)
class Aftermath:
    """What a graft did to its recipient. A return is the mean of the training episodes that ended in one update.

    Attributes:
        value_loss_ratio: squared error of the recipient's values before its first update, divided by its donor's on the
            same steps; 1 where nothing is lost. NaN for a graft after which all environments began anew.
        momentum_cosine: cosine between the momentum and the first gradient of that update.
        return_before: the recipient's latest return before.
        return_1: its return in the first update after.
        return_5: in the fifth.
        return_10: in the tenth.
    """

    value_loss_ratio: float = math.nan
    momentum_cosine: float = math.nan
    return_before: float = math.nan
    return_1: float = math.nan
    return_5: float = math.nan
    return_10: float = math.nan


@dataclasses.dataclass(frozen=True)
class EventRecord:
    """Something that happened.

    Attributes:
        time: seconds since 1970.
        generation: number of the generation in progress; None outside of training.
        kind: one word, for filtering.
        text: a sentence.
    """

    time: float
    generation: int | None
    kind: str
    text: str


@dataclasses.dataclass(frozen=True)
class SessionRecord:
    """One process that trained the run, from its beginning or from a snapshot.

    Attributes:
        time: when it began; seconds since 1970.
        process: its id.
        host: the machine's name.
        config: every setting, as YAML.
        versions: of Python and of the packages that results depend on.
    """

    time: float
    process: int
    host: str
    config: str
    versions: dict[str, str]
