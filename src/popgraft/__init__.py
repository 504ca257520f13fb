"""Population-based training of recurrent reinforcement-learning agents, as one stacked PyTorch program."""

from popgraft.config import Config, load_config
from popgraft.errors import (
    ConfigError,
    EnvironmentFault,
    MissingExtra,
    PopgraftError,
    PopulationLost,
    RunExists,
    StoreError,
)
from popgraft.hyperparams import HyperparamConfig
from popgraft.train import Agent, Generation, Observer, Plan, Run, train

__version__ = "0.1.0"

__all__ = [
    "Agent",
    "Config",
    "ConfigError",
    "EnvironmentFault",
    "Generation",
    "HyperparamConfig",
    "MissingExtra",
    "Observer",
    "Plan",
    "PopgraftError",
    "PopulationLost",
    "Run",
    "RunExists",
    "StoreError",
    "load_config",
    "train",
]
