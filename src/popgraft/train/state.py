"""What a run knows between two generations, besides its members."""

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from popgraft.state import Member, Record, Scores
from popgraft.train.aftermath import Follower

COUNTERS = ("generation", "steps", "exploits", "explorations")


@dataclasses.dataclass
class RunState:
    """Counters, and what later generations are compared with.

    Attributes:
        hyperparams: what the members train with.
        generation: number of the next one.
        steps: environment steps of the whole population.
        exploits: members that have been overwritten.
        explorations: members whose hyperparameters have been moved.
        known_scores: the latest score of every member, or of the member that it has become.
        record: the best state there ever was.
        found: how good it was and where it was found, as the snapshot of it says.
        follower: grafts whose consequences are still noted.
    """

    hyperparams: dict[str, Float[Tensor, "pop"]]
    generation: int = 0
    steps: int = 0
    exploits: int = 0
    explorations: int = 0
    known_scores: Float[Tensor, "pop"] | None = None
    record: Record | None = None
    found: dict[str, Any] | None = None
    follower: Follower = dataclasses.field(default_factory=Follower)

    @property
    def best(self) -> float:
        """The best score so far; NaN before the first."""
        return math.nan if self.found is None else float(self.found["score"])

    def set_record(self, state: Member, found: dict[str, Any]) -> None:
        """Takes in a new best state, a population of one, with its score, standard error, episodes and origin."""
        score, stderr = (torch.tensor([found[name]]) for name in ("score", "stderr"))
        scores = Scores(score, stderr, torch.tensor([found["episodes"]]))
        self.record, self.found = Record(state, scores, found["generation"], found["member"]), found

    def tensors(self, member: Member, record: Member | None) -> dict[str, Any]:
        """The tensors of a snapshot: the whole population, the best state, and the run's own."""
        known = torch.zeros(len(member.age)) if self.known_scores is None else self.known_scores
        own = {"member": member, "hyperparams": self.hyperparams, "known_scores": known}
        return own if record is None else {**own, "record": record}

    def metadata(self) -> dict[str, Any]:
        """The rest of a snapshot, as JSON values."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        return {**counters, "found": self.found, "follower": self.follower.state_dict()}

    def restore(self, tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Takes over what `tensors` and `metadata` returned."""
        for name in COUNTERS:
            setattr(self, name, metadata[name])
        self.hyperparams = {name: tensors["hyperparams"][name] for name in self.hyperparams}  # in the order they had
        self.known_scores = tensors["known_scores"] if self.generation else None
        self.follower.load_state_dict(metadata["follower"])
        self.record = self.found = None
        if metadata["found"] is not None:
            self.set_record(tensors["record"], metadata["found"])
