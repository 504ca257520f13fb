"""Networks with a population axis."""

from popgraft.nn.blocks import Layout, Params
from popgraft.nn.policy import Policy, Unrolled

__all__ = ["Layout", "Params", "Policy", "Unrolled"]
