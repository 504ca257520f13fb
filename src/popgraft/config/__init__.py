"""Typed configuration: what can be set, what it means, and what is refused."""

from popgraft.config.load import load_config, read_yaml
from popgraft.config.schema import (
    HYPERPARAMS,
    Config,
    EnvConfig,
    EvaluationConfig,
    ExecuteConfig,
    EngineConfig,
    ModelConfig,
    NetworkConfig,
    PBTConfig,
    WrapperConfig,
)

__all__ = [
    "HYPERPARAMS",
    "Config",
    "EngineConfig",
    "EnvConfig",
    "EvaluationConfig",
    "ExecuteConfig",
    "ModelConfig",
    "NetworkConfig",
    "PBTConfig",
    "WrapperConfig",
    "load_config",
    "read_yaml",
]
