"""Who inherits from whom, and with which hyperparameters. The decision sees scores and numbers, never a network."""

from popgraft.pbt.choice import Choice
from popgraft.pbt.evolution import Evolution
from popgraft.pbt.prescribed import Prescribed, make_strategy
from popgraft.pbt.standing import Best, Past, Standing, everybody
from popgraft.pbt.strategy import Strategy

__all__ = [
    "Best",
    "Choice",
    "Evolution",
    "Past",
    "Prescribed",
    "Standing",
    "Strategy",
    "everybody",
    "make_strategy",
]
