"""Typed configuration: what can be set, what it means, and what is refused."""

from popgraft.config.load import dump_config, load_config, read_yaml
from popgraft.config.schema import (
    HYPERPARAMS,
    Config,
    EngineConfig,
    EnvConfig,
    EvaluationConfig,
    ExecuteConfig,
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
    "dump_config",
    "load_config",
    "read_yaml",
]
