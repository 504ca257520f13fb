"""Networks with a population axis."""

from popgraft.nn.blocks import Layout, Params
from popgraft.nn.policy import Kept, Policy, Unrolled
from popgraft.nn.precision import gradient_factors

__all__ = ["Kept", "Layout", "Params", "Policy", "Unrolled", "gradient_factors"]
