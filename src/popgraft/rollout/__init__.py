"""Environments of a population, and what is collected from them. Importing it registers the project's own tasks."""

from popgraft.rollout import tasks as _tasks  # noqa: F401 - registers popgraft/RepeatPrevious-v0
from popgraft.rollout.grid import EnvGrid, Transition
from popgraft.rollout.spaces_of import spaces_of

__all__ = ["EnvGrid", "Transition", "spaces_of"]
