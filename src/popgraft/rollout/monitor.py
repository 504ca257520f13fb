"""What a monitor deep in an environment says of whole episodes, where wrappers above it cut them or change rewards."""

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Optional

import numpy as np
from gymnasium.wrappers import RecordEpisodeStatistics


class EpisodeMonitor:
    """Whole episodes of the environments in a Stable-Baselines3 VecEnv, as `Monitor` and its like report them.

    Where losing a life ends an episode, and where rewards are clipped, the game beneath goes on, and has its own score.

    Args:
        num_envs: environments.
        running: asks for the returns so far [env] of the episodes that are not over.

    Attributes:
        over: whether the whole episode ended with the latest step [env].
        returns: of these episodes [env]; anything elsewhere.
        within: whether the latest end was none of a whole episode, which a reset may go on with [env].
    """

    def __init__(self, num_envs: int, running: Callable[[], Iterable[Any]]) -> None:
        self.over, self.within = np.zeros((2, num_envs), np.bool_)
        self.returns = np.zeros(num_envs)
        self._running = running

    @classmethod
    def of(cls, env: Any) -> Optional["EpisodeMonitor"]:
        """The monitor of a VecEnv; None where not every environment has one."""
        from stable_baselines3.common.monitor import Monitor  # slow to import, and most runs have none
        from stable_baselines3.common.vec_env import VecMonitor, unwrap_vec_wrapper

        outer = unwrap_vec_wrapper(env, VecMonitor)
        if outer is not None:
            return cls(env.num_envs, lambda: outer.episode_returns)
        with contextlib.suppress(NotImplementedError, AttributeError):  # a VecEnv that cannot say
            for kind, returns in ((Monitor, "rewards"), (RecordEpisodeStatistics, "episode_returns")):
                if all(env.env_is_wrapped(kind)):
                    return cls(env.num_envs, functools.partial(env.get_attr, returns))
        return None

    def hear(self, done: np.ndarray, infos: Sequence[Any]) -> None:
        """Takes what a step says."""
        self.over[:] = False
        for env in np.flatnonzero(done).tolist():
            episode = infos[env].get("episode")
            self.within[env] = episode is None
            if episode is not None:
                self.over[env], self.returns[env] = True, episode["r"]

    def standing(self) -> np.ndarray:
        """Returns so far of the episodes that are not over [env]."""
        return np.array([np.sum(value) for value in self._running()], np.float64)


class GameMonitor(EpisodeMonitor):
    """Whole games of an EnvPool: what a step brought beneath `reward_clip`, and how many lives are left, stand in its
    info.

    Args:
        num_envs: environments, which have just begun; they reset themselves in the step after an end.
    """

    def __init__(self, num_envs: int) -> None:
        super().__init__(num_envs, lambda: self.returns)

    @staticmethod
    def can_hear(info: Mapping[str, Any]) -> bool:
        """Whether an EnvPool says what is needed."""
        return {"lives", "reward"} <= info.keys()

    def hear_step(self, terminated: np.ndarray, truncated: np.ndarray, info: Mapping[str, Any]) -> None:
        """Takes what a step says."""
        self.returns[:] = np.where(self.over, 0, self.returns + info["reward"])
        finished = (info["lives"] == 0) | (info.get("terminated", 0) != 0)  # some games end with lives left
        self.over[:] = truncated | (terminated & finished)
