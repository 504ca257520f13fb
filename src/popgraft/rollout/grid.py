"""The environments of a whole population: members × environments, one vector environment for every member."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float64
from torch import Tensor

from popgraft.config import EnvConfig
from popgraft.errors import ConfigError, UnusableNumber
from popgraft.messages import logger_of, told
from popgraft.rollout.answers import deliver, one
from popgraft.rollout.base import CPU, ArrayGrid, SeededGrid, Transition
from popgraft.rollout.guests import IN_STEPS, NOBODY, Shared, close_in_time, is_ctrl_c, turn
from popgraft.rollout.member_env import MemberEnv, final_observation
from popgraft.rollout.sources import maker_of
from popgraft.rollout.spaces_of import action_encoder, fields_of, spaces_of
from popgraft.rollout.usable import fault_in, named, named_terminal, usable
from popgraft.rollout.wrappers import built_in_wrappers
from popgraft.spaces import ObsSpec

logger = logger_of(__name__)


class EnvGrid(ArrayGrid, SeededGrid):
    """A vector environment for every member.

    Every member has a vector environment of its own, so its episodes depend on its own seed and actions alone. A
    member's that has failed is closed, and made anew with the next reset.

    Args:
        config: the environments.
        pop: members.
        num_envs: environments per member; None takes the configuration's.
        factory: takes the place of the configured source; called as factory(num_envs=..., **config.kwargs).
        device: where the agents are.

    Raises:
        ConfigError: a source, space or wrapper that cannot work.
        MissingExtra: the source belongs to a package that is not installed.
        EnvironmentFault: the environment cannot be made.
    """

    def __init__(
        self,
        config: EnvConfig,
        pop: int,
        num_envs: int | None = None,
        factory: Callable[..., Any] | None = None,
        device: torch.device = CPU,
    ) -> None:
        self.pop, self.num_envs, self.device = pop, num_envs or config.num_envs, device
        self._failures: dict[int, str] = {}
        self._make = maker_of(config, self.num_envs, factory)
        self._source = "the factory" if factory or config.factory else f"env.id={config.id!r}"
        self._told: set[str] = set()
        shared = Shared()
        turn.begin(0)
        first = self._make()
        self._observation_space, self._action_space = first.observation_space, first.action_space
        self._next_step, self.in_process = first.next_step, first.in_process
        self.monitored = first.monitor is not None
        fields = fields_of(first.observation_space)
        self._encode_actions = action_encoder(first.action_space)
        shown = spaces_of(first.observation_space, first.action_space)
        self._wrappers, self.spaces = built_in_wrappers(config.wrappers, shown)
        self._envs: list[MemberEnv | None] = [first]
        for row in range(1, pop):
            turn.begin(row)
            self._envs.append(self._remade())
        turn.begin(NOBODY)
        self._set_back(shared)
        self._unready = set(range(pop))
        self._resting: set[int] = set()

        self.observations = self._arrays(self.spaces.obs)
        final_observations = self._arrays(self.spaces.obs)
        # What the environments show and what the agents see are the same arrays unless a wrapper stands between.
        self._shown = self._arrays(shown.obs) if self._wrappers else self.observations
        self._shown_final = self._arrays(shown.obs) if self._wrappers else final_observations
        self._slots = [{name: self._shown[name][row] for name in fields} for row in range(pop)]
        self._fields = fields
        shape = (pop, self.num_envs)
        self._ended = np.zeros(shape, dtype=np.bool_)
        self._transition = Transition(
            reward=np.zeros(shape, dtype=np.float32),
            terminated=np.zeros(shape, dtype=np.bool_),
            truncated=np.zeros(shape, dtype=np.bool_),
            valid=np.ones(shape, dtype=np.bool_),
            started=np.zeros(shape, dtype=np.bool_),
            final=np.zeros(shape, dtype=np.bool_),
            final_observations=final_observations,
        )
        self._given = {"reward": self._transition.reward, **named(self.observations)}

    @property
    def failures(self) -> dict[int, str]:
        """For every member that has failed since its last reset, what went wrong."""
        return self._failures

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Starts fresh episodes in all environments of some members, and revives those that had failed.

        Args:
            rows: the members.
            seeds: a seed for each of them.
        """
        rows, shared = list(rows), Shared()
        for row, seed in zip(rows, seeds, strict=True):
            self._failures.pop(row, None)
            self._ended[row], self._transition.valid[row] = False, True
            self._unready.discard(row)
            self._resting.discard(row)
            for wrapper in self._wrappers:
                wrapper.reset(row, int(seed))
            self._begin(row)
            try:
                env = self._envs[row]
                if env is not None and env.monitor is not None and env.monitor.within.any():
                    close_in_time([env.close])  # a reset would go on with the game in which a life was lost
                    env = None
                self._envs[row] = env = env or self._remade()
                raw = env.reset(int(seed))
                with np.errstate(over="ignore"):
                    deliver(self._fields, raw, self._slots[row])
            except ConfigError:
                raise
            except BaseException as error:
                self._fail(row, error)
        self._end()
        self._set_back(shared)
        self._wrap(self._shown, self.observations, rows)
        self._examine(self._given)
        self._blank_failures()

    def step(self, actions: np.ndarray) -> Transition:
        """Takes one action in every environment.

        Args:
            actions: [pop, env, dims]; choices counted from 0, or the numbers of a box, which are clipped to its bounds.

        Raises:
            ValueError: actions of another shape.
            RuntimeError: a member has never been reset.
            ConfigError: an environment gives something of another shape or type than it should, or does not hand over a
                terminal observation.
        """
        if actions.shape != (self.pop, self.num_envs, self.spaces.action.dims):
            expected = (self.pop, self.num_envs, self.spaces.action.dims)
            raise ValueError(f"actions have shape {actions.shape}, not (pop, env, dims) = {expected}")
        if self._unready:
            raise RuntimeError(f"members {sorted(self._unready)} have never been reset; call reset before step")
        result = self._transition
        if self._next_step:
            np.logical_not(self._ended, out=result.valid)
            result.started[...] = self._ended
        finals = self._step_members(self._encode_actions(actions), result)
        result.truncated &= ~result.terminated
        np.logical_or(result.terminated, result.truncated, out=self._ended)
        if self._next_step:
            result.reward[~result.valid] = 0
        else:
            result.started[...] = self._ended
            result.final[...] = result.truncated
            if result.final.any():
                self._keep_finals(finals, result)
        self._wrap(self._shown, self.observations, range(self.pop))
        self._examine(self._given)
        self._blank_failures()
        return result

    def rest(self, rows: Sequence[int]) -> None:
        """Leaves some members' environments alone until their next reset."""
        result = self._transition
        for row in set(rows) - self._resting:
            self._resting.add(row)
            for values in (result.reward, result.terminated, result.truncated, self._ended):
                values[row] = 0

    def whole_episodes(self) -> tuple[Bool[Tensor, "pop env"], Float64[Tensor, "pop env"]]:
        """Where whole episodes have ended with the latest step, and what they return."""
        over, returns = np.zeros((self.pop, self.num_envs), np.bool_), np.zeros((self.pop, self.num_envs))
        for row, env in enumerate(self._envs):
            if env is not None and env.monitor is not None and row not in self._resting:
                over[row], returns[row] = env.monitor.over, env.monitor.returns
        return torch.from_numpy(over).to(self.device), torch.from_numpy(returns).to(self.device)

    def standing(self) -> Float64[Tensor, "pop env"]:
        """Returns so far of whole episodes that have not ended."""
        standing = np.full((self.pop, self.num_envs), np.nan)
        for row, env in enumerate(self._envs):
            if env is not None and env.monitor is not None:
                standing[row] = env.monitor.standing()
        return torch.from_numpy(standing).to(self.device)

    def close(self) -> None:
        """Releases the processes and memory of all environments."""
        envs, self._envs = self._envs, [None] * self.pop
        close_in_time([env.close for env in envs if env is not None])

    def _step_members(self, actions: np.ndarray, result: Transition) -> list[Any]:
        """Steps all members who do not rest; returns their replaced terminal observations."""
        reward, terminated, truncated = result.reward, result.terminated, result.truncated
        finals: list[Any] = [None] * self.pop
        rows = [row for row in range(self.pop) if row not in self._resting]
        shared = Shared(IN_STEPS)
        for row in rows:
            if (env := self._envs[row]) is not None:
                try:
                    env.send(actions[row])
                except BaseException as error:
                    self._fail(row, error)
        received = {}
        for row in rows:
            if (env := self._envs[row]) is not None:
                self._begin(row)
                try:
                    received[row] = env.receive()
                except ConfigError:
                    raise
                except BaseException as error:
                    self._fail(row, error)
        self._end()
        self._set_back(shared)
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite, and found to be
            for row, (raw, rewards, terminations, truncations, replaced) in received.items():
                self._deliver(row, raw, self._slots[row])
                reward[row], terminated[row], truncated[row] = rewards, terminations, truncations
                finals[row] = replaced
        return finals

    def _keep_finals(self, finals: list[Any], result: Transition) -> None:
        """Stores the terminal observations of truncated episodes."""
        rows = np.flatnonzero(result.final.any(1)).tolist()
        for row in rows:
            for env in np.flatnonzero(result.final[row]).tolist():
                raw = final_observation(finals[row], env)
                slot = {name: out[row, env : env + 1] for name, out in self._shown_final.items()}
                with np.errstate(over="ignore"):
                    self._deliver(row, one(raw), slot, env)
        self._wrap(self._shown_final, result.final_observations, rows)
        self._examine(named_terminal(result.final_observations, result.final))

    def _begin(self, row: int) -> None:
        """Notes that a member's environments are at work."""
        self.playing = row, time.monotonic()
        turn.begin(row)

    def _end(self) -> None:
        self.playing = None
        turn.begin(NOBODY)

    def _deliver(self, row: int, raw: Any, out: Mapping[str, np.ndarray], first: int = 0) -> None:
        """Copies what a member's environments show; the member fails where their space cannot hold it."""
        try:
            deliver(self._fields, raw, out, first)
        except UnusableNumber as error:
            self._fail(row, error)

    def _wrap(self, shown: Mapping[str, np.ndarray], seen: dict[str, np.ndarray], rows: Sequence[int]) -> None:
        """Passes what the environments of some members show through the wrappers."""
        if not self._wrappers or not rows:
            return
        select = slice(None) if len(rows) == self.pop else rows
        current = {key: value[select] for key, value in shown.items()}
        for wrapper in self._wrappers:
            current = wrapper(current, rows)
        for key, value in current.items():
            seen[key][select] = value

    def _set_back(self, shared: Shared) -> None:
        """Undoes what environments have changed of what all code of this process shares, and says so once."""
        for change in shared.restore():
            if change not in self._told:
                self._told.add(change)
                logger.warning(
                    "%s has set %s, which is set back: training shares it. Leave it alone, or set env.vectorization: "
                    "async, which gives environments processes of their own", self._source, change,
                )  # fmt: skip

    def _fail(self, row: int, error: BaseException) -> None:
        """Takes a member whose environment raised out of the game until its next reset.

        What leaves the interpreter elsewhere, such as `sys.exit`, is a failure here; Ctrl-C is not.
        """
        if is_ctrl_c(error):
            raise error
        self._failures[row] = told(error)
        env, self._envs[row] = self._envs[row], None
        if env is not None:
            close_in_time([env.close])

    def _examine(self, given: Mapping[str, np.ndarray]) -> None:
        """Fails the members whose environments gave a number [pop, env, *shape] that is not usable."""
        if all(usable(numbers) for numbers in given.values()):
            return
        for row in range(self.pop):
            if row not in self._failures and (fault := fault_in({name: x[row] for name, x in given.items()})):
                self._fail(row, fault)

    def _blank_failures(self) -> None:
        result = self._transition
        flags = (result.terminated, result.truncated, result.valid, result.started, result.final, self._ended)
        shown = (self.observations, self._shown, result.final_observations, self._shown_final)
        for row in self._failures:
            for values in (result.reward, *flags, *(array for arrays in shown for array in arrays.values())):
                values[row] = 0

    def _remade(self) -> MemberEnv:
        """Makes a member's environments anew, which must be like the first member's."""
        env = self._make()
        found = (env.observation_space, env.action_space, env.next_step, env.monitor is not None)
        expected = (self._observation_space, self._action_space, self._next_step, self.monitored)
        if found != expected:
            close_in_time([env.close])
            raise ConfigError(
                f"the members' environments differ: {found} is not {expected} (observation space, action space, "
                "next-step autoreset, a monitor of episodes); a source must make the same kind every time"
            )
        return env

    def _arrays(self, specs: Mapping[str, ObsSpec]) -> dict[str, np.ndarray]:
        leading = (self.pop, self.num_envs)
        return {
            key: np.zeros((*leading, *spec.shape), dtype=np.uint8 if spec.image else np.float32)
            for key, spec in specs.items()
        }
