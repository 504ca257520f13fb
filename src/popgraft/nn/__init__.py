"""Networks with a population axis."""

from popgraft.nn.blocks import Layout, Params
from popgraft.nn.policy import Kept, Policy, Unrolled

__all__ = ["Kept", "Layout", "Params", "Policy", "Unrolled"]
