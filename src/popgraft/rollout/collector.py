"""Steps all environments of all members together, and remembers what learning needs."""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from popgraft.nn import Policy
from popgraft.rollout.acting import Actor, action_noise
from popgraft.rollout.batch import Rollout
from popgraft.rollout.grid import Grid
from popgraft.state import Member, Seat


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
        pop, env = next(iter(grid.observations.values())).shape[:2]
        self.shape = (pop, time, env)

        def buffer(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.zeros(pop, time, env, *shape, dtype=dtype, device=device)

        def record(dtype: type) -> np.ndarray:
            return np.zeros((pop, time, env), dtype)

        images = {key: spec.image for key, spec in grid.spaces.obs.items()}
        self._obs = {
            key: buffer(*spec.shape, dtype=torch.uint8 if images[key] else torch.float32)
            for key, spec in grid.spaces.obs.items()
        }
        self._raw = {key: buffer(*spec.shape) for key, spec in grid.spaces.obs.items() if not images[key]}
        self._start = buffer(dtype=torch.bool)
        self._state = torch.zeros(pop, time // sequence_length, env, policy.state_size, device=device)
        self._reward, self._bootstrap = record(np.float32), buffer()
        self._terminated, self._truncated, self._valid, self._final = (record(np.bool_) for _ in range(4))

    @torch.no_grad()
    def collect(self, member: Member, seat: Seat, generators: list[torch.Generator]) -> Rollout:
        """Takes `time` steps in every environment; `seat` moves on to the state after the last.

        Args:
            member: who acts; read only.
            seat: recurrent state and episode starts, updated in place.
            generators: one per member, from which its action noise is drawn in one block.
        """
        actor = Actor.of(self.policy, member)
        head, device = self.policy.head, actor.device
        noise = action_noise(self.policy, generators, self.time, self.shape[2], device)
        outputs, critic, actions = [], [], []
        for t in range(self.time):
            raw = actor.tensors(self.grid.observations)
            obs = actor.normalized(raw)
            for key, buffer in self._raw.items():
                buffer[:, t] = raw[key]
            for key, buffer in self._obs.items():
                buffer[:, t] = obs[key]
            if t % self.sequence_length == 0:
                self._state[:, t // self.sequence_length] = seat.carry
            self._start[:, t] = seat.episode_start
            step = actor.step(obs, seat.carry, seat.episode_start)
            action = head.sample(actor.params["head"], step.outputs[:, 0], noise[:, t])
            transition = self.grid.step(action.cpu().numpy())
            outputs.append(step.outputs)
            critic.append(step.critic)
            actions.append(action)
            seat.carry = step.state
            seat.episode_start = torch.from_numpy(transition.started.copy()).to(device)
            self._reward[:, t] = transition.reward
            self._terminated[:, t] = transition.terminated
            self._truncated[:, t] = transition.truncated
            self._valid[:, t] = transition.valid
            self._final[:, t] = transition.final
            if transition.final.any():
                # The step's own episode went on to an observation that the environment has already replaced.
                last = actor.normalized(actor.tensors(transition.final_observations))
                after = actor.step(last, seat.carry, torch.zeros_like(seat.episode_start))
                self._bootstrap[:, t] = actor.values(actor.predict(after.critic[:, 0]))
        return self._finish(actor, seat, torch.cat(outputs, 1), torch.cat(critic, 1), torch.stack(actions, 1))

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

    def _finish(self, actor: Actor, seat: Seat, outputs: Tensor, critic: Tensor, action: Tensor) -> Rollout:
        """Everything that can be computed for all steps at once: log-probabilities, values, bootstraps."""
        device = actor.device

        def tensor(array: np.ndarray) -> Tensor:
            return torch.from_numpy(array).to(device)

        upcoming = actor.normalized(actor.tensors(self.grid.observations))
        last = actor.step(upcoming, seat.carry, seat.episode_start)
        predictions = actor.predict(torch.cat([critic, last.critic], dim=1))
        values = actor.values(predictions)
        terminated, final, valid = tensor(self._terminated), tensor(self._final), tensor(self._valid)
        next_value = torch.where(final, self._bootstrap, values[:, 1:]).masked_fill_(terminated, 0)
        return Rollout(
            obs=self._obs,
            raw_obs=self._raw,
            action=action,
            log_prob=self.policy.head.log_prob(actor.params["head"], outputs, action),
            prediction=predictions[:, :-1],
            value=values[:, :-1],
            next_value=next_value,
            reward=tensor(self._reward).masked_fill_(valid.logical_not(), 0),
            end=terminated | tensor(self._truncated),
            start=self._start,
            valid=valid.to(torch.float32),
            state=self._state,
        )
