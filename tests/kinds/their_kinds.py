"""Kinds of somebody who knows what docs/extending.md says, and nothing else of the package."""

import math

import torch

from popgraft.nn import ActionHead, Critic, Encoder, Memory
from popgraft.nn.dense import Linear


class Squares(Encoder):
    """All numbers that are seen and their squares, through one layer."""

    def __init__(self, spaces, network, width=5):
        super().__init__(n_out=width)
        self.keys = sorted(spaces.obs)
        self.linear = Linear(2 * sum(math.prod(spaces.obs[key].shape) for key in self.keys), width)

    def init(self, generator):
        return {"linear": self.linear.init(generator)}

    def __call__(self, params, obs):
        seen = torch.cat([obs[key] for key in self.keys], dim=-1)
        return self.linear(params["linear"], torch.cat([seen, seen.square()], dim=-1)).tanh()


class Leaky(Memory):
    """Two vectors: s ← a s + tanh(W x + U y), a in (0, 1) learnt, and what is told, y ← s/(1 + |s|)."""

    parts = 2

    def __init__(self, n_in, hidden_size, layers, leak=0.5):
        super().__init__(n_in, hidden_size, layers)
        self.leak = leak

    def init_layer(self, n_in, generator):
        width = self.n_out
        return {
            "w": torch.randn(width, n_in, generator=generator) / math.sqrt(n_in),
            "weight_hh": torch.randn(width, width, generator=generator) / math.sqrt(width),
            "a": torch.full((width,), math.log(self.leak / (1 - self.leak))),
        }

    def unroll(self, params, x, state, start):
        told = []
        for t in range(x.shape[1]):
            y, s = state.masked_fill(start[:, t].unsqueeze(-1), 0).chunk(2, dim=-1)
            driven = torch.tanh(x[:, t] @ params["w"].mT + y @ params["weight_hh"].mT)
            s = params["a"].sigmoid().unsqueeze(1) * s + driven
            y = s / (1 + s.abs())
            state = torch.cat([y, s], dim=-1)
            told.append(y)
        return torch.stack(told, dim=1), state


class Gaussian(Critic):
    """A normal law of the return: its mean, and the logarithm of its standard deviation, which is no return."""

    def __init__(self, network, least=-3.0):
        super().__init__(atoms=2)
        self.least = least

    def means(self, predictions):
        return predictions[..., 0]

    def loss(self, predictions, target):
        log_std = predictions[..., 1].clamp(min=self.least)
        return log_std + 0.5 * ((target - predictions[..., 0]) * (-log_std).exp()).square()


class Gumbel(ActionHead):
    """One choice by its logits, drawn as the largest of them and Gumbel noise."""

    noise = "uniform"

    def __init__(self, n_in, action, network):
        (self.choices,) = action.sizes
        super().__init__(n_in, n_outputs=self.choices, noise_dims=self.choices)

    def sample(self, params, outputs, noise):
        return (outputs - noise.clamp(1e-7, 1 - 1e-7).log().neg().log()).argmax(-1, keepdim=True)

    def mode(self, params, outputs):
        return outputs.argmax(-1, keepdim=True)

    def log_prob(self, params, outputs, action):
        return outputs.log_softmax(-1).gather(-1, action).squeeze(-1)

    def entropy(self, params, outputs):
        return -(outputs.softmax(-1) * outputs.log_softmax(-1)).sum(-1)

    def kl(self, params, outputs_p, outputs_q):
        return (outputs_p.softmax(-1) * (outputs_p.log_softmax(-1) - outputs_q.log_softmax(-1))).sum(-1)


class Unready(Critic):
    """One that says nothing of its loss."""

    def means(self, predictions):
        return predictions.mean(-1)


class Mixing(Leaky):
    """One whose members hear each other."""

    def unroll(self, params, x, state, start):
        return super().unroll(params, x + x.mean(0), state, start)


class Short(Leaky):
    """One that forgets what it has told before the last step."""

    def unroll(self, params, x, state, start):
        y, state = super().unroll(params, x, state, start)
        return y[:, -1:], state


class Summed(Gaussian):
    """One that knows a single loss."""

    def loss(self, predictions, target):
        return super().loss(predictions, target).sum()


def a_function(network):
    return network
