"""Separate evaluation: whole episodes, on seeds that training never sees, the same for every member."""

from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from popgraft.nn import Params, Policy
from popgraft.rollout.acting import Actor, action_noise
from popgraft.rollout.grid import EnvGrid
from popgraft.state import Member, Scores, Seat

NOISE_BLOCK = 64
"""Steps for which the noise of stochastic evaluation is drawn at once."""

Disturb = Callable[[Params, dict[str, Tensor], Tensor, Tensor], dict[str, Tensor]]
"""From parameters, normalised observations [pop, env, *shape], recurrent state [pop, env, state] and episode starts
[pop, env] to what the agents see in place of these observations."""


def evaluate(
    policy: Policy,
    member: Member,
    grid: EnvGrid,
    seeds: list[int],
    deterministic: bool,
    max_steps: int,
    disturb: Disturb | None = None,
    weight: float = 1.0,
) -> Scores:
    """Plays one episode in every environment of the grid and scores each member by its mean return.

    Every environment contributes its first episode and no other, so that short episodes are not counted more often. A
    member whose environment fails before all its episodes are over has the score NaN.

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
    returns, faults = torch.zeros((), dtype=torch.float64), dict[int, str]()
    for way, share in ways:
        if share:
            played, failed = _play(policy, member, grid, seeds, deterministic, max_steps, way)
            returns, faults = returns + share * played, faults | failed
    pop, envs = returns.shape
    stderr = returns.std(dim=1) / envs**0.5 if envs > 1 else torch.zeros(pop)
    return Scores(
        mean=returns.mean(dim=1).float(), stderr=stderr.float(), episodes=torch.full((pop,), envs), faults=faults
    )


@torch.no_grad()
def _play(
    policy: Policy,
    member: Member,
    grid: EnvGrid,
    seeds: list[int],
    deterministic: bool,
    max_steps: int,
    disturb: Disturb | None,
) -> tuple[Float64[Tensor, "pop env"], dict[int, str]]:
    """Return of every episode, and what failed environments said."""
    pop, envs = next(iter(grid.observations.values())).shape[:2]
    grid.reset(range(pop), seeds)
    actor = Actor.of(policy, member)
    head, params = policy.head, actor.params["head"]
    seat = Seat.empty(pop, envs, policy.state_size, actor.device)
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    total, playing = np.zeros((pop, envs)), np.ones((pop, envs), bool)
    for t in range(max_steps):
        obs = actor.normalized(actor.tensors(grid.observations))
        if disturb is not None:
            obs = disturb(actor.params, obs, seat.carry, seat.episode_start)
        step = actor.step(obs, seat.carry, seat.episode_start)
        if deterministic:
            action = head.mode(params, step.outputs[:, 0])
        else:
            if t % NOISE_BLOCK == 0:
                noise = action_noise(policy, generators, NOISE_BLOCK, envs, actor.device)
            action = head.sample(params, step.outputs[:, 0], noise[:, t % NOISE_BLOCK])
        transition = grid.step(action.cpu().numpy())
        seat.carry = step.state
        seat.episode_start = torch.from_numpy(transition.started.copy()).to(actor.device)
        total += np.where(playing, transition.reward, 0)  # a failed member's reward is NaN
        playing &= ~(transition.terminated | transition.truncated)
        playing[list(grid.failures)] = False
        if not playing.any():
            break
    faults = {place: text for place, text in grid.failures.items() if np.isnan(total[place]).any()}
    return torch.from_numpy(total), faults
