"""Who inherits from whom, and with which hyperparameters; for models that are trained elsewhere, also the graft itself.

The decision sees scores and numbers, never a network.
"""

from popgraft.pbt.adversarial_config import PBTAdversarialConfig, load_pbt_adversarial_config
from popgraft.pbt.config import PBTConfig
from popgraft.pbt.coordinator import PBTTrainingCoordinator
from popgraft.pbt.member import PopulationMember
from popgraft.pbt.prescribed import Prescribed, make_schedule
from popgraft.pbt.schedule import Schedule
from popgraft.pbt.scheduler import PBTScheduler

__all__ = [
    "PBTAdversarialConfig",
    "PBTConfig",
    "PBTScheduler",
    "PBTTrainingCoordinator",
    "PopulationMember",
    "Prescribed",
    "Schedule",
    "load_pbt_adversarial_config",
    "make_schedule",
]
