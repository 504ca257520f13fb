"""Libraries that step several environments, as one member's environments."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, VectorEnv

from popgraft.errors import ConfigError
from popgraft.rollout import workers
from popgraft.rollout.answers import flag, flags, own, rewards
from popgraft.rollout.member_env import Finals, MemberEnv, Outcome, kept, outcome
from popgraft.rollout.monitor import EpisodeMonitor, GameMonitor
from popgraft.rollout.normalizers import running_statistics


class GymnasiumEnv(MemberEnv):
    """A Gymnasium vector environment in any autoreset mode; DISABLED is made to behave like SAME_STEP.

    Args:
        env: the vector environment.
        limit: seconds that processes of it have for an answer; None: no limit.

    Raises:
        ConfigError: it does not say when it resets itself, or a wrapper in it keeps running statistics.
    """

    def __init__(self, env: VectorEnv[Any, Any, Any], limit: float | None = None) -> None:
        mode = env.metadata.get("autoreset_mode")
        if not isinstance(mode, AutoresetMode):
            raise ConfigError(
                f"{type(env).__name__} does not say when a finished environment starts its next episode: "
                f"metadata['autoreset_mode'] is {mode!r}; set it to a gymnasium.vector.AutoresetMode"
            )
        self.observation_space, self.action_space = env.single_observation_space, env.single_action_space
        self.next_step, self.metadata = mode is AutoresetMode.NEXT_STEP, env.metadata
        self._resets_here = mode is AutoresetMode.DISABLED
        self._env = env
        self._stepper: Any = env if isinstance(env, AsyncVectorEnv) else _Deferred(env)
        base = env.unwrapped
        own_environments(base)
        self._workers: Any = base if isinstance(base, AsyncVectorEnv) else None
        self.in_process = self._workers is None
        if self._workers is not None:
            pipes = workers.answering(self._workers.parent_pipes, self._workers.processes, limit)
            self._workers.parent_pipes = pipes
        refuse_statistics(self, env)

    def reset(self, seed: int) -> Any:
        """Starts fresh episodes everywhere and returns their first observations."""
        return self._env.reset(seed=seed)[0]

    def send(self, actions: np.ndarray) -> None:
        """Begins a step."""
        self._stepper.step_async(actions)

    def receive(self) -> Outcome:
        """Completes the step."""
        obs, reward, terminated, truncated, info = self._stepper.step_wait()
        reward, terminated, truncated = outcome(reward, terminated, truncated, self._env.num_envs)
        if self.next_step:
            return obs, reward, terminated, truncated, None
        if not self._resets_here:
            return obs, reward, terminated, truncated, kept(info.get("final_obs"), obs, truncated & ~terminated)
        if not (done := terminated | truncated).any():
            return obs, reward, terminated, truncated, None
        kept_of_step = copy.deepcopy((reward, terminated, truncated, obs))  # the reset may write into the same arrays
        return self._env.reset(options={"reset_mask": done})[0], *kept_of_step

    def render(self) -> Any:
        """The first environment's image."""
        images = self._env.render()
        return images[0] if images else None

    def close(self) -> None:
        """Releases processes and memory, also of environments that have failed."""
        if self._workers is not None:
            workers.close(self._workers.parent_pipes, self._workers.processes)
            self._workers.closed = True
        self._env.close()


class StableBaselinesEnv(MemberEnv):
    """A Stable-Baselines3 VecEnv, which always resets in the same step.

    Args:
        env: a stable_baselines3.common.vec_env.VecEnv.
        limit: seconds that processes of it have for an answer; None: no limit.

    Raises:
        ConfigError: a wrapper in it keeps running statistics.
    """

    next_step = False

    def __init__(self, env: Any, limit: float | None = None) -> None:
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self._env = env
        own_environments(env.unwrapped)
        self._workers = env.unwrapped if hasattr(env.unwrapped, "remotes") else None
        self.in_process = self._workers is None
        if self._workers is not None:
            self._workers.remotes = workers.answering(self._workers.remotes, self._workers.processes, limit)
        refuse_statistics(self, env)
        self.monitor = EpisodeMonitor.of(env)

    def reset(self, seed: int) -> Any:
        """Starts fresh episodes everywhere and returns their first observations."""
        self._env.seed(seed)
        return self._env.reset()

    def send(self, actions: np.ndarray) -> None:
        """Begins a step."""
        self._env.step_async(actions)

    def receive(self) -> Outcome:
        """Completes the step."""
        obs, reward, done, infos = self._env.step_wait()
        done = flags(done, self._env.num_envs, "done")
        if self.monitor is not None:
            self.monitor.hear(done, infos)
        terminated, truncated, finals = vec_env_ends(done, infos)
        return obs, rewards(reward, self._env.num_envs), terminated, truncated, kept(finals, obs, truncated)

    def render(self) -> Any:
        """The first environment's image."""
        return next(iter(self._env.get_images()), None)

    def close(self) -> None:
        """Releases processes and memory, also of environments that have failed."""
        if self._workers is not None:
            workers.close(self._workers.remotes, self._workers.processes)
            self._workers.closed = True
        self._env.close()


class GivenEnv(MemberEnv):
    """What a factory has made on this interface itself: it is checked as what libraries make.

    Args:
        env: the factory's result.
        num_envs: environments that were asked for.

    Raises:
        ConfigError: it does not say what an agent sees and does, or when it resets itself; or something in it keeps
            running statistics.
    """

    def __init__(self, env: MemberEnv, num_envs: int) -> None:
        if lacking := [name for name in ("observation_space", "action_space", "next_step") if not hasattr(env, name)]:
            raise ConfigError(f"{type(env).__name__} has no {lacking[0]}; set it in the class or in __init__")
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.next_step, self.in_process, self.metadata = env.next_step, env.in_process, env.metadata
        self._env, self._num_envs = env, num_envs
        refuse_statistics(self, env)

    def reset(self, seed: int) -> Any:
        """Starts fresh episodes everywhere and returns their first observations."""
        return self._env.reset(seed)

    def send(self, actions: np.ndarray) -> None:
        """Begins a step."""
        self._env.send(actions)

    def receive(self) -> Outcome:
        """Completes the step."""
        answer: Any = self._env.receive()
        if not isinstance(answer, tuple) or len(answer) != 5:
            size = f" of {len(answer)}" if isinstance(answer, tuple) else ""
            raise ConfigError(
                f"{type(self._env).__name__}.receive returned {type(answer).__name__}{size}, not a tuple of "
                "observations, rewards, terminations, truncations and terminal observations; return these five"
            )
        obs, reward, terminated, truncated, finals = answer
        reward, terminated, truncated = outcome(reward, terminated, truncated, self._num_envs)
        finals = None if self.next_step else kept(finals, obs, truncated & ~terminated)
        return obs, reward, terminated, truncated, finals

    def render(self) -> Any:
        """The first environment's image."""
        return self._env.render()

    def close(self) -> None:
        """Releases processes and memory, also of environments that have failed."""
        self._env.close()


def refuse_statistics(adapter: MemberEnv, env: Any) -> None:
    """Closes and refuses environments that keep running statistics.

    Raises:
        ConfigError: they do.
    """
    if found := running_statistics(env):
        adapter.close()
        raise ConfigError(
            f"the environment is wrapped in {' and '.join(found)}: running statistics that stay behind at a graft, "
            "begin anew in evaluation and are in no snapshot. Remove it, and set model.normalize_obs: true or "
            "model.normalize_reward: true, which are inherited; or freeze it (update_running_mean = False, of a "
            "VecNormalize training = False)"
        )


def own_environments(base: Any) -> None:
    """Makes copies of what the single environments in a vector environment of this process answer."""
    for number, env in enumerate(getattr(base, "envs", ())):
        if isinstance(env, gym.Env):
            own(env, number)


def vec_env_ends(done: np.ndarray, infos: Sequence[Any]) -> tuple[np.ndarray, np.ndarray, Finals]:
    """Terminations, truncations and terminal observations, from what a Stable-Baselines3 VecEnv says of a step."""
    truncated = np.zeros_like(done)
    finals = {}
    for env in np.flatnonzero(done).tolist():
        truncated[env] = flag(infos[env].get("TimeLimit.truncated", False), "info['TimeLimit.truncated']", env)
        finals[env] = infos[env].get("terminal_observation")
    return done & ~truncated, truncated, finals


class EnvPoolEnv(MemberEnv):
    """An EnvPool, which resets in the next step and takes its seed at construction: a reset builds a new pool.

    Args:
        make: builds the pool for a seed.
    """

    next_step = True
    in_process = True

    def __init__(self, make: Callable[[int], Any]) -> None:
        self._make = make
        self._env = make(0)
        self.observation_space, self.action_space = self._env.observation_space, self._env.action_space
        self._begin()

    def reset(self, seed: int) -> Any:
        """Starts fresh episodes everywhere and returns their first observations."""
        self._env.close()
        self._env = self._make(seed)
        return self._begin()

    def _begin(self) -> Any:
        obs, info = self._env.reset()
        self.monitor = self._games = GameMonitor(len(info["lives"])) if GameMonitor.can_hear(info) else None
        return obs

    def send(self, actions: np.ndarray) -> None:
        """Begins a step."""
        self._env.send(actions)

    def receive(self) -> Outcome:
        """Completes the step."""
        obs, reward, terminated, truncated, info = self._env.recv()
        reward, terminated, truncated = outcome(reward, terminated, truncated, len(reward))
        if self._games is not None:
            self._games.hear_step(terminated, truncated, info)
        return obs, reward, terminated, truncated, None

    def close(self) -> None:
        """Releases processes and memory, also of environments that have failed."""
        self._env.close()


def adapt(env: Any, num_envs: int, source: str, limit: float | None = None) -> MemberEnv:
    """Puts what a factory returned behind the common interface.

    Args:
        env: the factory's result.
        num_envs: environments that were asked for.
        source: the factory's name, for errors.
        limit: seconds that processes of it have for an answer; None: no limit.

    Raises:
        ConfigError: it is no vector environment, has another number of environments, ignores seeds, or keeps running
            statistics.
    """
    from stable_baselines3.common.vec_env import VecEnv  # slow to import, and most runs have no factory

    if isinstance(env, MemberEnv):
        return GivenEnv(env, num_envs)
    if not isinstance(env, (VectorEnv, VecEnv)):
        raise ConfigError(
            f"{source} returned {type(env).__name__}, which is neither a gymnasium VectorEnv nor a stable_baselines3 "
            "VecEnv nor a popgraft.rollout.MemberEnv; return for example "
            "gymnasium.vector.SyncVectorEnv([make_env] * num_envs)"
        )
    if env.num_envs != num_envs:
        raise ConfigError(
            f"{source} returned {env.num_envs} environments, but num_envs={num_envs} were asked for; "
            "use the argument num_envs"
        )
    if any(base.__name__ == "EnvPoolMixin" for base in type(env).__mro__):
        raise ConfigError(
            f"{source} returned an EnvPool, which ignores the seed of a reset; set env.vectorization: envpool"
        )
    return GymnasiumEnv(env, limit) if isinstance(env, VectorEnv) else StableBaselinesEnv(env, limit)


class _Deferred:
    """Gives a vector environment that steps at once the two halves of an asynchronous one."""

    def __init__(self, env: VectorEnv[Any, Any, Any]) -> None:
        self._step = env.step

    def step_async(self, actions: np.ndarray) -> None:
        self._actions = actions

    def step_wait(self) -> Any:
        return self._step(self._actions)
