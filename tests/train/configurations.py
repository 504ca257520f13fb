"""Small runs of every kind for `signals`: between them all that a run can be made of."""

from typing import Any

import gymnasium as gym
from gymnasium.vector import AutoresetMode, SyncVectorEnv, VectorEnv
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

BASE: dict[str, Any] = {
    "env": {"id": "popgraft/RepeatPrevious-v0", "num_envs": 2, "kwargs": {"delay": 1, "length": 7}},
    "model": {
        "n_steps": 8,
        "n_epochs": 2,
        "n_minibatches": 1,
        "network": {"encoder_layers": [8], "hidden_size": 16, "n_quantiles": 5},
    },
    "pbt": {
        "population_size": 3,
        "perturbation_interval": 2,
        "truncation_ratio": 0.34,
        "hyperparams": [{"name": "learning_rate", "min_value": 1e-4, "max_value": 1e-2, "is_log_scale": True}],
    },
    "evaluation": {"episodes": 2, "max_steps": 12, "final_episodes": 2},
    "snapshots": {"interval": 3, "keep": 2},
    "execute": {"shards": 2},
    "total_timesteps": 7 * 96,
}
"""Seven generations of three members: a second."""


def disabled(num_envs: int) -> VectorEnv[Any, Any, Any]:
    """Environments that wait for the engine to reset them."""
    return SyncVectorEnv([lambda: gym.make("CartPole-v1")] * num_envs, autoreset_mode=AutoresetMode.DISABLED)


def stable_baselines(num_envs: int) -> VecEnv:
    """Environments of another library."""
    return DummyVecEnv([lambda: gym.make("CartPole-v1")] * num_envs)


CARTPOLE = {"id": "CartPole-v1", "num_envs": 2}
PENDULUM = {"id": "Pendulum-v1", "num_envs": 2, "kwargs": {"max_episode_steps": 11}}
TENSORS = {"source": "tensor", "id": "CartPole", "num_envs": 4, "kwargs": {"time_limit": 11}}

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "lstm, one shard": {"execute": {"shards": 1}},
    "gru, tournament": {
        "model": {"optimizer": "adamw", "network": {"recurrent": "gru", "critic": "scalar"}},
        "pbt": {"exploit_method": "binary_tournament"},
    },
    "no memory, three shards": {
        "model": {"optimizer": "upgd", "network": {"recurrent": "none", "critic_recurrent": "none"}},
        "execute": {"shards": 3},
    },
    "twin critics, t-test": {
        "model": {
            "optimizer": "adaptive_upgd",
            "vgs": {"enabled": True},
            "network": {"critic_recurrent": "shared", "critic": "categorical", "twin_critics": True},
        },
        "pbt": {"exploit_method": "ttest", "explore_always": True},
    },
    "backtracking, a snapshot each time": {
        "pbt": {"exploit_method": "backtracking"},
        "snapshots": {"interval": 1, "keep": 1},
    },
    "a population that becomes smaller": {"pbt": {"population_schedule": [3, 2, 1]}},
    "adversary": {
        "env": PENDULUM,
        "model": {"adversary": {"enabled": True, "warmup_updates": 2}},
        "evaluation": {"attack_weight": 0.5, "attack": {"steps": 2}},
    },
    "minGRU, burn-in, episodes go on": {
        "model": {"network": {"recurrent": "mingru", "recurrent_layers": 2}},
        "pbt": {"reset_envs_on_exploit": False, "lstm_reset_mode": "burn_in"},
    },
    "training fitness, three shards": {"pbt": {"fitness": "training"}, "execute": {"shards": 3}},
    "environments in processes, one shard": {
        "env": {**CARTPOLE, "vectorization": "async"},
        "execute": {"shards": 1},
    },
    "environments in processes, two shards": {"env": {**CARTPOLE, "vectorization": "async"}},
    "tensor environments, one shard": {"env": TENSORS, "execute": {"shards": 1}, "total_timesteps": 7 * 192},
    "tensor environments, three shards": {"env": TENSORS, "execute": {"shards": 3}, "total_timesteps": 7 * 192},
    "resets by the engine": {"env": {"factory": "configurations:disabled", "num_envs": 2}},
    "next-step resets, gSDE": {
        "env": {**PENDULUM, "autoreset": "next_step"},
        "model": {"network": {"use_sde": True, "recurrent": "gru"}},
    },
    "a VecEnv, lower is better": {
        "env": {"factory": "configurations:stable_baselines", "num_envs": 2},
        "model": {"kl_penalty": True, "target_kl": 0.01},
        "pbt": {"metric_mode": "min", "optimizer_exploit_strategy": "partial"},
    },
    "wrappers, optimizer reset": {
        "env": {
            **CARTPOLE,
            "wrappers": [
                {"name": "hide", "kwargs": {"indices": [1]}},
                {"name": "flicker", "kwargs": {"probability": 0.2}},
            ],
        },
        "model": {"network": {"recurrent_layers": 2, "recurrent_dropout": 0.1}},
        "pbt": {"optimizer_exploit_strategy": "reset", "graft_faults": ["forget_normalizer"]},
    },
}


def settings_of(name: str, run_dir: str) -> dict[str, Any]:
    """The settings of a configuration."""
    return merged(BASE, CONFIGURATIONS[name]) | {"run_dir": run_dir}


def merged(settings: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """Settings with changes; environments are replaced, all else is merged."""
    found = dict(settings)
    for key, value in changes.items():
        together = isinstance(value, dict) and key != "env" and isinstance(found.get(key), dict)
        found[key] = merged(found[key], value) if together else value
    return found
