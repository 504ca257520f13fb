"""Networks with a population axis."""

from popgraft.nn.blocks import Layout, Params
from popgraft.nn.critics import AffineCritic, Critic
from popgraft.nn.encoders import Encoder
from popgraft.nn.heads import ActionHead
from popgraft.nn.policy import Kept, Policy, Unrolled
from popgraft.nn.recurrent import Memory

__all__ = [
    "ActionHead",
    "AffineCritic",
    "Critic",
    "Encoder",
    "Kept",
    "Layout",
    "Memory",
    "Params",
    "Policy",
    "Unrolled",
]
