"""Steps all environments of all members together, and remembers what learning needs."""

import dataclasses

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from popgraft.nn import Policy
from popgraft.rollout.acting import Actor, action_noise
from popgraft.rollout.base import Grid, Step
from popgraft.rollout.batch import Rollout
from popgraft.state import Member, Seat


@dataclasses.dataclass(frozen=True)
class Excerpt:
    """The first sequence of a rollout in some environments: copies, which outlive the rollout's buffers.

    Attributes:
        obs: observations before normalisation; images as they are.
        state: recurrent state before the first step.
        start: where an episode begins.
    """

    obs: dict[str, Tensor]
    state: Float[Tensor, "pop env state"]
    start: Bool[Tensor, "pop time env"]


class Collector:
    """Collects rollouts of a fixed length into buffers that it reuses.

    Args:
        policy: the network.
        grid: the environments.
        time: steps per environment and rollout.
        sequence_length: steps of a training sequence; the recurrent state before each is stored.
        device: where the policy lives.
    """

    def __init__(self, policy: Policy, grid: Grid, time: int, sequence_length: int, device: torch.device) -> None:
        self.policy, self.grid, self.time, self.sequence_length = policy, grid, time, sequence_length
        pop, env = grid.pop, grid.num_envs
        self.shape = (pop, time, env)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(pop, time, env, *shape, dtype=dtype, device=device)

        images = {key: spec.image for key, spec in grid.spaces.obs.items()}
        self._obs = {
            key: buffer(*spec.shape, dtype=torch.uint8 if images[key] else torch.float32)
            for key, spec in grid.spaces.obs.items()
        }
        self._raw = {key: buffer(*spec.shape) for key, spec in grid.spaces.obs.items() if not images[key]}
        self._start = buffer(dtype=torch.bool)
        # Every step of the buffers, as it is written: an index per step would cost more than the copy.
        self._obs_columns, self._raw_columns = (
            {key: x.unbind(1) for key, x in buffers.items()} for buffers in (self._obs, self._raw)
        )
        self._start_columns = self._start.unbind(1)
        self._state = torch.zeros(pop, time // sequence_length, env, policy.state_size, device=device)

    @torch.no_grad()
    def collect(self, member: Member, seat: Seat, generators: list[torch.Generator]) -> Rollout:
        """Takes `time` steps in every environment; `seat` moves on to the state after the last.

        Args:
            member: who acts; read only.
            seat: recurrent state and episode starts, updated in place.
            generators: one per member, from which its action noise is drawn in one block.
        """
        actor, head = Actor.of(self.policy, member).prepared(), self.policy.head
        noise = action_noise(self.policy, generators, self.time, self.shape[2], actor.device).unbind(1)
        outputs, critic, actions, steps = [], [], [], []
        replaced: dict[int, tuple[Tensor, Tensor]] = {}
        for t in range(self.time):
            raw = self.grid.observe()
            obs = actor.normalized(raw)
            for key, columns in self._raw_columns.items():
                columns[t].copy_(raw[key])
            for key, columns in self._obs_columns.items():
                columns[t].copy_(obs[key])
            if t % self.sequence_length == 0:
                self._state[:, t // self.sequence_length] = seat.carry
            self._start_columns[t].copy_(seat.episode_start)
            unrolled = actor.step(obs, seat.carry, seat.episode_start)
            action = head.sample(actor.params["head"], unrolled.outputs.select(1, 0), noise[t])
            step = self.grid.act(action)
            outputs.append(unrolled.outputs)
            critic.append(unrolled.critic)
            actions.append(action)
            steps.append(step)
            seat.carry, seat.episode_start = unrolled.state, step.started
            if step.final is not None:
                # The step's own episode went on to an observation that the environment has already replaced.
                last = actor.normalized(step.final.observations)
                after = actor.step(last, seat.carry, torch.zeros_like(seat.episode_start))
                replaced[t] = step.final.where, actor.values(actor.predict(after.critic[:, 0]))
        whole = torch.cat(outputs, 1), torch.cat(critic, 1), torch.stack(actions, 1)
        return self._finish(actor, seat, *whole, steps, replaced)

    @torch.no_grad()
    def replay(
        self, member: Member, rows: Int[Tensor, "rows"], state: Float[Tensor, "rows env state"]
    ) -> tuple[Float[Tensor, "rows time env"], Float[Tensor, "rows env state"]]:
        """What members would have predicted, had they seen the latest rollout of others, and their state after it.

        Args:
            member: who sees it.
            rows: whose rollout each of them sees.
            state: recurrent state of each before it.
        """
        actor = Actor.of(self.policy, member)
        flat = actor.normalized({key: x[rows].flatten(1, 2) for key, x in (self._obs | self._raw).items()})
        obs = {key: x.unflatten(1, self.shape[1:]) for key, x in flat.items()}
        seen = self.policy.unroll(actor.params, obs, state, self._start[rows])
        return actor.values(actor.predict(seen.critic)), seen.state

    def excerpt(self, samples: int) -> Excerpt:
        """A part of the latest rollout, of about so many steps of every member, and of one environment at least."""
        envs = slice(max(1, samples // self.sequence_length))
        part = slice(None), slice(self.sequence_length), envs
        obs = {key: x[part].clone() for key, x in (self._obs | self._raw).items()}
        return Excerpt(obs, self._state[:, 0, envs].clone(), self._start[part].clone())

    def _finish(
        self,
        actor: Actor,
        seat: Seat,
        outputs: Tensor,
        critic: Tensor,
        action: Tensor,
        steps: list[Step],
        replaced: dict[int, tuple[Tensor, Tensor]],
    ) -> Rollout:
        """Everything that can be computed for all steps at once: log-probabilities, values, bootstraps.

        `replaced` holds, by step, which observations were replaced already, and their values.
        """

        def column(name: str) -> Tensor:
            return torch.stack([getattr(step, name) for step in steps], dim=1)

        upcoming = actor.normalized(self.grid.observe())
        last = actor.step(upcoming, seat.carry, seat.episode_start)
        predictions = actor.predict(torch.cat([critic, last.critic], dim=1))
        values = actor.values(predictions)
        terminated, valid = column("terminated"), column("valid")
        next_value = values[:, 1:].clone()
        for t, (where, value) in replaced.items():
            next_value[:, t] = torch.where(where, value, next_value[:, t])
        return Rollout(
            obs=self._obs,
            raw_obs=self._raw,
            action=action,
            log_prob=self.policy.head.log_prob(actor.params["head"], outputs, action),
            prediction=predictions[:, :-1],
            value=values[:, :-1],
            next_value=next_value.masked_fill_(terminated, 0),
            reward=column("reward"),
            end=terminated | column("truncated"),
            start=self._start,
            valid=valid.to(torch.float32),
            state=self._state,
        )
