"""RecurrentPPO's arguments as the engine's settings."""

import math
import warnings
from collections.abc import Mapping
from typing import Any, Literal, TypedDict

import torch

from popgraft.config import Config, NetworkConfig, load_as
from popgraft.config.optimizer import OPTIMIZERS as RULES
from popgraft.config.optimizer import made_for_adam, read_by
from popgraft.errors import ConfigError
from popgraft.foreign.population_config import torch_class
from popgraft.sb3.kinds import Kind, named
from popgraft.sb3.network import ACTIVATIONS, is_width

OPTIMIZERS: dict[type[torch.optim.Optimizer], str] = {torch_class(name): name for name in RULES.table}
"""Names of update rules in the engine."""


class Settings(TypedDict, total=False):
    """What the engine can do beyond RecurrentPPO, each with the default that docs/settings.md gives for it.

    `normalize_obs` and `normalize_reward` are off by default, as VecNormalize does it here; `normalize_returns` is on
    unless a VecNormalize scales rewards.
    """

    sequence_length: int | None
    encoder: Kind
    encoder_kwargs: dict[str, Any]
    encoder_layers: list[int]
    cnn_features: int
    recurrent: Kind
    recurrent_kwargs: dict[str, Any]
    critic_recurrent: Literal["separate", "shared", "detached", "none"]
    action_head: Kind
    action_head_kwargs: dict[str, Any]
    critic: Kind
    critic_kwargs: dict[str, Any]
    n_quantiles: int
    n_bins: int
    support: tuple[float, float]
    twin_critics: bool
    twin_reduce: Literal["min", "mean"]
    precision: Literal["float32", "bfloat16", "auto"]
    layer_norm: bool
    optimizer: Kind
    optimizer_kwargs: dict[str, Any]
    vgs: bool | dict[str, Any]
    normalize_returns: bool
    normalize_obs: bool
    normalize_reward: bool
    quantile_target: Literal["lambda", "mc"]
    cvar_weight: float
    cvar_alpha: float
    cvar_start: int
    cvar_ramp: int
    clip_range_vf_warmup: int
    ent_coef_final: float | None
    ent_coef_min: float
    ent_coef_decay_steps: int
    ent_coef_plateau_window: int
    ent_coef_plateau_tolerance: float
    ent_coef_plateau_min_updates: int
    kl_penalty: bool
    kl_beta: float
    kl_beta_max: float
    kl_pid_p: float
    kl_pid_i: float
    kl_pid_d: float
    adversary: dict[str, Any]


NETWORK = tuple(name for name in NetworkConfig.model_fields if name in Settings.__annotations__)
"""Settings of the network."""

ENGINE = ("sequence_length",)
"""Settings of the engine."""

TWINS: dict[str, tuple[set[str], set[str]]] = {
    "the optimizer": ({"optimizer", "optimizer_kwargs"}, {"optimizer_class", "optimizer_kwargs"}),
    "the encoder": (
        {"encoder", "encoder_kwargs", "cnn_features"},
        {"features_extractor_class", "features_extractor_kwargs"},
    ),
    "the critic's memory": ({"critic_recurrent"}, {"shared_lstm", "enable_critic_lstm"}),
}
"""What can be set twice: by these settings, and by those keys of `policy_kwargs`."""


def policy_arguments(settings: Mapping[str, Any], policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The policy's keyword arguments: the user's, and the network's part of the settings.

    Raises:
        ConfigError: both set the same thing, or there is no such kind of a part.
    """
    for what, (names, keys) in TWINS.items():
        own = names & set(settings)
        if own and keys & set(policy_kwargs):
            raise ConfigError(f"{' and '.join(sorted(own))} and policy_kwargs set {what} twice; remove one of them")
    return named({name: settings[name] for name in NETWORK if name in settings} | dict(policy_kwargs))


def run_config(
    values: Mapping[str, Any],
    policy: Any,
    n_envs: int,
    batch_size: int | None,
    settings: Mapping[str, Any],
    rewards_scaled: bool,
) -> Config:
    """The engine's configuration of a population of one.

    Args:
        values: settings of the model by the engine's names.
        policy: brings its network's settings, and class and constants of its optimizer.
        n_envs: environments.
        batch_size: samples in a minibatch.
        settings: what RecurrentPPO does not have.
        rewards_scaled: whether the user's VecNormalize scales rewards.

    Raises:
        ConfigError: a value that cannot work, alone or with others.
    """
    check_scaling(settings, rewards_scaled)
    minibatches, length = batches(values["n_steps"], n_envs, batch_size, settings.get("sequence_length"))
    engine = {name: settings[name] for name in ENGINE if name in settings} | {"sequence_length": length}
    own = {name: value for name, value in settings.items() if name not in (*NETWORK, "vgs", *ENGINE)}
    vgs = settings.get("vgs", False)
    optimizer = optimizer_settings(policy.optimizer_class, policy.optimizer_kwargs or None)
    model = {
        "n_minibatches": minibatches,
        "normalize_obs": False,
        "normalize_reward": False,
        "vgs": {"enabled": True, **vgs} if isinstance(vgs, Mapping) else {"enabled": vgs},
        "network": policy.network_config,
        **({} if {"optimizer", "optimizer_kwargs"} & set(own) else optimizer),
        **values,
        **own,
    }
    env = {"source": "python", "num_envs": n_envs}
    pbt = {"population_size": 1, "exploit_method": "none"}
    config = load_as(Config, {"env": env, "model": model, "pbt": pbt, "engine": engine})
    config.check_critic()
    config.check_rule()
    if caution := made_for_adam(config.model.optimizer, config.model.hyperparams()["learning_rate"]):
        warnings.warn(caution, stacklevel=4)  # the line that makes the model
    return config


def check_scaling(settings: Mapping[str, Any], rewards_scaled: bool) -> None:
    """Refuses to scale twice.

    Raises:
        ConfigError: both the settings and the user's VecNormalize scale rewards.
    """
    scaling = [name for name in ("normalize_returns", "normalize_reward") if settings.get(name)]
    if rewards_scaled and scaling:
        raise ConfigError(
            f"the environment's VecNormalize scales rewards, and so does {scaling[0]}=True; set {scaling[0]}=False, "
            "or VecNormalize(norm_reward=False)"
        )


def batches(n_steps: int, n_envs: int, batch_size: int | None, sequence_length: int | None) -> tuple[int, int]:
    """How a rollout is cut: number of minibatches, and length of a training sequence.

    A minibatch holds batch_size / sequence_length whole sequences, so that the length divides both `n_steps` and
    `batch_size`; where it is not given it is their greatest common divisor.

    Args:
        n_steps: steps of every environment.
        n_envs: environments.
        batch_size: samples in a minibatch; None, or more than there are: all.
        sequence_length: steps of backpropagation through time.

    Raises:
        ConfigError: a batch size or sequence length that does not divide.
    """
    for name, value in (("n_steps", n_steps), ("batch_size", batch_size), ("sequence_length", sequence_length)):
        if not (is_width(value) or (value is None and name != "n_steps")):
            raise ConfigError(f"{name}={value!r} must be a whole number above 0")
    samples = n_steps * n_envs
    size = samples if batch_size is None else min(batch_size, samples)
    if samples % size:
        raise ConfigError(
            f"batch_size={batch_size} must divide the {samples} samples of a rollout (n_steps={n_steps} x {n_envs} "
            f"environments), since no sample is left out; nearest: {_nearest(samples, size)}"
        )
    longest = math.gcd(n_steps, size)
    length = longest if sequence_length is None else sequence_length
    if longest % length:
        raise ConfigError(
            f"sequence_length={sequence_length} must divide both n_steps={n_steps} and batch_size={size}, because a "
            f"minibatch holds whole sequences; nearest: {_nearest(longest, length)}"
        )
    return samples // size, length


def fitting(n_steps: int, n_envs: int, batch_size: int | None, length: int) -> int | None:
    """The largest batch of whole sequences, up to a given size, that cuts a rollout evenly.

    Args:
        n_steps: steps of every environment.
        n_envs: environments.
        batch_size: samples in a minibatch; None: all.
        length: steps of a training sequence, which divides `n_steps`.
    """
    samples = n_steps * n_envs
    if batch_size is None or batch_size >= samples:
        return batch_size
    sequences = samples // length
    return length * max(count for count in range(1, batch_size // length + 1) if sequences % count == 0)


def optimizer_settings(cls: type[torch.optim.Optimizer], kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """`optimizer_class` and `optimizer_kwargs` of a policy as settings of the model.

    Raises:
        ConfigError: a class that the engine does not know.
    """
    if cls not in list(OPTIMIZERS):  # it may be anything, hashable or not
        known = ", ".join(known.__name__ for known in OPTIMIZERS)
        raise ConfigError(
            f"optimizer_class={getattr(cls, '__name__', cls)} is not available; choose one of {known}, "
            "or give optimizer=, a subclass of popgraft.optim.UpdateRule"
        )
    eps = 1e-8 if kwargs or cls is not torch.optim.Adam else 1e-5
    constants = ({"eps": eps} if "eps" in read_by(OPTIMIZERS[cls]) else {}) | dict(kwargs or {})
    if "beta1" in constants or "beta2" in constants:
        constants["betas"] = (constants.pop("beta1", 0.9), constants.pop("beta2", 0.999))
    return {"optimizer": OPTIMIZERS[cls], "optimizer_kwargs": constants}


def default_rate(settings: Mapping[str, Any], policy_kwargs: Any) -> float:
    """The learning rate of a model that is given none."""
    named = policy_kwargs.get("optimizer_class") if isinstance(policy_kwargs, Mapping) else None
    optimizer = settings.get("optimizer") or next((name for cls, name in OPTIMIZERS.items() if cls is named), "adam")
    try:
        known = RULES.name(optimizer)
    except ValueError:
        known = "adam"  # which is refused later
    return float(RULES.load(known).learning_rate)


def network_arguments(config: NetworkConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """Settings of a network as `policy_kwargs`, and those that RecurrentPPO does not have as `Settings`."""
    critic_layers = config.head_layers if config.critic_head_layers is None else config.critic_head_layers
    policy_kwargs = {
        "lstm_hidden_size": config.hidden_size,
        "n_lstm_layers": config.recurrent_layers,
        "lstm_kwargs": {"dropout": config.recurrent_dropout} if config.recurrent_dropout else None,
        "net_arch": {"pi": config.head_layers, "vf": critic_layers},
        "activation_fn": next(cls for cls, name in ACTIVATIONS.items() if name == config.activation),
        "share_features_extractor": config.share_encoder,
        "normalize_images": config.normalize_images,
        "log_std_init": config.log_std_init,
    }
    return policy_kwargs, {name: value for name, value in config.model_dump().items() if name in NETWORK}


def _nearest(n: int, value: int) -> str:
    divisors = [d for d in range(1, n + 1) if n % d == 0]
    below, above = [d for d in divisors if d < value][-1:], [d for d in divisors if d > value][:1]
    return " or ".join(str(d) for d in below + above)
