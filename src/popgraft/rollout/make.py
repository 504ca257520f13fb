"""Which grid a configuration asks for."""

from collections.abc import Callable
from typing import Any

import torch

from popgraft.config import Config, EnvConfig
from popgraft.errors import ConfigError
from popgraft.rollout.base import CPU, SeededGrid
from popgraft.rollout.grid import EnvGrid
from popgraft.rollout.tensor_grid import TensorGrid
from popgraft.spaces import Spaces


def make_grid(
    config: EnvConfig,
    pop: int,
    num_envs: int | None = None,
    factory: Callable[..., Any] | None = None,
    device: torch.device = CPU,
) -> SeededGrid:
    """Tensor environments in one program, all others with a vector environment per member.

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
    if config.source == "tensor" and factory is None:
        return TensorGrid(config, pop, num_envs, device)
    return EnvGrid(config, pop, num_envs, factory, device)


def evaluation_source(
    config: Config, factory: Callable[..., Any] | None
) -> tuple[EnvConfig, Callable[..., Any] | None]:
    """The environments that agents are scored in, and the factory that makes them in place of the configured source.

    Args:
        config: the run.
        factory: takes the place of the configured source of training.
    """
    return config.evaluation_env, None if config.evaluation.env.names_source else factory


def make_evaluation_grid(
    config: Config,
    known: Spaces,
    pop: int,
    episodes: int,
    factory: Callable[..., Any] | None = None,
    device: torch.device = CPU,
) -> SeededGrid:
    """The environments that agents are scored in.

    Args:
        config: the run.
        known: what the agents see and do.
        pop: members.
        episodes: environments per member.
        factory: takes the place of the configured source of training.
        device: where the agents are.

    Raises:
        ConfigError: a source, space or wrapper that cannot work, or others than the agents know.
        MissingExtra: the source belongs to a package that is not installed.
        EnvironmentFault: the environment cannot be made.
    """
    env, own = evaluation_source(config, factory)
    grid = make_grid(env, pop, episodes, own, device)
    if (shown := _words(grid.spaces)) != (expected := _words(known)):
        grid.close()
        raise ConfigError(
            f"the environment has {shown}, but the agent knows {expected}; evaluate it in the environment that it was "
            "trained in, wrappers included"
        )
    return grid


def _words(spaces: Spaces) -> str:
    seen = ", ".join(f"{key} {spec.shape}" for key, spec in spaces.obs.items())
    action = spaces.action
    return f"observations {seen} and {action.kind} actions {action.sizes or action.shape}"
