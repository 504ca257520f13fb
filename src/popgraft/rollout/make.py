"""Which grid a configuration asks for."""

from collections.abc import Callable
from typing import Any

import torch

from popgraft.config import EnvConfig
from popgraft.rollout.base import CPU, SeededGrid
from popgraft.rollout.grid import EnvGrid
from popgraft.rollout.tensor_grid import TensorGrid


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
