"""Proximal policy optimisation of recurrent agents, all members at once."""

from popgraft.ppo.member import initial_member
from popgraft.ppo.update import learn_

__all__ = ["initial_member", "learn_"]
