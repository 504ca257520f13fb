"""The training loop for shards that do not wait for each other."""

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from popgraft import tree
from popgraft.config import Config
from popgraft.errors import PopulationLost, ShardLost
from popgraft.execute import Part
from popgraft.pbt import Choice
from popgraft.state import Decision, Member
from popgraft.train.aftermath import distances
from popgraft.train.loop import Training, logger
from popgraft.train.points import newest_point, read_point, save_point
from popgraft.train.recover import ATTEMPTS
from popgraft.train.standing import standing_of

if TYPE_CHECKING:
    from popgraft.execute.ray_async import AsyncRayExecutor, Loss


def training_class(config: Config) -> type[Training]:
    """The loop that `execute.mode` asks for."""
    return AsyncTraining if config.execute.mode == "async" else Training


class AsyncTraining(Training):
    """A run in which every shard decides when it has trained for a generation, and nobody waits.

    A member is compared with those that have about as much training behind them, wherever they have had it: whose `age`
    differs from its own by `execute.max_lag` generations at most. Nobody inherits from an heir before it has trained.
    """

    executor: "AsyncRayExecutor"

    def _start(self) -> None:
        self.executor.rescue = self._from_disk
        super()._start()
        self._saved, self._measured = self.state.generation, -1
        for members in self.executor.parts:
            self._go_on(members)

    def _recover(self, error: ShardLost) -> None:
        raise error  # what could be made anew has been

    def _next_part(self) -> Part | None:
        """Waits for the next shard that has trained for a generation; None if a stop came in between."""
        state, config = self.state, self.config
        update, steps = config.env.num_envs * config.model.n_steps, state.steps

        def on_update(members: int) -> None:
            nonlocal steps
            steps += members * update
            self._tell("on_update", min(steps, config.generations * config.steps_per_generation))

        while True:
            news = self.executor.next(on_update, self.stop)
            if news is None:
                return None
            if not isinstance(news, Part):
                self._replace(news)
                continue
            state.steps += news.advance.steps
            number = int(state.rounds[news.members].max())
            self._report_faults(news.advance.faults | (news.scores.faults if news.scores else {}), number)
            return news

    def _choose(self, part: Part) -> Decision:
        """Asks the strategy for those who have trained, once for all of the same age."""
        state, members = self.state, part.members
        number = int(state.rounds.sum())
        whole = Choice(torch.arange(state.pop))
        for age in state.age[members].unique().tolist():
            deciding = members[state.age[members] == age]
            compared, heirs = self._comparable(age, deciding)
            try:
                known = {"compared": compared, "deciding": deciding, "heirs": heirs, "together": False}
                standing = standing_of(self.config, state, number, self.database, **known)
                whole = whole.joined(self.strategy(standing).of_those_who_decide(standing))
            except PopulationLost:
                if not self._at_work.any():
                    raise
                names = ", ".join(str(member) for member in deciding.tolist())
                text = f"no healthy member has been scored yet, so nobody takes the place of member {names}"
                self.tell_event("waiting", text, int(state.rounds[deciding[0]]))
            number += len(deciding)
        return whole.decision(state.hyperparams, state.record, self.config.pbt)

    def _comparable(self, age: int, deciding: Int[Tensor, "deciding"]) -> tuple[Int[Tensor, "compared"], int]:
        """Those who decide, and others of about their age: scored members, and how many are heirs.

        Where no scored one is healthy, members of any age: somebody must rescue.
        """
        state, config = self.state, self.config
        heirs, scored = state.heirs > 0, ~self._at_work
        near = (state.age - age).abs() <= config.execute.max_lag * config.pbt.perturbation_interval
        found = (scored & near).nonzero().flatten()
        if not state.known.mean[found].isfinite().any():
            found = scored.nonzero().flatten()
        return found, int((heirs & near).sum())

    @property
    def _at_work(self) -> Bool[Tensor, "pop"]:
        """Who has no score of its own yet: it has never finished a generation, or none as the heir that it is."""
        return (self.state.heirs > 0) | (self.state.place_steps == 0)

    def _graft(self, part: Part, decision: Decision) -> None:
        """Tells the shard what it inherits, and lets it go on."""
        members = part.members.tolist()
        number = int(self.state.rounds.sum()) + len(members)  # names fresh seats: different for every part
        self.executor.inherit(members[0], decision, number, self._needed_record(decision))
        self._go_on(members, completed=1)

    def _distances(self) -> dict[str, float]:
        """How far apart members are, once for every generation of the population."""
        if self.state.generation == self._measured:
            return {}
        self._measured = self.state.generation
        everyone = self.executor.export(torch.arange(self.state.pop))  # once for both
        return distances(everyone.params, everyone.optimizer.momentum)

    def _save_when_due(self) -> None:
        interval = self.config.snapshots.interval
        if self.is_over or self.state.generation // interval > self._saved // interval:
            self._saved = self.state.generation
            save_point(self)

    def _go_on(self, members: list[int], completed: int = 0) -> None:
        number = int(self.state.rounds[members].max()) + completed
        self.executor.go_on(members[0], self._evaluation_seed(number))

    def _replace(self, loss: "Loss") -> None:
        """Has a lost shard made anew, while all others go on.

        Raises:
            ShardLost: it has been lost again and again, or cannot be made anew.
        """
        if not self.executor.recovers:
            raise loss.error
        if loss.times == ATTEMPTS:
            raise ShardLost(f"{loss.error}. It is the {ATTEMPTS}rd time in one generation, so the run ends")
        logger.warning("%s; making it anew", loss.error)
        self.executor.replace(loss, int(self.state.rounds.sum()))
        self.tell_event("lost", f"{loss.error}; members {loss.members} are rebuilt, and begin their generation again")

    def _from_disk(self, members: list[int]) -> Member:
        """Members whose machine is gone, as the newest snapshot has them."""
        self.background.wait()
        point = newest_point(self.run.folder, lambda damage: logger.warning("%s", self.place.said(damage)))
        assert point is not None, "a run that recovers begins with a point"
        tensors = read_point(self, *point, self.executor.blank())
        rows: Member = tree.gather(tensors["member"], torch.tensor(members))
        self.state.go_back([member for member in members if not self.executor.is_to_inherit(member)], tensors)
        rows.hyperparams = {name: values[members] for name, values in self.state.hyperparams.items()}  # as on record
        text = f"the machine on which members {members} lay ready is gone; they go on from snapshot {point[0]}"
        logger.warning("%s", text)
        self.tell_event("lost", text)
        return rows
