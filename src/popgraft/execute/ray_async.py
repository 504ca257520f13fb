"""Shards as actors, each at its own pace: one that has trained for a generation decides, grafts and goes on at once.

After every generation a shard lays its members ready, one by one. Whoever inherits from one of them fetches it there:
a donor is never waited for, and is what was scored. Ray holds what was laid in the driver's name, so that it outlives
the actor; it is what is exported, saved, and given to the actor that takes a lost one's place.
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
from popgraft.errors import ShardLost
from popgraft.execute.base import Part, assembled
from popgraft.execute.ray import ATTENTION, RayExecutor
from popgraft.execute.ray_actor import Reference, Rows, donated, pack, unpack
from popgraft.execute.worker import Message
from popgraft.inheritance import overwrite_
from popgraft.state import Decision, Member, Record

ARRIVAL = 60.0
"""Seconds that members may take to arrive from where they lie ready."""


@dataclasses.dataclass(frozen=True)
class Loss:
    """A shard that is gone.

    Attributes:
        place: of the shard.
        members: those it held.
        error: how it was lost.
        times: how often since its last generation, this time included.
    """

    place: int
    members: list[int]
    error: ShardLost
    times: int


@dataclasses.dataclass
class Turn:
    """What a shard does from the end of one generation to the end of the next.

    Attributes:
        graft: messages of the graft that comes first; empty once it is done.
        generation: messages of the generation.
        left: those that have not been answered yet, the first of which has been sent.
        answers: the others' answers, by kind.
        losses: how often the shard has been lost meanwhile.
    """

    graft: list[Message] = dataclasses.field(default_factory=list)
    generation: list[Message] = dataclasses.field(default_factory=list)
    left: deque[Message] = dataclasses.field(default_factory=deque)
    answers: dict[str, Any] = dataclasses.field(default_factory=dict)
    losses: int = 0


class AsyncRayExecutor(RayExecutor):
    """Runs shards that do not wait for each other: `go_on` for every shard, and again after every part from `next`.

    Args:
        config: the run; `execute` says where it runs.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source; it travels to the actors by cloudpickle.

    Attributes:
        rescue: finds members that lay on a machine that is gone; from then on those lie ready.

    Raises:
        ConfigError: there is no cluster at `execute.address`.
    """

    rescue: Callable[[list[int]], Member]

    def _prepare(self) -> None:
        self._turns = [Turn() for _ in self.shards]
        self._laid: dict[int, Reference] = {}
        self._lay_everyone()

    @property
    def parts(self) -> list[list[int]]:
        """The members of every shard."""
        return [shard.members for shard in self.shards]

    def go_on(self, member: int, seed: int | None) -> None:
        """Has the shard of a member carry out its graft, if there is one, and train for a generation.

        Args:
            member: one of those in the shard.
            seed: names the episodes of the evaluation afterwards; None: there is none.
        """
        place = self._home[member]
        turn, config = self._turns[place], self._arguments[0]
        evaluation: list[Message] = [] if seed is None else [("evaluate", (seed,))]
        advance, lay = ("advance", (config.pbt.perturbation_interval,)), ("lay", (self.parts[place],))
        turn.generation = [advance, *evaluation, lay]
        turn.left.extend([*turn.graft, *turn.generation])
        self._send(place)

    def next(self, on_update: Callable[[int], None], stop: Callable[[], bool]) -> Part | Loss | None:
        """Waits for a shard that has trained for a generation, or is lost; None if a stop came in between.

        Args:
            on_update: is told how many members have made an update.
            stop: whether to stop.
        """
        while not stop():
            for place in self._ready(set(range(len(self.shards))), ATTENTION):
                shard, turn = self.shards[place], self._turns[place]
                try:
                    kind, content = ("answer", shard.get(shard.awaited)) if shard.arriving else shard.receive()
                except ShardLost as error:
                    turn.losses += 1
                    return Loss(place, shard.members, error, turn.losses)
                if kind == "update":
                    on_update(len(shard.members))
                elif kind == "answer" and self._take_in(place, content):
                    self._turns[place] = Turn()
                    return Part(torch.tensor(shard.members), turn.answers["advance"], turn.answers.get("evaluate"))
        return None

    def inherit(self, member: int, decision: Decision, generation: int, record: Record | None = None) -> None:
        """Has the shard of a member carry out a decision before it goes on; donors are those that lie ready now."""
        place = self._home[member]
        members = self.parts[place]
        heirs = [member for member in members if member in decision.reasons]
        donors = {int(decision.parents[heir]) for heir in heirs} & self._home.keys()  # the record is nobody's
        own = sorted(donors & set(members))
        others = sorted(donors - set(own))
        self._fetched(others)  # what is gone is replaced here, not missed over there
        given = [([donor], self._laid[donor]) for donor in others]
        if record is not None:
            given.append(([len(decision.parents)], self._head.put(pack(record.state))))
        changed = members if self._arguments[0].pbt.explore_always else heirs
        if changed:
            take = ("take", ([self._head.put(decision)], own, given, generation))
            self._turns[place].graft = [take, ("lay", (changed,))]

    def replace(self, loss: Loss, generation: int) -> None:
        """Puts a new actor in the place of a lost one; it begins again what the lost one was at, with what lies ready.

        Args:
            loss: what was lost.
            generation: names its fresh seats.
        """
        place, turn = loss.place, self._turns[loss.place]
        rows = self.lying_ready(loss.members)
        self._remake(place)
        back: list[Message] = [("shard", ()), ("restore", (pack(rows),)), ("restart", (generation,))]
        turn.left, turn.answers = deque([*back, *turn.graft, *turn.generation]), {}

    def lying_ready(self, members: Sequence[int]) -> Member:
        """Members as they were laid ready last; from `rescue` where the machine on which some of them lay is gone."""
        return tree.concatenate([unpack(rows, self._like) for rows in self._fetched(members)])

    def is_to_inherit(self, member: int) -> bool:
        """Whether a member becomes somebody else by a graft that has not been carried out yet."""
        graft = self._turns[self._home[member]].graft
        return bool(graft) and member in ray.get(graft[0][1][0][0]).reasons

    def blank(self) -> Member:
        """A population of the right structure, all zeros."""
        return tree.map(lambda leaf: leaf.new_zeros((len(self._home), *leaf.shape[1:])), self._like)

    def export(self, members: Int[Tensor, "rows"]) -> Member:
        """Members as they were laid ready last, and as grafts since then leave them."""
        wanted = members.tolist()
        parts, order = [], []
        for place, all_here in enumerate(self.parts):
            own = [member for member in wanted if member in all_here]
            if own:
                rows = torch.tensor([all_here.index(member) for member in own])
                grafted = self._turns[place].graft
                parts.append(tree.gather(self._heirs(place), rows) if grafted else self.lying_ready(own))
                order += own
        return assembled(parts, order, wanted)

    def weights(self) -> Float[Tensor, "pop n"]:
        """Everybody's parameters, as they were laid ready last."""
        return self.export(torch.arange(len(self._home))).params

    def momenta(self) -> Float[Tensor, "pop n"] | None:
        """Everybody's running averages of gradients, as they were laid ready last."""
        return self.export(torch.arange(len(self._home))).optimizer.momentum

    def restore(self, member: Member) -> None:
        """Sends every shard its members."""
        super().restore(member)
        self._lay_everyone()

    def _fetched(self, members: Sequence[int]) -> list[Rows]:
        """`lying_ready`, packed one by one."""
        found = {member: self._get(member) for member in members}
        gone = [member for member, rows in found.items() if rows is None]
        if gone:
            rescued = self.rescue(gone)
            for row, member in enumerate(gone):
                found[member] = pack(tree.slice(rescued, row, row + 1))
                self._laid[member] = self._head.put(found[member])
        return [rows for member in members if (rows := found[member]) is not None]

    def _get(self, member: int) -> Rows | None:
        """A member that lies ready; None where it is gone, or does not arrive."""
        self._head.check()
        try:
            found: Rows = ray.get(self._laid[member], timeout=ARRIVAL)
        except ray.exceptions.RayError:
            return None
        return found

    def _lay_everyone(self) -> None:
        for shard in self.shards:
            shard.begin("lay", shard.members)
        self._answers()
        for shard in self.shards:
            *laid, sure = shard.fetch(len(shard.members))
            shard.get(sure)
            self._laid.update(zip(shard.members, laid, strict=True))

    def _heirs(self, place: int) -> Member:
        """The members of a shard as the graft leaves them that it has been told of, whether carried out yet or not."""
        (told,), own, given, _ = self._turns[place].graft[0][1]
        members = self.parts[place]
        found = self.lying_ready(members)
        rows = tree.gather(found, torch.tensor([members.index(member) for member in own]).long())
        decision: Decision = ray.get(told)
        overwrite_(found, members, decision, donated(decision, members, own, rows, given), self._arguments[0])
        return found

    def _send(self, place: int) -> None:
        kind, arguments = self._turns[place].left[0]
        self.shards[place].begin(kind, *arguments)

    def _take_in(self, place: int, answer: Any) -> bool:
        """Goes on after an answer; whether it was the last one of a generation.

        Members that are laid ready count once they outlive their actor: that is heard of separately.
        """
        turn, shard = self._turns[place], self.shards[place]
        message = kind, arguments = turn.left[0]
        if kind == "lay" and not shard.arriving:
            shard.arriving = shard.fetch(len(arguments[0]))
            return False
        if shard.arriving:
            self._laid.update(zip(arguments[0], shard.arriving[:-1], strict=True))
            shard.arriving = []
        turn.answers[kind] = answer
        turn.left.popleft()
        if turn.graft and message is turn.graft[-1]:
            turn.graft = []
        if turn.left:
            self._send(place)
        return not turn.left
