"""State-adversarial training: attacks on observations, and a policy that withstands them."""

from popgraft.adversary.attack import Vectors, perturb
from popgraft.adversary.config import PerturbationConfig, SAPPOConfig
from popgraft.adversary.foreign import (
    StateAdversarialPPO,
    StatePerturbation,
    create_policy_loss_fn,
    create_sappo_wrapper,
    create_value_loss_fn,
)
from popgraft.adversary.online import OnlineAttack
from popgraft.adversary.robust import Adversary, Draws, Sequences
from popgraft.adversary.schedule import scheduled_radius

__all__ = [
    "Adversary",
    "Draws",
    "OnlineAttack",
    "PerturbationConfig",
    "SAPPOConfig",
    "Sequences",
    "StateAdversarialPPO",
    "StatePerturbation",
    "Vectors",
    "create_policy_loss_fn",
    "create_sappo_wrapper",
    "create_value_loss_fn",
    "perturb",
    "scheduled_radius",
]
