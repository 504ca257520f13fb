"""What a graft means, once, for the engine and for models that are trained elsewhere.

Arithmetic on named state; it knows neither networks nor models.
"""

from popgraft.inheritance.faults import GraftRule, kept
from popgraft.inheritance.member import Units, inherit, inherited_values, overwrite_, strategies
from popgraft.inheritance.optimizer import TORCH, Fate, fate_of, inherit_, velocity_ratio
from popgraft.inheritance.parts import PARTS, STATEFUL, AgentPart
from popgraft.inheritance.success import HORIZONS, Success, no_worse
from popgraft.inheritance.weights import renewal_of, renewed

__all__ = [
    "HORIZONS",
    "PARTS",
    "STATEFUL",
    "TORCH",
    "AgentPart",
    "Fate",
    "GraftRule",
    "Success",
    "Units",
    "fate_of",
    "inherit",
    "inherit_",
    "inherited_values",
    "kept",
    "no_worse",
    "overwrite_",
    "renewal_of",
    "renewed",
    "strategies",
    "velocity_ratio",
]
