"""State-adversarial training: attacks on observations, and a policy that withstands them."""

from popgraft.adversary.attack import Vectors, perturb
from popgraft.adversary.online import OnlineAttack
from popgraft.adversary.radius import scheduled_radius
from popgraft.adversary.robust import Adversary, Draws, Sequences

__all__ = [
    "Adversary",
    "Draws",
    "OnlineAttack",
    "Sequences",
    "Vectors",
    "perturb",
    "scheduled_radius",
]
