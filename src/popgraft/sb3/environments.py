"""The user's VecEnv as the engine's rollout steps it, with somebody listening."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.vec_env import VecEnvWrapper, VecNormalize

from popgraft.rollout.adapters import own_environments, vec_env_ends
from popgraft.rollout.answers import deliver, flags, one, rewards
from popgraft.rollout.base import ArrayGrid, Transition
from popgraft.rollout.member_env import final_observation, kept
from popgraft.rollout.normalizers import running_statistics
from popgraft.rollout.spaces_of import action_encoder, fields_of, spaces_of
from popgraft.rollout.usable import fault_in, named, named_terminal, usable

Listener = Callable[[dict[str, Any]], None]
"""Is told of every step, under the names that Stable-Baselines3's callbacks know."""


def normalizers(env: Any) -> Iterator[VecNormalize]:
    """Every `VecNormalize` among the user's wrappers, from the outermost inwards."""
    while isinstance(env, VecEnvWrapper):
        if isinstance(env, VecNormalize):
            yield env
        env = env.venv


def scales_rewards(env: Any) -> bool:
    """Whether a `VecNormalize` scales rewards, at any depth of the user's wrappers."""
    return any(normalizer.norm_reward for normalizer in normalizers(env))


class VecEnvGrid(ArrayGrid):
    """A grid with one member, whose environments belong to the user.

    Args:
        observation_space: of one environment.
        action_space: of one environment.
        num_envs: number of environments.
        device: where the agent is.

    Raises:
        ConfigError: a space of a kind that is not supported.
    """

    def __init__(
        self, observation_space: gym.Space[Any], action_space: gym.Space[Any], num_envs: int, device: torch.device
    ) -> None:
        self.pop, self.num_envs, self.device = 1, num_envs, device
        self.spaces = spaces_of(observation_space, action_space)
        self._fields = fields_of(observation_space)
        self._encode_actions = action_encoder(action_space)
        self.observations, finals = (
            {
                name: np.zeros((1, num_envs, *spec.shape), np.uint8 if spec.image else np.float32)
                for name, spec in self.spaces.obs.items()
            }
            for _ in range(2)
        )
        flags = [np.zeros((1, num_envs), np.bool_) for _ in range(4)]
        self._transition = Transition(
            reward=np.zeros((1, num_envs), np.float32),
            terminated=flags[0],
            truncated=flags[1],
            valid=np.ones((1, num_envs), np.bool_),
            started=flags[2],
            final=flags[3],
            final_observations=finals,
        )
        self._given = {"reward": self._transition.reward, **named(self.observations)}
        self._env: Any = None
        self._listener: Listener | None = None

    def begin(self, env: Any, observation: Any, listener: Listener) -> None:
        """Prepares a rollout.

        Args:
            env: the VecEnv to step.
            observation: what it shows now.
            listener: is called after every step.

        Raises:
            UnusableNumber: the observation is not finite, or far too large.
        """
        if env is not self._env:
            own_environments(env.unwrapped)
            _warn_of_statistics(env)
        self._env, self._listener = env, listener
        self._show(observation)
        self._examine(named(self.observations))

    def step(self, actions: np.ndarray) -> Transition:
        """Takes one action [1, env, dims] in every environment, and tells the listener.

        Raises:
            ConfigError: the environments give something of another shape or type than they should.
            UnusableNumber: a reward or an observation that is not finite, or far too large.
        """
        assert self._listener is not None, "begin a rollout first"
        taken = self._encode_actions(actions[0])
        new_obs, reward, dones, infos = self._env.step(taken)
        result = self._transition
        with np.errstate(over="ignore"):  # what single precision cannot hold is infinite, and found to be
            result.reward[0] = rewards(reward, self.num_envs)
        result.started[0] = done = flags(dones, self.num_envs, "done")
        result.terminated[0], result.truncated[0], finals = vec_env_ends(done, infos)
        result.final[0] = result.truncated[0]
        kept(finals, new_obs, result.truncated[0])
        for env in np.flatnonzero(result.final[0]).tolist():
            slot = {name: out[0, env : env + 1] for name, out in result.final_observations.items()}
            with np.errstate(over="ignore"):
                deliver(self._fields, one(final_observation(finals, env)), slot, env)
        self._show(new_obs)
        self._examine(self._given)
        if result.final.any():
            self._examine(named_terminal(result.final_observations, result.final))
        self._listener(
            {
                "new_obs": new_obs,
                "rewards": reward,
                "dones": dones,
                "infos": infos,
                "actions": actions[0],
                "clipped_actions": taken,
            }
        )
        return result

    def _examine(self, given: dict[str, np.ndarray]) -> None:
        """Raises where a number [1, env, *shape] is not usable.

        A `VecNormalize` spreads one such number over all environments: what the innermost was given is looked at first.
        """
        if all(usable(numbers) for numbers in given.values()):
            return
        for normalizer in [*normalizers(self._env)][-1:]:
            own = normalizer.get_original_obs()
            original = {
                f"observation {key!r}": x for key, x in (own if isinstance(own, dict) else {"obs": own}).items()
            }
            if fault := fault_in({"reward": normalizer.get_original_reward(), **original}):
                raise fault
        fault = fault_in({name: numbers[0] for name, numbers in given.items()})
        assert fault is not None
        raise fault

    def _show(self, raw: Any) -> None:
        with np.errstate(over="ignore"):
            deliver(self._fields, raw, {name: out[0] for name, out in self.observations.items()})


def _warn_of_statistics(env: Any) -> None:
    """Of all but Stable-Baselines3's own, which its users save beside the model."""
    if found := [name for name in running_statistics(env) if name != "VecNormalize"]:
        warnings.warn(
            f"{' and '.join(found)} keeps running statistics inside the environments, which neither a saved model nor "
            "a graft takes along; use VecNormalize, or normalize_obs=True and normalize_reward=True",
            stacklevel=2,
        )
