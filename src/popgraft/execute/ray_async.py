"""Shards as actors, each at its own pace: one that has trained for a generation decides, grafts and goes on at once.

After every generation a shard lays its members ready, one by one: a donor is never waited for, and is what was scored.
What a member becomes by a graft is worked out from what lies ready, and lies ready before the shard takes it in. Ray
holds all of it in the driver's name, so that it outlives the actor; it is what is exported, saved, and given to whoever
takes a lost actor's place.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray
import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.errors import ConfigError, ShardLost
from popgraft.execute.base import Loss, Part, Stopped, evaluation_seed
from popgraft.execute.ray import ATTENTION, RayShards
from popgraft.execute.ray_actor import Rows, pack, unpack
from popgraft.execute.travel import deliveries, recorded
from popgraft.execute.worker import Message
from popgraft.inheritance import overwrite_
from popgraft.optim import make_rule, momentum_of
from popgraft.state import Decision, Member, Record

ARRIVAL = 60.0
"""Seconds that members may take to arrive from where they lie ready."""


@dataclasses.dataclass
class Agenda:
    """What a shard does from the end of one generation to the end of the next.

    Attributes:
        messages: all of it.
        left: those that have not been answered yet, the first of which has been sent.
        answers: the others' answers, by kind.
    """

    messages: list[Message] = dataclasses.field(default_factory=list)
    left: deque[Message] = dataclasses.field(default_factory=deque)
    answers: dict[str, Any] = dataclasses.field(default_factory=dict)


class AsyncRayExecutor(RayShards):
    """Runs shards that do not wait for each other: each is a part of the population."""

    def remake(self, members: list[int]) -> None:
        """Makes new actors, whose members lie ready."""
        super().remake(members)
        self._agendas = [Agenda() for _ in self.shards]
        self._laid = self._laid_ready(members)

    @property
    def parts(self) -> list[list[int]]:
        """The members of every shard."""
        return [shard.members for shard in self.shards]

    def begin(self, rounds: Int[Tensor, "pop"]) -> None:
        """Has every shard train for a generation."""
        for place in range(len(self.shards)):
            self._go_on(place, rounds)

    def next(self, on_update: Callable[[int], None], stop: Callable[[], bool]) -> Part | Loss | Stopped:
        """Waits for a shard that has trained for a generation, or is lost."""
        while not stop():
            for place in self._ready(set(range(len(self.shards))), ATTENTION):
                shard, agenda = self.shards[place], self._agendas[place]
                try:
                    kind, content = ("answer", shard.get(shard.awaited)) if shard.arriving else shard.receive()
                except ShardLost as error:
                    return Loss(shard.members, error)
                if kind == "update":
                    on_update(len(shard.members))
                elif kind == "answer" and self._take_in(place, content):
                    return Part(torch.tensor(shard.members), agenda.answers["advance"], agenda.answers.get("evaluate"))
        return Stopped()

    def inherit(
        self, members: list[int], decision: Decision, rounds: Int[Tensor, "pop"], record: Record | None = None
    ) -> None:
        """Works out what the shard's heirs become of donors that lie ready, and has it go on with them.

        Raises:
            ConfigError: weights are to be renewed.
        """
        if decision.renewals:
            raise ConfigError(
                f"the strategy renews weights of member {min(decision.renewals)}, which would lie ready as they were; "
                "set execute.mode: lockstep"
            )
        place = self._home[members[0]]
        needed, rows = deliveries(decision, self.parts)[place], self._lying_ready(members)
        best = recorded(record, len(decision.parents))
        donors = needed.taken([(needed.living, self._lying_ready(needed.living)), *best])
        values = [decision.hyperparams[name][members] != column for name, column in rows.hyperparams.items()]
        heirs, units = overwrite_(rows, members, decision, donors, self.config)
        changed = sorted({*heirs, *torch.stack(values).any(0).nonzero().flatten().tolist()})
        for row in changed:
            self._lay(members[row], pack(tree.slice(rows, row, row + 1)))
        laid = {members[row]: self._laid[members[row]] for row in changed}
        move_in: Message = ("move_in", (laid, needed.heirs, units, int(rounds.sum())))
        self._go_on(place, rounds, [move_in] if changed else [])

    def rebuild(self, loss: Loss, rounds: Int[Tensor, "pop"]) -> list[int]:
        """Puts a new actor in the place of a lost one, which begins its agenda again, with what lies ready."""
        place = self._home[loss.members[0]]
        rows, agenda = self._lying_ready(loss.members), self._agendas[place]
        self._remake(place)
        back: list[Message] = [("shard", ()), ("restore", (pack(rows),)), ("restart", (int(rounds.sum()),))]
        agenda.left, agenda.answers = deque([*back, *agenda.messages]), {}
        return loss.members

    def checkpoint(self, rounds: Int[Tensor, "pop"]) -> Member:
        """Everybody as they lie ready."""
        return self.export(torch.arange(len(self._home)))

    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """Members as they lie ready: as they were scored, or have become by a graft since then."""
        return self._lying_ready(members.tolist())

    def vectors(self) -> tuple[Float[Tensor, "pop n"], Float[Tensor, "pop n"] | None]:
        """Everybody's parameters and running averages of gradients, as they lie ready."""
        everyone = self.export(torch.arange(len(self._home)))
        rule = make_rule(self.config.model, [everyone.params.shape[1]])
        return everyone.params, momentum_of(rule, everyone.optimizer)

    def overwrite(self, state: Member) -> None:
        """Sends every shard its members."""
        super().overwrite(state)
        self._laid = self._laid_ready(self.members)

    def _go_on(self, place: int, rounds: Int[Tensor, "pop"], graft: Sequence[Message] = ()) -> None:
        """Has a shard carry out a graft, and train for a generation."""
        members = self.parts[place]
        seed = evaluation_seed(self.config, int(rounds[members].max()))
        evaluation: list[Message] = [] if seed is None else [("evaluate", (seed,))]
        advance: Message = ("advance", (self.config.pbt.perturbation_interval,))
        messages = [*graft, advance, *evaluation, ("lay", (members,))]
        self._agendas[place] = Agenda(messages, deque(messages))
        self._send(place)

    def _lying_ready(self, members: Sequence[int]) -> Member:
        """Members that lie ready; where the machine on which some of them lay is gone, as they are found elsewhere."""
        found = {member: self._get(member) for member in members}
        gone = [member for member, rows in found.items() if rows is None]
        if gone:
            blank = tree.map(lambda leaf: leaf.new_zeros((len(self._home), *leaf.shape[1:])), self._like)
            rescued = self.rescue(gone, blank)
            for row, member in enumerate(gone):
                packed = found[member] = pack(tree.slice(rescued, row, row + 1))
                self._lay(member, packed)
        there = [unpack(rows, self._like) for member in members if (rows := found[member])]
        return tree.concatenate([self._like, *there])

    def _get(self, member: int) -> Rows | None:
        """A member that lies ready; None where it is gone, or does not arrive."""
        self._head.check()
        try:
            found: Rows = ray.get(self._laid[member], timeout=ARRIVAL)
        except ray.exceptions.RayError:
            return None
        return found

    def _lay(self, member: int, rows: Rows) -> None:
        self._laid[member] = self._head.put(rows)

    def _send(self, place: int) -> None:
        kind, arguments = self._agendas[place].left[0]
        self.shards[place].begin(kind, *arguments)

    def _take_in(self, place: int, answer: Any) -> bool:
        """Goes on after an answer; whether it was the last one of a generation.

        Members that are laid ready count once they outlive their actor: that is heard of separately.
        """
        agenda, shard = self._agendas[place], self.shards[place]
        kind, arguments = agenda.left[0]
        if kind == "lay" and not shard.arriving:
            shard.arriving = shard.fetch(len(arguments[0]))
            return False
        if shard.arriving:
            self._laid.update(zip(arguments[0], shard.arriving[:-1], strict=True))
            shard.arriving = []
        agenda.answers[kind] = answer
        agenda.left.popleft()
        if agenda.left:
            self._send(place)
        return not agenda.left
