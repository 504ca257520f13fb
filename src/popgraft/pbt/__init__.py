"""Who inherits from whom, and with which hyperparameters. The decision sees scores and numbers, never a network."""

from popgraft.pbt.choice import Choice
from popgraft.pbt.evolution import Evolution
from popgraft.pbt.exploit import Exploit
from popgraft.pbt.explore import EachByItself, Explore
from popgraft.pbt.prescribed import Prescribed, make_strategy
from popgraft.pbt.standing import Best, Past, Standing, everybody
from popgraft.pbt.strategy import Strategy

__all__ = [
    "Best",
    "Choice",
    "EachByItself",
    "Evolution",
    "Exploit",
    "Explore",
    "Past",
    "Prescribed",
    "Standing",
    "Strategy",
    "everybody",
    "make_strategy",
]
