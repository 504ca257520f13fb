"""Environments of a population, and what is collected from them. Importing it registers the project's own tasks."""

from popgraft.rollout import tasks as _tasks  # noqa: F401 - registers popgraft/RepeatPrevious-v0
from popgraft.rollout.base import Transition
from popgraft.rollout.grid import EnvGrid
from popgraft.rollout.member_env import MemberEnv
from popgraft.rollout.spaces_of import spaces_of

__all__ = ["EnvGrid", "MemberEnv", "Transition", "spaces_of"]
