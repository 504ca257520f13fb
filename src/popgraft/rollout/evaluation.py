"""Separate evaluation: whole episodes, on seeds that training never sees, the same for every member."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from popgraft.nn import Params, Policy
from popgraft.rollout.acting import Actor, action_noise
from popgraft.rollout.base import SeededGrid
from popgraft.state import Member, Scores, Seat

NOISE_BLOCK = 64
"""Steps for which the noise of stochastic evaluation is drawn at once."""


class Played(NamedTuple):
    """Episodes that are over.

    Attributes:
        returns: of every episode, NaN for all of a member whose environment has failed.
        faults: what failed environments said, by member.
        steps: environment steps taken in these episodes.
    """

    returns: Float64[Tensor, "pop env"]
    faults: dict[int, str]
    steps: int


Disturb = Callable[[Params, dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]
"""From parameters, normalised observations [pop, env, *shape], recurrent state [pop, env, state] and episode starts
[pop, env] to what the agents see in place of these observations."""


def evaluate(
    policy: Policy,
    member: Member,
    grid: SeededGrid,
    seeds: list[int],
    deterministic: bool,
    max_steps: int,
    disturb: Disturb | None = None,
    weight: float = 1.0,
) -> Scores:
    """Scores each member by its mean return over the episodes of `episode_returns`, which takes the same arguments.

    A member whose environment fails before all its episodes are over has the score NaN.
    """
    returns, faults, steps = episode_returns(policy, member, grid, seeds, deterministic, max_steps, disturb, weight)
    pop, envs = returns.shape
    stderr = returns.std(dim=1) / envs**0.5 if envs > 1 else torch.zeros(pop)
    episodes = torch.full((pop,), envs)
    return Scores(returns.mean(dim=1).float(), stderr.float(), episodes, faults, steps)


def episode_returns(
    policy: Policy,
    member: Member,
    grid: SeededGrid,
    seeds: list[int],
    deterministic: bool,
    max_steps: int,
    disturb: Disturb | None = None,
    weight: float = 1.0,
) -> Played:
    """Plays one episode in every environment of the grid.

    Every environment contributes its first episode and no other, so that short episodes are not counted more often.

    Args:
        policy: the network.
        member: who plays; read only.
        grid: environments; all of them start afresh.
        seeds: environment seed of every member (equal seeds give every member the same episodes).
        deterministic: whether the most likely action is taken.
        max_steps: steps after which an unfinished episode counts as it stands.
        disturb: stands between the environments and the agents, if given.
        weight: w; an episode counts with (1 − w) · its return + w · its return when it is played with `disturb`.
    """
    ways = [(None, 1.0)] if disturb is None else [(None, 1 - weight), (disturb, weight)]
    returns, faults, steps = torch.zeros((), dtype=torch.float64), dict[int, str](), 0
    for way, share in ways:
        if share:
            played = _play(policy, member, grid, seeds, deterministic, max_steps, way)
            returns, faults = returns + share * played.returns, faults | played.faults
            steps += played.steps
    return Played(returns, faults, steps)


@torch.no_grad()
def _play(
    policy: Policy,
    member: Member,
    grid: SeededGrid,
    seeds: list[int],
    deterministic: bool,
    max_steps: int,
    disturb: Disturb | None,
) -> Played:
    pop, envs = grid.pop, grid.num_envs
    grid.reset(range(pop), seeds)
    actor = Actor.of(policy, member).prepared()
    head, params = policy.head, actor.params["head"]
    # An attack may ask the critic; who only acts does without its memory.
    state_size = policy.actor_state_size if disturb is None else policy.state_size
    seat = Seat.empty(pop, envs, state_size, actor.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    total = torch.zeros(pop, envs, dtype=torch.float64, device=actor.device)
    playing, steps = torch.ones_like(total, dtype=torch.bool), torch.zeros_like(total)
    busy, faults = [True] * pop, dict[int, str]()
    for t in range(max_steps):
        obs = actor.normalized(grid.observe())
        if disturb is None:
            outputs, seat.carry = actor.act(obs, seat.carry, seat.episode_start)
        else:
            obs = disturb(actor.params, obs, seat.carry, seat.episode_start)
            unrolled = actor.step(obs, seat.carry, seat.episode_start)
            outputs, seat.carry = unrolled.outputs.select(1, 0), unrolled.state
        if deterministic:
            action = head.mode(params, outputs)
        else:
            if t % NOISE_BLOCK == 0:
                noise = action_noise(policy, generators, NOISE_BLOCK, envs, actor.device)
            action = head.sample(params, outputs, noise[:, t % NOISE_BLOCK])
        step = grid.act(action)
        seat.episode_start = step.started
        steps += playing
        total += step.reward.masked_fill(playing.logical_not(), 0)
        over = step.terminated | step.truncated
        if grid.monitored:
            over, returns = grid.whole_episodes()
            total = torch.where(playing & over, returns, total)
        playing &= over.logical_not()
        for place, text in grid.failures.items():
            playing[place] = False
            if busy[place]:
                faults.setdefault(place, text)
        busy = playing.any(1).tolist()
        if not any(busy):
            break
        grid.rest([place for place in range(pop) if not busy[place]])
    else:
        if grid.monitored:
            total = torch.where(playing, grid.standing(), total)
    total = total.cpu()
    total[list(faults)] = torch.nan
    return Played(total, faults, int(steps.sum()))
