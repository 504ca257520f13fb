"""Whether an heir begins where its donor stood: their values on the same steps, compared."""

import dataclasses

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.rollout.batch import Rollout
from popgraft.rollout.collector import Collector
from popgraft.state import Member


@dataclasses.dataclass
class Heirs:
    """Members that are somebody else since the latest rollout.

    Attributes:
        places: their places in the shard.
        donors: the donor of each as it predicts: the heir's weights, in the donor's units.
        state: recurrent state that the donor would have, had it lived the heir's episodes from their beginning.
    """

    places: list[int]
    donors: Member
    state: Float[Tensor, "rows env state"]

    def donor_values(self, collector: Collector) -> Float[Tensor, "rows time env"]:
        """What the donors predict on the heirs' first rollout, in raw units of return."""
        return collector.replay(self.donors, torch.tensor(self.places), self.state)[0]

    def value_loss_ratios(
        self, rollout: Rollout, expected: Float[Tensor, "rows time env"], target: Float[Tensor, "pop time env"]
    ) -> dict[int, float]:
        """Squared error of the heirs' values, divided by their donors', by place.

        Σ (G − V)²/Σ (G − V_donor)²

        Args:
            rollout: the heirs' first.
            expected: what the donors predict on it.
            target: estimates of the return, raw units.
        """
        rows = torch.tensor(self.places)
        valid, truth = rollout.valid[rows], target[rows]
        own, donors = (
            ((truth - values).square() * valid).sum((1, 2)).double() for values in (rollout.value[rows], expected)
        )
        return dict(zip(self.places, (own / donors).tolist(), strict=True))
