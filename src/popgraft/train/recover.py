"""What follows when a shard is lost: all go back to a point, or those who were lost go on alone."""

import abc
from collections import Counter

import torch

from popgraft import tree
from popgraft.errors import ShardLost
from popgraft.execute import Executor, Loss
from popgraft.state import Member
from popgraft.train.announce import Announcer
from popgraft.train.points import Points
from popgraft.train.run_state import RunState

ATTEMPTS = 3
"""Times that a part may be lost in one generation before the run ends."""


class Recovery(abc.ABC):
    """Has a run go on after a loss.

    Args:
        executor: has lost a shard.
        state: of the run.
        points: where members are to be had.
        announcer: says what happens.
    """

    def __init__(self, executor: Executor, state: RunState, points: Points, announcer: Announcer) -> None:
        self._executor, self._state, self._points, self._announcer = executor, state, points, announcer
        self._losses: Counter[tuple[int, int]] = Counter()
        """How often every part has been lost, by its first member and generation."""

    @abc.abstractmethod
    def mend(self, loss: Loss) -> None:
        """Makes what is lost anew.

        Raises:
            ShardLost: it cannot be made anew, or is lost again and again.
        """

    def _begin(self, loss: Loss, when: str) -> None:
        """Raises ShardLost where there is no more to be done."""
        part = loss.members[0], int(self._state.rounds[loss.members[0]])
        self._losses[part] += 1
        if not self._executor.recovers or loss.members not in self._executor.parts:
            raise loss.error
        if self._losses[part] == ATTEMPTS:
            raise ShardLost(f"{loss.error}. It is the {ATTEMPTS}rd time in {when}, so the run ends") from loss.error
        self._announcer.warn(f"{loss.error}; making it anew")


class Together(Recovery):
    """All go back to the newest point, those of other shards too, so that scores are compared after the same number of
    steps: the results are those of a run that has lost nothing.
    """

    def mend(self, loss: Loss) -> None:
        """Goes back until that has been done without another loss."""
        while True:
            self._begin(loss, f"generation {self._state.generation + 1}")
            try:
                return self._go_back(loss)
            except ShardLost as another:
                loss = Loss(loss.members, another)

    def _go_back(self, loss: Loss) -> None:
        state, executor, generation = self._state, self._executor, self._state.generation
        self._points.wait()
        members, damages = executor.rebuild(loss, state.rounds), list[str]()
        point = self._points.newest(damages.append)
        assert point is not None, "a run that recovers begins with a point"
        then = self._points.load(point, executor.export(torch.tensor(executor.members[:1])))
        executor.restore(then, state.members.tolist())
        for damage in damages:
            self._announcer.event("damaged", damage, generation)
        text = f"{loss.error}; members {members} are rebuilt, and all go on with generation {state.generation + 1}"
        self._announcer.event("lost", text, generation)
        for lost in self._points.rewind(point):
            self._announcer.damage(lost)
        executor.restart(state.generation)
        executor.begin(state.rounds)


class Alone(Recovery):
    """A lost part begins its generation again, while all others go on."""

    def __init__(self, executor: Executor, state: RunState, points: Points, announcer: Announcer) -> None:
        super().__init__(executor, state, points, announcer)
        executor.rescue = self._from_disk

    def mend(self, loss: Loss) -> None:
        """Has the lost part made anew."""
        self._begin(loss, "one generation")
        members = self._executor.rebuild(loss, self._state.rounds)
        text = f"{loss.error}; members {members} are rebuilt, and begin their generation again"
        self._announcer.event("lost", text)

    def _from_disk(self, members: list[int], like: Member) -> Member:
        """Members whose machine is gone, as the newest snapshot has them."""
        point = self._points.newest(self._announcer.warn)
        assert point is not None, "a run that recovers begins with a point"
        tensors = self._points.read(point, like)
        rows: Member = tree.gather(tensors["member"], torch.tensor(members))
        self._state.go_back(members, tensors)
        rows.hyperparams = {name: values[members] for name, values in self._state.hyperparams.items()}  # as on record
        text = f"the machine on which members {members} lay ready is gone; they go on from snapshot {point[0]}"
        self._announcer.warn(text)
        self._announcer.event("lost", text)
        return rows
