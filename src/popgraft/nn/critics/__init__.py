"""What critics predict, a file for every kind, and the head that holds one or two of them."""

from popgraft.nn.critics.base import AffineCritic, Critic
from popgraft.nn.critics.ensemble import CriticEnsemble

__all__ = ["AffineCritic", "Critic", "CriticEnsemble"]
