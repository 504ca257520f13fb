"""Who inherits from whom, and with which hyperparameters. The decision sees scores and numbers, never a network."""

from popgraft.pbt.prescribed import Prescribed, make_schedule
from popgraft.pbt.schedule import Schedule

__all__ = ["Prescribed", "Schedule", "make_schedule"]
