"""The environments of a whole population as one tensor program."""

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from jaxtyping import Float, Real
from torch import Tensor

from popgraft import tree
from popgraft.config import EnvConfig
from popgraft.envs import ENVS, TensorEnv
from popgraft.errors import ConfigError
from popgraft.names import import_name
from popgraft.rng import to_device
from popgraft.rollout.base import SeededGrid, Step
from popgraft.rollout.usable import LIMIT, fault_in
from popgraft.spaces import ActionSpec, Spaces

BLOCK = 128
"""Steps for which random numbers are drawn at once."""


class TensorGrid(SeededGrid):
    """Members × environments of a tensor environment, with next-step autoreset.

    A finished environment shows its terminal observation and spends the next step on its reset. No step waits for the
    device.

    Args:
        config: names the environment and its arguments.
        pop: members.
        num_envs: environments per member; None takes the configuration's.
        device: where all of it lives.

    Raises:
        ConfigError: there is no such environment, it does not take the arguments, or returns other shapes than it says.
    """

    in_process = True

    def __init__(self, config: EnvConfig, pop: int, num_envs: int | None, device: torch.device) -> None:
        self.env = _made(config)
        self.pop, self.num_envs = pop, num_envs or config.num_envs
        self.spaces = _spaces_of(self.env)
        self._noise = _Noise(pop, (self.num_envs, self.env.noise_dims), device)
        self._encode = _encoder(self.env.action, device)
        state = _checked_state(self.env, self._encode, torch.zeros(pop, self.num_envs, device=device))
        self._state = tree.map(torch.clone, state)  # leaves may share memory
        self._time = torch.zeros(pop, self.num_envs, dtype=torch.long, device=device)
        self._ended = torch.zeros_like(self._time, dtype=torch.bool)
        self._never = torch.zeros_like(self._ended)
        self._whole = torch.ones(pop, 1, 1, dtype=torch.bool, device=device)
        self._given = self._gathered(torch.zeros(pop, self.num_envs, device=device))
        self._seen = torch.zeros_like(self._given)

    @property
    def failures(self) -> dict[int, str]:
        """For every member that has failed since its last reset, what went wrong; waits for the device."""
        found = {}
        for row in self._whole.flatten().logical_not().nonzero().flatten().tolist():
            *numbers, reward = self._given[row].cpu().numpy().T
            given = {"reward": reward, **({"observation 'obs'": np.stack(numbers, -1)} if numbers else {})}
            fault = fault_in(given)
            found[row] = f"{type(fault).__name__}: {fault}"
        return found

    def reset(self, rows: Sequence[int], seeds: Sequence[int]) -> None:
        """Starts fresh episodes in all environments of some members."""
        index = torch.tensor(list(rows))
        fresh = self.env.reset(self._noise.restart(list(rows), list(seeds)))
        tree.put_(self._state, index, fresh)
        index = index.to(self._time.device)
        self._time[index], self._ended[index] = 0, False
        self._whole[index], self._given[index] = True, 0
        self._examine(torch.zeros_like(self._given[..., 0]))

    def observe(self) -> dict[str, Tensor]:
        """The observations to act on."""
        if self.env.observation.image:
            return {"obs": self.env.observe(self._state).clone()}  # may be a part of the state
        shape = self.env.observation.shape
        return {"obs": self._seen[..., :-1].reshape(*self._seen.shape[:2], *shape)}

    def act(self, actions: Real[Tensor, "pop env dims"]) -> Step:
        """Takes one action in every environment that has not ended, and resets the others.

        Raises:
            ConfigError: a reward or a termination of another shape or type than it should have.
        """
        ended, noise = self._ended, self._noise.next()
        valid = ended.logical_not()
        stepped, reward, terminated = self.env.step(self._state, self._encode(actions), noise)
        _check_like(self.env, "the reward", reward, self._never, torch.float32)
        _check_like(self.env, "the termination", terminated, self._never, torch.bool)
        fresh = self.env.reset(noise)
        self._state = tree.map(lambda new, old: torch.where(_like(ended, old), new, old), fresh, stepped)
        terminated = terminated & valid
        truncated = self._never
        if self.env.time_limit is not None:
            self._time = (self._time + 1) * valid
            truncated = (self._time >= self.env.time_limit) & terminated.logical_not()
        self._ended = terminated | truncated
        self._examine(reward.masked_fill(ended, 0))
        return Step(self._seen[..., -1], terminated, truncated, valid & self._whole.squeeze(-1), ended, None)

    def _examine(self, reward: Float[Tensor, "pop env"]) -> None:
        """Takes in what the environments give. Of a member that has failed, what it has failed with stays `_given`."""
        self._given = torch.where(self._whole, self._gathered(reward), self._given)
        largest = torch.linalg.vector_norm(self._given, torch.inf, dim=(1, 2), keepdim=True)
        self._whole = largest <= LIMIT  # NaN is not
        self._seen = torch.where(self._whole, self._given, 0)

    def _gathered(self, reward: Float[Tensor, "pop env"]) -> Float[Tensor, "pop env numbers"]:
        """Everything that the environments give, with the reward last; images have no unusable numbers."""
        if self.env.observation.image:
            return reward.unsqueeze(-1)
        shown = self.env.observe(self._state)
        return torch.cat([shown.reshape(*reward.shape, -1), reward.unsqueeze(-1)], dim=-1)

    def close(self) -> None:
        """Nothing is open."""


class _Noise:
    """Uniform numbers for every step, from a stream per member.

    The k-th step after a member's reset takes the k-th numbers of its stream, whatever the other members do. They are
    drawn on the CPU, in blocks, so that every device sees the same.
    """

    def __init__(self, pop: int, shape: tuple[int, int], device: torch.device) -> None:
        self._generators = [torch.Generator() for _ in range(pop)]
        self._shape, self._device, self._read = shape, device, BLOCK

    def restart(self, rows: list[int], seeds: list[int]) -> Float[Tensor, "rows env dims"]:
        """Begins the streams of some members anew, and returns their first numbers."""
        for row, seed in zip(rows, seeds, strict=True):
            self._generators[row].manual_seed(seed)
        first = self._drawn(rows, 1)
        if self._read < BLOCK:
            self._block[torch.tensor(rows), self._read :] = self._drawn(rows, BLOCK - self._read)
        return first[:, 0]

    def next(self) -> Float[Tensor, "pop env dims"]:
        """The numbers of the next step of all members."""
        if self._read == BLOCK:
            self._block, self._read = self._drawn(range(len(self._generators)), BLOCK), 0
        self._read += 1
        return self._block[:, self._read - 1]

    def _drawn(self, rows: Sequence[int], steps: int) -> Float[Tensor, "rows steps env dims"]:
        generators = (self._generators[row] for row in rows)
        drawn = [torch.rand((steps, *self._shape), generator=generator) for generator in generators]
        return to_device(torch.stack(drawn), self._device)


def _made(config: EnvConfig) -> TensorEnv:
    name = str(config.id)
    cls: Any = import_name(name, "env.id") if ":" in name else ENVS.get(name)
    if cls is None:
        raise ConfigError(
            f"env.id={name!r} is no tensor environment; there are {', '.join(ENVS)}, and yours as module:Class"
        )
    if not (isinstance(cls, type) and issubclass(cls, TensorEnv)):
        raise ConfigError(f"env.id={name!r} is {cls!r}, not a subclass of popgraft.envs.TensorEnv")
    try:
        return cls(**config.kwargs)
    except TypeError as error:
        raise ConfigError(f"env.id={name!r} does not take kwargs={config.kwargs}: {error}") from None


def _spaces_of(env: TensorEnv) -> Spaces:
    shown = env.observation
    low, high, dtype = (0, 255, np.uint8) if shown.image else (-np.inf, np.inf, np.float32)
    space = gym.spaces.Box(low, high, shown.shape, dtype)
    return Spaces({"obs": shown}, env.action, space, space)


def _checked_state(env: TensorEnv, encode: Callable[[Tensor], Tensor], zeros: Float[Tensor, "pop env"]) -> Any:
    """A state to begin with, once it is known that a step keeps its form and brings what a grid needs.

    Raises:
        ConfigError: something has another shape or type than it should.
    """
    noise = zeros.unsqueeze(-1).repeat(1, 1, env.noise_dims)
    actions = zeros.unsqueeze(-1).repeat(1, 1, env.action.dims)
    state = env.reset(noise)
    stepped, reward, terminated = env.step(
        state, encode(actions if env.action.kind == "box" else actions.long()), noise
    )
    pixels = torch.uint8 if env.observation.image else torch.float32
    pairs = [
        ("the reward", reward, zeros),
        ("the termination", terminated, zeros.bool()),
        ("the observation", env.observe(state), zeros.new_zeros(*zeros.shape, *env.observation.shape, dtype=pixels)),
    ]
    before, after = dict(tree.items(state)), dict(tree.items(stepped))
    if list(before) != list(after):
        raise ConfigError(
            f"{type(env).__name__}: the state consists of {list(before)}, and of {list(after)} after a step"
        )
    for path, leaf in before.items():
        pairs.append((f"the state {path}".strip(), after[path], leaf.new_zeros(*zeros.shape, *leaf.shape[2:])))
    for name, found, like in pairs:
        _check_like(env, name, found, like, like.dtype)
    return state


def _check_like(env: TensorEnv, name: str, found: Tensor, like: Tensor, dtype: torch.dtype) -> None:
    """Refuses what would be broadcast or converted."""
    if found.shape != like.shape or found.dtype != dtype:
        raise ConfigError(
            f"{type(env).__name__}: {name} has shape {tuple(found.shape)} and type {found.dtype}, "
            f"not {tuple(like.shape)} and {dtype}; the first axes are members and environments"
        )


def _encoder(spec: ActionSpec, device: torch.device) -> Callable[[Tensor], Tensor]:
    """How stored actions become the environment's own, as `spaces_of.action_encoder` does it with arrays."""
    low, high, start = (torch.tensor(numbers or 0, device=device) for numbers in (spec.low, spec.high, spec.start))

    def encode(actions: Tensor) -> Tensor:
        own = actions.nan_to_num().clamp(low, high) if spec.kind == "box" else actions + start
        return own.reshape(*actions.shape[:2], *spec.shape)

    return encode


def _like(ended: Tensor, leaf: Tensor) -> Tensor:
    """Flags [pop, env] with as many axes as a leaf [pop, env, ...]."""
    return ended.view(*ended.shape, *(1,) * (leaf.dim() - 2))
