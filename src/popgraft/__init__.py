"""Population-based training of recurrent reinforcement-learning agents, as one stacked PyTorch program."""

from popgraft.adversary import (
    PerturbationConfig,
    SAPPOConfig,
    StateAdversarialPPO,
    StatePerturbation,
    create_policy_loss_fn,
    create_sappo_wrapper,
    create_value_loss_fn,
)
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
from popgraft.pbt import (
    PBTAdversarialConfig,
    PBTConfig,
    PBTScheduler,
    PBTTrainingCoordinator,
    PopulationMember,
    load_pbt_adversarial_config,
)
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
    "PBTAdversarialConfig",
    "PBTConfig",
    "PBTScheduler",
    "PBTTrainingCoordinator",
    "PerturbationConfig",
    "Plan",
    "PopgraftError",
    "PopulationLost",
    "PopulationMember",
    "Run",
    "RunExists",
    "SAPPOConfig",
    "ShardLost",
    "StateAdversarialPPO",
    "StatePerturbation",
    "StoreError",
    "VarianceGradientScaler",
    "create_policy_loss_fn",
    "create_sappo_wrapper",
    "create_value_loss_fn",
    "load_config",
    "load_pbt_adversarial_config",
    "train",
]
