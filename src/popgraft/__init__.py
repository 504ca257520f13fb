"""Population-based training of recurrent reinforcement-learning agents, as one stacked PyTorch program."""

from typing import TYPE_CHECKING, Any

from popgraft.config import AttackConfig, Config, load_config
from popgraft.config.adversary import PerturbationConfig
from popgraft.dashboard.report import report
from popgraft.errors import (
    ConfigError,
    EnvironmentFault,
    MissingExtra,
    OutOfMemory,
    PopgraftError,
    PopulationLost,
    RunExists,
    ShardLost,
    StoreError,
    UnusableNumber,
)
from popgraft.foreign import (
    UPGD,
    UPGDW,
    AdaptiveUPGD,
    PBTAdversarialConfig,
    PBTConfig,
    PBTScheduler,
    PBTTrainingCoordinator,
    PopulationMember,
    SAPPOConfig,
    StateAdversarialPPO,
    StatePerturbation,
    VarianceGradientScaler,
    create_policy_loss_fn,
    create_sappo_wrapper,
    create_value_loss_fn,
    load_pbt_adversarial_config,
)
from popgraft.hyperparams import HyperparamConfig
from popgraft.train import Agent, Generation, Observer, Plan, Replay, Run, replay, resume, train

if TYPE_CHECKING:
    from popgraft.sb3 import DistributionalPPO
    from popgraft.sb3.export import export

__version__ = "0.1.0"

__all__ = [
    "UPGD",
    "UPGDW",
    "AdaptiveUPGD",
    "Agent",
    "AttackConfig",
    "Config",
    "ConfigError",
    "DistributionalPPO",
    "EnvironmentFault",
    "Generation",
    "HyperparamConfig",
    "MissingExtra",
    "Observer",
    "OutOfMemory",
    "PBTAdversarialConfig",
    "PBTConfig",
    "PBTScheduler",
    "PBTTrainingCoordinator",
    "PerturbationConfig",
    "Plan",
    "PopgraftError",
    "PopulationLost",
    "PopulationMember",
    "Replay",
    "Run",
    "RunExists",
    "SAPPOConfig",
    "ShardLost",
    "StateAdversarialPPO",
    "StatePerturbation",
    "StoreError",
    "UnusableNumber",
    "VarianceGradientScaler",
    "create_policy_loss_fn",
    "create_sappo_wrapper",
    "create_value_loss_fn",
    "export",
    "load_config",
    "load_pbt_adversarial_config",
    "replay",
    "report",
    "resume",
    "train",
]


def __getattr__(name: str) -> Any:
    """Imports what needs Stable-Baselines3, which is slow to import, when it is first asked for."""
    if name == "DistributionalPPO":
        from popgraft.sb3 import DistributionalPPO

        return DistributionalPPO
    if name == "export":
        from popgraft.sb3.export import export

        return export
    raise AttributeError(f"module 'popgraft' has no attribute {name!r}")
