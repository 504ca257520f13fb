"""Strategies of somebody who knows what docs/extending.md says, and nothing else of the package."""

from typing import ClassVar

import torch

from popgraft.pbt import Choice, EachByItself, Exploit, Strategy
from popgraft.pbt.ranking import rank


class RankWeighted(Exploit):
    """The worst copies one of the others, the r-th best with a probability in proportion to 1/r^power."""

    def __init__(self, config, power=1.0):
        super().__init__(config)
        self.power = power

    def __call__(self, standing):
        *others, worst = rank(standing.scores.mean, standing.mode).tolist()
        weights = torch.arange(1, standing.pop).double() ** -self.power
        parents = torch.arange(standing.pop)
        parents[worst] = int(standing.rng("exploit").choice(others, p=(weights / weights.sum()).numpy()))
        return parents


class Doubled(EachByItself):
    """Twice the donor's value, as far as the space goes."""

    def explored(self, space, value, rng):
        return min(2 * value, space.bounds[1])


class Crossed(Strategy):
    """Weights of the best with hyperparameters of the second best, times a factor that grows with every decision.

    The second worst keeps its weights and takes the best one's hyperparameters.
    """

    def __init__(self, config, seed, factor=1.0):
        super().__init__(config, seed)
        self.factor, self.decisions = factor, 0

    def __call__(self, standing):
        self.decisions += 1
        best, second, *_, third, worst = rank(standing.scores.mean, standing.mode).tolist()
        parents, donors = torch.arange(standing.pop), torch.arange(standing.pop)
        parents[worst], donors[worst], donors[third] = best, second, best
        assert len(standing.history) == standing.pop * standing.number
        rate = standing.hyperparams[second]["learning_rate"] * (1 + self.factor * self.decisions)
        return Choice(parents, donors, {worst: {"learning_rate": min(rate, 0.1)}}, {worst: "crossed"})

    def statistics(self):
        return {"decisions": float(self.decisions)}

    def state_dict(self):
        return {"decisions": self.decisions}

    def load_state_dict(self, state):
        self.decisions = state["decisions"]


class Turns(Strategy):
    """The worst of those who decide goes on as the best, with a thousandth more of the learning rate every time."""

    def __init__(self, config, seed):
        super().__init__(config, seed)
        self.turns = 0

    def __call__(self, standing):
        self.turns += 1
        order = [who for who in rank(standing.scores.mean, standing.mode).tolist() if who in standing.compared]
        worst = [who for who in order if who in standing.deciding][-1]
        parents = torch.arange(standing.pop)
        parents[worst] = order[0]
        return Choice(parents, explored={worst: {"learning_rate": 0.001 * self.turns}})

    def state_dict(self):
        return {"turns": self.turns}

    def load_state_dict(self, state):
        self.turns = state["turns"]


class Asked(Strategy):
    """For members that are asked one at a time: the worst takes weights of the best and values of the second best."""

    def __call__(self, standing):
        best, second, *_, third, worst = rank(standing.scores.mean, standing.mode).tolist()
        parents, donors = torch.arange(standing.pop), torch.arange(standing.pop)
        parents[worst], donors[worst], donors[third] = best, second, best
        return Choice(parents, donors)


class Forgetful(Strategy):
    """Keeps a state that no JSON file gives back: its key is a number."""

    def __call__(self, standing):
        return Choice(torch.arange(standing.pop))

    def state_dict(self):
        return {"by_member": {0: 1.0}}


class Nobody(Strategy):
    """Names parents that there are not."""

    def __call__(self, standing):
        return Choice(torch.full((standing.pop,), standing.pop + 1))


class Wild(Strategy):
    """Sets a discount of 2."""

    def __call__(self, standing):
        return Choice(torch.arange(standing.pop), explored={0: {"gamma": 2.0}})


class Watching(Strategy):
    """Moves everybody one place on after the second generation, and keeps what it has seen."""

    seen: ClassVar = []

    def __call__(self, standing):
        self.seen.append((standing, list(standing.history)))
        places = torch.arange(standing.pop)
        return Choice(places.roll(1) if standing.number == 1 else places)
