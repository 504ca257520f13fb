"""What an agent sees and does, in shapes: the part of an environment's spaces that networks and buffers need."""

import dataclasses
from typing import Any, Literal

ActionKind = Literal["discrete", "multi_discrete", "multi_binary", "box"]


@dataclasses.dataclass(frozen=True)
class ObsSpec:
    """One observation key of one environment, without leading axes.

    Attributes:
        shape: of a float32 array, or (channels, height, width) of a uint8 image.
        image: whether it is an image of 8-bit pixels, which the encoder scales and no running statistics do.
    """

    shape: tuple[int, ...]
    image: bool = False


@dataclasses.dataclass(frozen=True)
class ActionSpec:
    """The action of one environment.

    Attributes:
        kind: family of the action space.
        sizes: choices of every sub-action (discrete: one entry; multi_binary: all 2); empty for box.
        start: smallest value of every sub-action as the environment counts it; empty for box.
        shape: shape of an action as the environment takes it; () for discrete.
        low: lower bounds of a box, flattened (−inf where unbounded); empty otherwise.
        high: upper bounds of a box, flattened; empty otherwise.
        dtype: NumPy's name of the type that the environment takes; empty: Gymnasium's default for the kind.
    """

    kind: ActionKind
    sizes: tuple[int, ...] = ()
    start: tuple[int, ...] = ()
    shape: tuple[int, ...] = ()
    low: tuple[float, ...] = ()
    high: tuple[float, ...] = ()
    dtype: str = ""

    @property
    def dims(self) -> int:
        """Number of sub-actions: the last axis of a stored action."""
        return len(self.low) if self.kind == "box" else len(self.sizes)


@dataclasses.dataclass(frozen=True)
class Spaces:
    """What one agent sees and does.

    Attributes:
        obs: every observation key; a space that is not a dict has the single key "obs".
        action: the action.
        observation_space: the same as a Gymnasium space, for encoders written by the user.
        raw_space: the same as the environment gives it, behind all wrappers: choices, channels first or last.
    """

    obs: dict[str, ObsSpec]
    action: ActionSpec
    observation_space: Any = None
    raw_space: Any = None
