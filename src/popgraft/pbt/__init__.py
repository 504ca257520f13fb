"""The decision: who inherits from whom, and with which hyperparameters. It sees scores and numbers, never a network."""

from popgraft.pbt.config import PBTConfig
from popgraft.pbt.member import PopulationMember
from popgraft.pbt.schedule import Schedule
from popgraft.pbt.scheduler import PBTScheduler

__all__ = ["PBTConfig", "PBTScheduler", "PopulationMember", "Schedule"]
