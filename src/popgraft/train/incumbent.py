"""The best agent there ever was, and who takes its place."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft import tree
from popgraft.config import Config
from popgraft.errors import EnvironmentFault
from popgraft.execute import Executor, Part
from popgraft.train.announce import Announcer
from popgraft.train.contest import Contest, Estimate
from popgraft.train.observer import readable
from popgraft.train.points import Points
from popgraft.train.run_state import RunState

FEWEST = 3
"""Members of the last population that the incumbent meets, at least; else a quarter of them."""


class Incumbent:
    """Keeps the best agent in `state.record`, and saves it.

    The score of a generation flatters whoever is best among many, and scores of two generations are of other episodes.
    So whoever scores higher than the incumbent has to beat it on the same fresh episodes, and these say what either is
    worth. Where fitness is that of training, whose episodes cannot be repeated, the scores are compared.

    Args:
        config: the run.
        state: what is known so far.
        executor: has the members.
        points: saves the incumbent.
        announcer: says what happens.
        contest: has agents play against each other.
    """

    def __init__(
        self,
        config: Config,
        state: RunState,
        executor: Executor,
        points: Points,
        announcer: Announcer,
        contest: Contest,
    ) -> None:
        self._config, self._state, self._executor, self._points = config, state, executor, points
        self._announcer, self._contest = announcer, contest
        self._sign = 1 if config.pbt.metric_mode == "max" else -1
        self._repeats = config.pbt.fitness == "evaluation"

    @property
    def has_reached_score(self) -> bool:
        """Whether it is as good as `stop_at_score`."""
        threshold = self._config.stop_at_score
        return threshold is not None and self._sign * self._state.best >= self._sign * threshold

    def meet(self, part: Part) -> None:
        """Lets the best of those that have just been scored challenge the incumbent, if it scores higher."""
        state, worth = self._state, self._worth(part.members)
        row = int(worth.argmax())
        if float(worth[row]) > (-math.inf if state.record is None else self._sign * state.best):
            member = int(part.members[row])
            self._contend({member: int(state.rounds[member])}, "generation", plays=self._repeats)

    def run_off(self) -> None:
        """Has the incumbent meet the best of the last population, who may be better though they never scored higher."""
        state = self._state
        if state.record is None:
            return
        worth = self._worth(torch.arange(state.pop)).masked_fill(state.heirs > 0, -math.inf)  # heirs are their donors
        count = max(FEWEST, -(-len(state.members) // 4))
        order = worth.argsort(descending=True, stable=True)[:count].tolist()
        latest = {member: int(state.rounds[member]) - 1 for member in order if worth[member] > -math.inf}
        if latest.get(state.record.place) == state.record.generation:
            del latest[state.record.place]
        if latest:
            self._contend(latest, "last", plays=True)

    def _contend(self, challengers: dict[int, int], occasion: str, plays: bool) -> None:
        """Keeps the best of the incumbent and its challengers.

        Args:
            challengers: members, each with the generation that has made it what it is.
            occasion: names the episodes, with the number of generations.
            plays: whether they play; else, and where they cannot, the last one is the best in a generation, and the
                incumbent at the end.
        """
        state = self._state
        rows = self._executor.export(torch.tensor([*challengers]))
        known = [self._found(member, generation) for member, generation in challengers.items()]
        if state.record is not None and state.found is not None:
            rows, known = tree.concatenate([state.record.state, rows]), [state.found, *known]
        best, worth = (0 if occasion == "last" else len(known) - 1), None
        if plays:
            try:
                best, played, steps = self._contest(rows, occasion, int(state.rounds.sum()))
                worth, state.evaluation_steps = played[best], state.evaluation_steps + steps
            except EnvironmentFault as error:
                self._announcer.event("environment", f"the best agents cannot be compared: {error}")
        found = known[best] if worth is None or not self._repeats else _revised(known[best], worth)
        if best and occasion == "last" and worth is not None:
            text = f"member {found['member']} of the last generation takes the place of the best agent, which scores"
            then = readable(played[0].mean, played[0].stderr)
            now = readable(worth.mean, worth.stderr)
            self._announcer.event("best", f"{text} {then} where it scores {now}")
        if found is not state.found:
            agent = tree.slice(rows, best, best + 1)
            self._points.save_best(agent, found)
            state.set_record(agent, found)

    def _worth(self, members: Int[Tensor, "members"]) -> Float[Tensor, "members"]:
        """Scores of which more is better, −∞ where there is none."""
        worth = self._sign * self._state.known.mean[members]
        return worth.masked_fill(~worth.isfinite(), -math.inf)

    def _found(self, member: int, generation: int) -> dict[str, Any]:
        known = self._state.known
        return {
            "generation": generation,
            "member": member,
            "score": float(known.mean[member]),
            "stderr": float(known.stderr[member]),
            "episodes": int(known.episodes[member]),
            "steps": self._state.steps,
        }


def _revised(found: dict[str, Any], worth: Estimate) -> dict[str, Any]:
    """An agent's score after a contest: of all fresh episodes; `claimed_score` is the one that made it known."""
    if "claimed_score" in found:
        worth = Estimate(found["score"], found["stderr"], found["episodes"]).joined(worth)
    claimed = {f"claimed_{name}": found[name] for name in ("score", "stderr")}
    return {**claimed, **found, "score": worth.mean, "stderr": worth.stderr, "episodes": worth.episodes}
