"""What a run would take, in words."""

import math

from popgraft.cli.progress import clock, opening
from popgraft.spaces import ActionSpec, ObsSpec
from popgraft.train import Plan, counted
from popgraft.train.probe import Probe

FLOAT = 4
"""Bytes of a number."""


def expected(plan: Plan, probe: Probe) -> list[str]:
    """What is trained on what, for how long, and in how much memory.

    Args:
        plan: of the run.
        probe: a moment of it.
    """
    config = plan.config
    seen = ", ".join(f"{name} {_observed(spec)}" for name, spec in probe.spaces.obs.items())
    steps, envs, pop = config.model.n_steps, config.env.num_envs, config.pbt.population_size
    numbers = sum(math.prod(spec.shape) for spec in probe.spaces.obs.values()) + probe.state + probe.spaces.action.dims
    return [
        *opening(plan),
        f"agents see {seen}, act by {_acted(probe.spaces.action)}, and remember {probe.state:,} numbers",
        f"memory: {_bytes(4 * probe.parameters * pop)} for weights, gradients and averages of all members, "
        f"{_bytes(steps * envs * pop * numbers)} for a rollout; updates need several times as much",
        f"{probe.rate:,.0f} steps/s when tried for a second: about {clock(plan.steps / probe.rate)} for the run, "
        "evaluations in part; nothing was written",
    ]


def _observed(spec: ObsSpec) -> str:
    return f"{'×'.join(map(str, spec.shape)) or 'a number'}{' pixels' if spec.image else ''}"


def _acted(spec: ActionSpec) -> str:
    if spec.kind == "box":
        return counted(spec.dims, "real number")
    return f"{spec.kind.replace('_', '-')} choices of {'×'.join(map(str, spec.sizes))}"


def _bytes(numbers: int) -> str:
    megabytes = numbers * FLOAT / 2**20
    return f"{megabytes / 1024:.1f} GB" if megabytes >= 1024 else f"{megabytes:.1f} MB"
