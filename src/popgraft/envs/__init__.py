"""Environments as tensor programs: all members and environments in one step, on any device."""

from popgraft.envs.base import Stepped, TensorEnv
from popgraft.envs.cartpole import CartPole
from popgraft.envs.pendulum import Pendulum
from popgraft.envs.repeat_previous import RepeatPrevious
from popgraft.envs.t_maze import TMaze
from popgraft.envs.tracking import Tracking

ENVS: dict[str, type[TensorEnv]] = {cls.__name__: cls for cls in (CartPole, Pendulum, RepeatPrevious, TMaze, Tracking)}
"""Those that come along, by name."""

__all__ = ["ENVS", "CartPole", "Pendulum", "RepeatPrevious", "Stepped", "TMaze", "TensorEnv", "Tracking"]
