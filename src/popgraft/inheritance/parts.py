"""Of what parts an agent is, and so what a graft moves: one list, for the engine and for models of other libraries."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class AgentPart:
    """A part of an agent that is inherited.

    Attributes:
        name: its field of the engine's `Member`.
        entry: its entry in the checkpoint of a model that is trained elsewhere.
        attributes: where such a model may hold it, as an object with `state_dict` and `load_state_dict`.
    """

    name: str
    entry: str
    attributes: tuple[str, ...] = ()


PARTS = (
    AgentPart("params", "policy"),
    AgentPart("returns", "return_stats_state", ("return_stats", "_return_stats")),
    AgentPart("kl", "kl_penalty_state", ("kl_penalty", "_kl_penalty")),
    AgentPart("vgs", "vgs_state", ("vgs", "variance_gradient_scaler", "_variance_gradient_scaler")),
    AgentPart("entropy", "schedule_state", ("schedule", "_schedule")),
    AgentPart("age", "age", ("age", "_age")),
    AgentPart("optimizer", "optimizer_state"),
    AgentPart("hyperparams", "hyperparams"),
    AgentPart("normalizer", "vecnormalize_state"),
)
"""All parts, in the order in which a graft between models of other libraries applies them."""

STATEFUL = tuple(part for part in PARTS if part.attributes)
"""Parts that such a model holds as objects of their own."""
