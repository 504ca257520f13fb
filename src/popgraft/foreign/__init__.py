"""Populations of models that are trained elsewhere, by any library whose models look like Stable-Baselines3's.

A wing of its own above the engine, whose decisions (`pbt`), rules of inheritance (`inheritance`) and attacks
(`adversary`) it shares; nothing of the engine imports it.
"""

from popgraft.foreign.config import PBTConfig, SAPPOConfig
from popgraft.foreign.coordinator import PBTTrainingCoordinator
from popgraft.foreign.member import PopulationMember
from popgraft.foreign.population_config import PBTAdversarialConfig, load_pbt_adversarial_config
from popgraft.foreign.scheduler import PBTScheduler
from popgraft.foreign.state_adversarial import (
    StateAdversarialPPO,
    StatePerturbation,
    create_policy_loss_fn,
    create_sappo_wrapper,
    create_value_loss_fn,
)
from popgraft.foreign.upgd import UPGD, UPGDW, AdaptiveUPGD
from popgraft.foreign.vgs import VarianceGradientScaler

__all__ = [
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
]
