"""What snapshots say besides their tensors: whether it can be true."""

import math
from pathlib import Path
from typing import Annotated, Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, Strict, ValidationError

from popgraft.errors import Damaged

Count = Annotated[int, Field(ge=0, lt=2**53)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Members = Annotated[list[Count], Field(min_length=1)]


class _Part(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class Found(_Part):
    """Where the best agent was found, and how good it is."""

    generation: Count
    member: Count
    score: Finite
    stderr: float
    episodes: Count
    steps: Count
    claimed_score: float = math.nan
    claimed_stderr: float = math.nan
    final_score: float = math.nan
    final_stderr: float = math.nan
    final_episodes: Count = 0
    final_attacked_score: float = math.nan
    final_attacked_stderr: float = math.nan


class Last(_Part):
    """What the population as a run left it holds besides its tensors."""

    members: Members = [0]


class _Follower(_Part):
    pending: list[Annotated[tuple[Count, Count, Count, dict[str, float]], Strict(False)]]
    latest: list[Annotated[tuple[Count, float], Strict(False)]]


class Point(_Part):
    """What a point holds besides its tensors."""

    generation: Count
    steps: Count
    evaluation_steps: Count = 0
    members: Members = [0]
    exploits: Count
    explorations: Count
    ties: Count = 0
    contradictions: Count = 0
    events: Count
    found: Found | None
    follower: _Follower
    strategy: dict[str, Any] = Field(validation_alias=AliasChoices("strategy", "schedule"))
    tensorboard: dict[str, Count]


def checked(kind: type[_Part], metadata: dict[str, Any], place: Path) -> dict[str, Any]:
    """Metadata of a snapshot that has them all.

    Args:
        kind: what they are to be.
        metadata: as they were read.
        place: the snapshot, for messages.

    Raises:
        Damaged: one is missing, or cannot be.
    """
    try:
        kind.model_validate(metadata)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, value = ".".join(map(str, first["loc"])), repr(first["input"])[:60]
        why = "is missing" if first["type"] == "missing" else f"is {value}: {first['msg']}".lower()
        raise Damaged(f"snapshot {place} is damaged: its {name} {why}") from None
    return metadata


def members_of(metadata: dict[str, Any], pop: int) -> list[int]:
    """Who trains on, as a snapshot of a population of `pop` says; everybody where it does not, or cannot be right."""
    everyone = range(pop)
    return sorted({*metadata.get("members", everyone)}.intersection(everyone)) or list(everyone)
