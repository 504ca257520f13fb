"""Typed configuration: what can be set, what it means, and what is refused."""

from popgraft.config.adversary import AdversaryConfig, AttackConfig, PerturbationConfig
from popgraft.config.environments import EnvConfig, EvaluationEnvConfig, WrapperConfig
from popgraft.config.execution import EngineConfig, ExecuteConfig
from popgraft.config.load import dump_config, flat_config, load_as, load_config, read_yaml
from popgraft.config.model import HYPERPARAMS, ModelConfig
from popgraft.config.network import NetworkConfig
from popgraft.config.optimizer import OptimizerKwargs, VGSConfig
from popgraft.config.population import PopulationConfig
from popgraft.config.schema import Config, EvaluationConfig, SnapshotConfig
from popgraft.config.shipped import named, shipped
from popgraft.config.trackers import MlflowConfig, TrackingConfig, WandbConfig

__all__ = [
    "HYPERPARAMS",
    "AdversaryConfig",
    "AttackConfig",
    "Config",
    "EngineConfig",
    "EnvConfig",
    "EvaluationConfig",
    "EvaluationEnvConfig",
    "ExecuteConfig",
    "MlflowConfig",
    "ModelConfig",
    "NetworkConfig",
    "OptimizerKwargs",
    "PerturbationConfig",
    "PopulationConfig",
    "SnapshotConfig",
    "TrackingConfig",
    "VGSConfig",
    "WandbConfig",
    "WrapperConfig",
    "dump_config",
    "flat_config",
    "load_as",
    "load_config",
    "named",
    "read_yaml",
    "shipped",
]
