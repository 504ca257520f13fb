"""Proximal policy optimisation of recurrent agents, all members at once."""

from popgraft.ppo.member import initial_member
from popgraft.ppo.update import Learner

__all__ = ["Learner", "initial_member"]
