"""Shards that work at the same time, wherever each of them runs: what is said to them, and when all have answered."""

import abc
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

from popgraft.execute.base import Advance, Executor, join_scores
from popgraft.execute.lockstep import LockstepExecutor
from popgraft.execute.worker import Message
from popgraft.state import Scores

OnMessage = Callable[[int, str, Any, set[int]], None]


def passed_on(kind: str, content: Any) -> Message:
    """A message of a shard as it is; an error is raised, and a log record goes to its logger too."""
    if kind == "error":
        raise content
    if kind == "log":
        logging.getLogger(content.name).handle(content)
    return kind, content


class Remote(Protocol):
    """A shard somewhere else, as its executor sees it."""

    def begin(self, kind: str, *arguments: Any) -> None:
        """Sends a message, and does not wait for what comes of it."""
        ...

    def receive(self) -> Message:
        """The next message of the shard.

        Raises:
            ShardLost: there will be none.
            Exception: what went wrong in the shard.
        """
        ...


class ParallelShards(Executor):
    """Says things to all shards at once, and hears their answers.

    Attributes:
        shards: they hold the population in order.
    """

    shards: Sequence[Remote]

    def restart(self, generation: int) -> None:
        """Gives every place a fresh seat."""
        self._begin("restart", generation)
        self._answers()

    def _begin(self, kind: str, *arguments: Any, places: Iterable[int] | None = None) -> None:
        for place in range(len(self.shards)) if places is None else places:
            self.shards[place].begin(kind, *arguments)

    def _answers(self, on_message: OnMessage | None = None, places: Iterable[int] | None = None) -> list[Any]:
        """One answer of every shard, in order; other messages go to `on_message` with the places still at work.

        A shard that fails raises here once all others have answered, so that their members are whole.
        """
        answers: dict[int, Any] = {}
        errors: list[Exception] = []
        busy = set(range(len(self.shards)) if places is None else places)
        while busy:
            for place in self._ready(busy):
                try:
                    kind, content = self.shards[place].receive()
                except Exception as error:
                    kind, content = "error", error
                    errors.append(error)
                if kind == "answer":
                    answers[place] = content
                if kind in ("answer", "error"):
                    busy.remove(place)
                if on_message is not None:
                    on_message(place, kind, content, busy)
        if errors:
            raise errors[0]
        return [answers[place] for place in sorted(answers)]

    @abc.abstractmethod
    def _ready(self, places: set[int]) -> list[int]:
        """Places whose shard has something to say, or is lost; waits for one."""


class LockstepShards(ParallelShards, LockstepExecutor):
    """Runs all shards at once and in step."""

    def advance(self, updates: int, stop: Callable[[], bool]) -> Advance:
        """Advances all shards; `stop` is asked after every update of the first.

        To stop, all shards are halted between two updates, and then told to go on to where the furthest one is.
        """
        self._begin("advance", updates)
        halted: dict[int, int] = {}
        stopping = ended = False

        def on_message(place: int, kind: str, content: Any, busy: set[int]) -> None:
            nonlocal stopping, ended
            ended |= kind == "answer"
            if kind == "halted":
                halted[place] = content
            elif kind == "update" and place == 0 and not stopping and stop():
                stopping = True
                self._begin("halt", places=busy)
            if halted and busy == set(halted):
                self._begin("until", updates if ended else max(halted.values()), places=busy)
                halted.clear()

        return Advance.join(self._answers(on_message))

    def evaluate(self, seed: int) -> Scores:
        """Scores every member."""
        self._begin("evaluate", seed)
        return join_scores(self._answers())
