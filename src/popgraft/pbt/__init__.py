"""The decision: who inherits from whom, and with which hyperparameters. It sees scores and numbers, never a network."""

from popgraft.pbt.schedule import Schedule

__all__ = ["Schedule"]
