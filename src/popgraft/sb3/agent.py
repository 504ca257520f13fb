"""A `DistributionalPPO` as an agent of the engine, which plays the environments of a configuration."""

import dataclasses
from collections.abc import Callable
from typing import Any

from popgraft.config import Config
from popgraft.sb3.algorithm import DistributionalPPO
from popgraft.train import Agent


def agent_of(model: DistributionalPPO, config: Config, factory: Callable[..., Any] | None = None) -> Agent:
    """The model as an `Agent`, for evaluation with and without attacks.

    Args:
        model: trained or loaded; it shares its weights with the agent.
        config: its `env` section makes the environments, with the wrappers that the model was trained with;
            `evaluation` has the defaults. A `VecNormalize` that normalised observations must be among what it makes,
            with its statistics and `training=False`.
        factory: makes the environments, in place of the configured source.
    """
    spaces = dataclasses.replace(model.policy.spaces, raw_space=model.raw_space)
    return Agent(config, spaces, model.policy.member, factory, model.policy.network)
