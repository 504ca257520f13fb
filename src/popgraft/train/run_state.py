"""What a run knows between two generations, besides its members."""

import dataclasses
import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.execute import Part
from popgraft.state import Decision, Member, Record, Scores
from popgraft.train.aftermath import Follower
from popgraft.train.plausible import members_of

COUNTERS = ("steps", "evaluation_steps", "exploits", "explorations", "ties", "contradictions")
COUNTS = ("rounds", "place_steps", "heirs")
KNOWN = ("mean", "stderr", "episodes")


@dataclasses.dataclass
class RunState:
    """Counters, and what later generations are compared with.

    Hyperparameters and age are the members': they tell theirs with every generation, and what a decision makes of them
    is known here until they do. A snapshot has them in its members alone.

    Attributes:
        hyperparams: what the members train with.
        rounds: generations that every place has completed; all the same, unless shards train at their own pace.
        place_steps: environment steps taken at every place.
        age: updates behind every member's state, wherever they were made.
        members: those that train, in ascending order; the others have ended.
        heirs: 1 for members that have become somebody else since they were scored; their score is their donor's.
        steps: environment steps of the whole population in training.
        evaluation_steps: those of evaluations, and of agents that played each other.
        exploits: members that have been overwritten.
        explorations: members whose hyperparameters have been moved.
        ties: parts of the population in a row in which all scores were the same.
        contradictions: those in which scores ranked members otherwise than returns in training.
        training: mean return of the episodes that ended at every place, or its donor's, in its latest generation; NaN
            where none has, and before the first of this process.
        seconds: how long every place's latest generation took by the clock; NaN before the first of this process.
        known: the latest score of every member, or of the member that it has become; NaN before the first.
        record: the best state there ever was.
        found: how good it was and where it was found, as the snapshot of it says.
        follower: grafts whose consequences are still noted.
    """

    hyperparams: dict[str, Float[Tensor, "pop"]]
    members: Int[Tensor, "left"] = dataclasses.field(init=False)
    steps: int = 0
    evaluation_steps: int = 0
    exploits: int = 0
    explorations: int = 0
    ties: int = 0
    contradictions: int = 0
    rounds: Int[Tensor, "pop"] = dataclasses.field(init=False)
    place_steps: Int[Tensor, "pop"] = dataclasses.field(init=False)
    age: Int[Tensor, "pop"] = dataclasses.field(init=False)
    heirs: Int[Tensor, "pop"] = dataclasses.field(init=False)
    training: Float[Tensor, "pop"] = dataclasses.field(init=False)
    seconds: Float[Tensor, "pop"] = dataclasses.field(init=False)
    known: Scores = dataclasses.field(init=False)
    record: Record | None = None
    found: dict[str, Any] | None = None
    follower: Follower = dataclasses.field(default_factory=Follower)

    def __post_init__(self) -> None:
        for name in (*COUNTS, "age"):
            setattr(self, name, torch.zeros(self.pop, dtype=torch.long))
        self.members, unknown = torch.arange(self.pop), torch.full((self.pop,), math.nan)
        self.training, self.seconds = unknown.clone(), unknown.double()
        self.known = Scores(unknown, unknown.clone(), torch.zeros(self.pop, dtype=torch.long))

    @property
    def pop(self) -> int:
        """Members of the population."""
        return len(next(iter(self.hyperparams.values())))

    @property
    def generation(self) -> int:
        """Number of the population's next generation: of those completed, rounded down where places differ."""
        return int(self.rounds[self.members].sum()) // len(self.members)

    @property
    def begun(self) -> int:
        """Generations that the population has completed, rounded up where places differ."""
        return -(-int(self.rounds[self.members].sum()) // len(self.members))

    @property
    def best(self) -> float:
        """The best score so far; NaN before the first."""
        return math.nan if self.found is None else float(self.found["score"])

    def take_in(self, part: Part, scores: Scores) -> None:
        """Takes in that some members have trained, and what everybody's score is now."""
        self.place_steps[part.members] += part.advance.steps // len(part.members)
        self.age[part.members] = part.advance.age
        own = part.advance.hyperparams
        self.hyperparams = {name: x.index_put((part.members,), own[name]) for name, x in self.hyperparams.items()}
        self.heirs[part.members] = 0
        self.training[part.members] = part.advance.scores.mean.to(self.training.dtype)
        self.known = scores

    def inherit(self, decision: Decision) -> None:
        """Takes in a decision: a recipient is worth as much as its donor, and as old; who ends has no score."""
        known, age = {name: getattr(self.known, name) for name in KNOWN}, self.age
        if self.record is not None:
            known = {name: torch.cat([column, getattr(self.record.scores, name)]) for name, column in known.items()}
            age = torch.cat([age, self.record.state.age])
        self.known = Scores(**{name: column[decision.parents] for name, column in known.items()})
        self.hyperparams, self.age = decision.hyperparams, age[decision.parents]
        unknown = torch.full((1,), math.nan)  # of the best state there ever was
        self.training = torch.cat([self.training, unknown])[decision.parents]
        self.heirs[decision.heirs] = 1
        ended = torch.tensor(decision.ended).long()
        self.members = self.members[~torch.isin(self.members, ended)]
        self.known.mean[ended], self.known.stderr[ended], self.known.episodes[ended] = math.nan, math.nan, 0

    def go_back(self, members: list[int], tensors: dict[str, Any]) -> None:
        """Takes in that members are again what they were in a snapshot, but for their hyperparameters.

        Args:
            members: who.
            tensors: the snapshot's.
        """
        rows = torch.tensor(members)
        then, now = tensors["known"], {name: getattr(self.known, name) for name in KNOWN}
        self.known = Scores(**{name: now[name].index_put((rows,), then[name][rows]) for name in KNOWN})
        self.heirs[rows], self.age[rows] = tensors["counts"]["heirs"][rows], tensors["member"].age[rows]

    def set_record(self, state: Member, found: dict[str, Any]) -> None:
        """Takes in a new best state, a population of one, with its score, standard error, episodes and origin."""
        score, stderr = (torch.tensor([found[name]]) for name in ("score", "stderr"))
        scores = Scores(score, stderr, torch.tensor([found["episodes"]]))
        self.record, self.found = Record(state, scores, found["generation"], found["member"]), found

    def tensors(self, member: Member, record: Member | None) -> dict[str, Any]:
        """The tensors of a snapshot: the whole population, the best state, and the run's own."""
        counts = {name: getattr(self, name).clone() for name in COUNTS}
        known = {name: getattr(self.known, name).clone() for name in KNOWN}
        own = {"member": member, "counts": counts, "known": known}
        return own if record is None else {**own, "record": record}

    def metadata(self) -> dict[str, Any]:
        """The rest of a snapshot, as JSON values."""
        counters = {name: getattr(self, name) for name in COUNTERS}
        return {
            **counters,
            "generation": self.generation,
            "members": self.members.tolist(),
            "found": self.found,
            "follower": self.follower.state_dict(),
        }

    def restore(self, tensors: dict[str, Any], metadata: dict[str, Any]) -> None:
        """Takes over what `tensors` and `metadata` returned."""
        for name in COUNTERS:
            setattr(self, name, metadata.get(name, 0))  # older points lack some
        self.members = torch.tensor(members_of(metadata, self.pop))
        member: Member = tensors["member"]
        self.age[self.members], own = member.age, member.hyperparams
        self.hyperparams = {name: x.index_put((self.members,), own[name]) for name, x in self.hyperparams.items()}
        for name in COUNTS:
            setattr(self, name, tensors["counts"][name])
        self.known = Scores(**tensors["known"])
        self.follower.load_state_dict(metadata["follower"])
        self.record = self.found = None
        if metadata["found"] is not None:
            self.set_record(tensors["record"], metadata["found"])
