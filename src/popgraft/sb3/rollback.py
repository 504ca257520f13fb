"""Where an algorithm stands between two updates, to which it returns when its environments give unusable numbers."""

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from popgraft.errors import UnusableNumber
from popgraft.sb3.environments import normalizers
from popgraft.state import Seat

COUNTERS = (
    "num_timesteps",
    "_num_timesteps_at_start",
    "_total_timesteps",
    "_episode_num",
    "_current_progress_remaining",
)
STATISTICS = ("obs_rms", "ret_rms", "returns")
"""What a VecNormalize keeps of its environments' numbers."""


@dataclasses.dataclass(frozen=True)
class Rollback:
    """All that a rollout changes; parameters, optimizer and the model's own statistics change in updates only.

    Attributes:
        counters: attributes of the algorithm.
        seat: recurrent state and episode starts, which a step replaces.
        noise: states of the generators.
        statistics: of every `VecNormalize` among the environments.
    """

    counters: dict[str, Any]
    seat: Seat
    noise: list[Tensor]
    statistics: list[dict[str, Any]]

    @classmethod
    def of(cls, model: Any) -> "Rollback":
        """As the model stands now."""
        return cls(
            {name: getattr(model, name) for name in COUNTERS},
            dataclasses.replace(model.seat),
            [generator.get_state() for generator in model.generators],
            [
                {name: copy.deepcopy(getattr(each, name)) for name in STATISTICS if hasattr(each, name)}
                for each in normalizers(model.env)
            ],
        )

    def restore(self, model: Any) -> None:
        """Makes it stand so again, about to begin new episodes."""
        for name, value in self.counters.items():
            setattr(model, name, value)
        model.seat = dataclasses.replace(self.seat)
        for generator, state in zip(model.generators, self.noise, strict=True):
            generator.set_state(state)
        for normalizer, statistics in zip(normalizers(model.env), self.statistics, strict=True):
            for name, value in statistics.items():
                setattr(normalizer, name, copy.deepcopy(value))
        model._last_obs = None


@contextlib.contextmanager
def kept(model: Any) -> Iterator[None]:
    """While a model learns: a number that is not usable takes it back to where it stood after its latest update."""
    model._rollback = Rollback.of(model)
    try:
        yield
    except UnusableNumber:
        model._rollback.restore(model)
        raise
