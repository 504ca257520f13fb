"""Population-based training of recurrent reinforcement-learning agents, as one stacked PyTorch program."""

from popgraft.config import Config, load_config
from popgraft.errors import (
    ConfigError,
    EnvironmentFault,
    MissingExtra,
    PopgraftError,
    PopulationLost,
    RunExists,
    ShardLost,
    StoreError,
)
from popgraft.hyperparams import HyperparamConfig
from popgraft.optim import UPGD, UPGDW, AdaptiveUPGD, VarianceGradientScaler
from popgraft.pbt import PBTConfig, PBTScheduler, PopulationMember
from popgraft.train import Agent, Generation, Observer, Plan, Run, train

__version__ = "0.1.0"

__all__ = [
    "UPGD",
    "UPGDW",
    "AdaptiveUPGD",
    "Agent",
    "Config",
    "ConfigError",
    "EnvironmentFault",
    "Generation",
    "HyperparamConfig",
    "MissingExtra",
    "Observer",
    "PBTConfig",
    "PBTScheduler",
    "Plan",
    "PopgraftError",
    "PopulationLost",
    "PopulationMember",
    "Run",
    "RunExists",
    "ShardLost",
    "StoreError",
    "VarianceGradientScaler",
    "load_config",
    "train",
]
