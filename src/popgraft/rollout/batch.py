"""What a rollout holds, and how it is cut into minibatches of whole sequences."""

import dataclasses
from collections.abc import Iterator

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from popgraft import tree


@dataclasses.dataclass
class Rollout:
    """One rollout of every member, [pop, time, env, ...] but for `state`.

    Attributes:
        obs: normalised observations, as the policy saw them.
        raw_obs: observations before normalisation, for the keys that are normalised.
        action: actions as the head stores them.
        log_prob: log-probability of the action when it was taken, nats.
        prediction: what every critic predicted, in its units of return.
        value: predicted mean return, raw units.
        next_value: what the step bootstraps from: 0 after a termination, the terminal observation's value after a
            truncation, else the next step's value.
        reward: raw reward of the environment; 0 where `valid` is 0.
        end: whether the episode ended with this step.
        start: whether the observation is the first of an episode.
        valid: 0 where the environment only reset itself and ignored the action, and of members that have failed.
        state: recurrent state before every sequence, [pop, sequence, env, state].
    """

    obs: dict[str, Tensor]
    raw_obs: dict[str, Float[Tensor, "pop time env *shape"]]
    action: Tensor
    log_prob: Float[Tensor, "pop time env"]
    prediction: Float[Tensor, "pop time env critics atoms"]
    value: Float[Tensor, "pop time env"]
    next_value: Float[Tensor, "pop time env"]
    reward: Float[Tensor, "pop time env"]
    end: Bool[Tensor, "pop time env"]
    start: Bool[Tensor, "pop time env"]
    valid: Float[Tensor, "pop time env"]
    state: Float[Tensor, "pop sequence env state"]


@dataclasses.dataclass
class Samples:
    """What the update learns from: [pop, time, env, ...] for a rollout, [pop, time, batch, ...] for a minibatch.

    Attributes:
        target: returns to predict, in the critic's units.
        extras: what only some losses need: `prediction`, the critics' old predictions [..., critics, atoms], and
            `risk`, advantages that count the worst outcomes only.
    """

    obs: dict[str, Tensor]
    action: Tensor
    log_prob: Float[Tensor, "pop time batch"]
    advantage: Float[Tensor, "pop time batch"]
    target: Float[Tensor, "pop time batch"]
    start: Bool[Tensor, "pop time batch"]
    valid: Float[Tensor, "pop time batch"]
    extras: dict[str, Float[Tensor, "pop time batch *shape"]]


@dataclasses.dataclass
class Minibatch:
    """Some sequences of a rollout, and the recurrent state before each."""

    samples: Samples
    state: Float[Tensor, "pop batch state"]


def minibatches(
    samples: Samples,
    state: Float[Tensor, "pop sequence env state"],
    order: Int[Tensor, "pop sequences"],
    count: int,
) -> Iterator[Minibatch]:
    """Cuts a rollout into `count` minibatches of whole sequences.

    Sequence s of a member is chunk s // env of environment s % env.

    Args:
        samples: the whole rollout.
        state: recurrent state before every sequence.
        order: a permutation of each member's sequences.
        count: number of minibatches, which divides the number of sequences.
    """
    pop, time, env = samples.valid.shape
    chunks = state.shape[1]
    length = time // chunks
    device = samples.valid.device
    steps = torch.arange(length, device=device).view(1, -1, 1)
    members = torch.arange(pop, device=device)
    flat_state = state.flatten(0, 2)
    for chosen in order.chunk(count, dim=1):
        chunk, place = chosen // env, chosen % env
        first = members.unsqueeze(1) * (time * env) + chunk * (length * env) + place
        index = first.unsqueeze(1) + steps * env
        shape, rows = index.shape, index.flatten()
        part = tree.map(lambda x, s=shape, r=rows: x.flatten(0, 2).index_select(0, r).view(*s, *x.shape[3:]), samples)
        sequence = (members.unsqueeze(1) * (chunks * env) + chosen).flatten()
        yield Minibatch(part, flat_state.index_select(0, sequence).unflatten(0, chosen.shape))
