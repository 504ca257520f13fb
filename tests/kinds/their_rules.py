"""Update rules of somebody who knows what docs/extending.md says, and nothing else of the package."""

import dataclasses

import torch

from popgraft.optim import UpdateRule


@dataclasses.dataclass
class Momentum(UpdateRule):
    """Gradient descent with a momentum that is a sum, as torch.optim.SGD has it."""

    learning_rate = 0.02
    weight_decay = 0.001
    momenta = ("velocity",)

    momentum: float = 0.9

    def step_(self, params, grad, state, learning_rate, active, hyperparams, generators):
        velocity, moves = state.averages["velocity"], active.unsqueeze(1)
        decayed = grad + hyperparams["weight_decay"].unsqueeze(1) * params
        velocity.copy_(torch.where(moves, self.momentum * velocity + decayed, velocity))
        params.copy_(torch.where(moves, params - learning_rate.unsqueeze(1) * velocity, params))
        state.step += active
        return {"speed": velocity.norm(dim=1)}


class Heavy(UpdateRule):
    """Adam without a correction of its bias, and a count of how often every element has moved up."""

    momenta, squares, others, tuned = ("mean",), ("square",), ("ups",), ()

    def __init__(self, sizes, *, beta=0.5):
        super().__init__(sizes)
        self.beta = beta

    def step_(self, params, grad, state, learning_rate, active, hyperparams, generators):
        mean, square, ups = (state.averages[name] for name in ("mean", "square", "ups"))
        weight = (1 - self.beta) * active.unsqueeze(1).float()
        grad = grad.masked_fill(active.logical_not().unsqueeze(1), 0)
        mean.lerp_(grad, weight)
        square.lerp_(grad.square(), weight)
        step = learning_rate.unsqueeze(1) * mean / (square.sqrt() + 1e-3) * active.unsqueeze(1)
        ups += step < 0
        params -= step
        state.step += active
        return {}


class Plain(UpdateRule):
    """Remembers nothing."""

    def step_(self, params, grad, state, learning_rate, active, hyperparams, generators):
        params -= torch.where(active.unsqueeze(1), learning_rate.unsqueeze(1) * grad, 0)
        state.step += active
        return {}


class Counted(Plain):
    """Normalises by the largest gradient of every member so far, and says nothing; its count is its own."""

    others = ("largest",)

    def initial_averages(self, params):
        return {"largest": params.new_zeros(len(params))}

    def step_(self, params, grad, state, learning_rate, active, hyperparams, generators):
        largest = state.averages["largest"]
        largest.copy_(torch.where(active, torch.maximum(largest, grad.abs().amax(1)), largest))
        params -= torch.where(active.unsqueeze(1), learning_rate.unsqueeze(1) * grad / largest.unsqueeze(1), 0)


class Secret(Plain):
    """Remembers what it does not declare."""

    def initial_averages(self, params):
        return {"hidden": torch.zeros_like(params)}


class Unready(UpdateRule):
    """Takes no step."""


class NoRule:
    """What any optimizer of PyTorch's might be taken for."""

    def __init__(self, sizes): ...
