"""Population-based training of recurrent reinforcement-learning agents, as one stacked PyTorch program."""

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from popgraft.sb3 import DistributionalPPO
    from popgraft.sb3.export import export
    from popgraft.train import Agent, Generation, Observer, Plan, Replay, Run, train
    from popgraft.train.replay import replay
    from popgraft.train.resume import resume

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

HOMES = {
    "config": ("AttackConfig", "Config", "load_config"),
    "config.adversary": ("PerturbationConfig",),
    "dashboard.report": ("report",),
    "errors": (
        "ConfigError",
        "EnvironmentFault",
        "MissingExtra",
        "OutOfMemory",
        "PopgraftError",
        "PopulationLost",
        "RunExists",
        "ShardLost",
        "StoreError",
        "UnusableNumber",
    ),
    "foreign": (
        "UPGD",
        "UPGDW",
        "AdaptiveUPGD",
        "PBTAdversarialConfig",
        "PBTConfig",
        "PBTScheduler",
        "PBTTrainingCoordinator",
        "PopulationMember",
        "SAPPOConfig",
        "StateAdversarialPPO",
        "StatePerturbation",
        "VarianceGradientScaler",
        "create_policy_loss_fn",
        "create_sappo_wrapper",
        "create_value_loss_fn",
        "load_pbt_adversarial_config",
    ),
    "hyperparams": ("HyperparamConfig",),
    "sb3": ("DistributionalPPO",),
    "sb3.export": ("export",),
    "train": ("Agent", "Generation", "Observer", "Plan", "Replay", "Run", "replay", "resume", "train"),
}
"""Where the public names are; each is imported when it is first asked for, because PyTorch is slow to import."""
PLACES = {name: home for home, names in HOMES.items() for name in names}


class _Package(ModuleType):
    """This package, whose public names win over rooms of the same name: `popgraft.train` is the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in PLACES and isinstance(value, ModuleType)):
            super().__setattr__(name, value)

    def __getattr__(self, name: str) -> Any:
        if name not in PLACES:
            raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")
        found = getattr(importlib.import_module(f"{self.__name__}.{PLACES[name]}"), name)
        setattr(self, name, found)
        return found

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *__all__})


sys.modules[__name__].__class__ = _Package
