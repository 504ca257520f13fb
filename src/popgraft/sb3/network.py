"""RecurrentPPO's network, by the arguments of its policies, as the engine's."""

import difflib
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from stable_baselines3.common.torch_layers import CombinedExtractor, FlattenExtractor, NatureCNN
from torch import nn

from popgraft.config import NetworkConfig
from popgraft.errors import ConfigError

ACTIVATIONS: dict[type[nn.Module], str] = {
    nn.Tanh: "tanh",
    nn.ReLU: "relu",
    nn.LeakyReLU: "leaky_relu",
    nn.ELU: "elu",
    nn.SiLU: "silu",
    nn.GELU: "gelu",
}
"""Names of nonlinearities in the engine."""

ENCODERS: dict[type[nn.Module], str] = {
    FlattenExtractor: "mlp",
    NatureCNN: "cnn",
    CombinedExtractor: "auto",
}
"""Names of the engine's encoders that compute the same."""

FEATURES: dict[type[nn.Module], tuple[str, int]] = {
    FlattenExtractor: ("", 1),
    NatureCNN: ("features_dim", 512),
    CombinedExtractor: ("cnn_output_dim", 256),
}
"""Keyword of those extractors that sets the features of an image, and its default."""


IDLE = {"log_std_init", "sde_sample_freq", "precision"}
"""Settings by which the same weights are the same function."""


def network_settings(given: Mapping[str, Any], features: int) -> dict[str, Any]:
    """Arguments of a policy as settings of its network.

    Args:
        given: all of them, and as `features_extractor_class` the one that it takes.
        features: of an image, see `image_features`.

    Raises:
        ConfigError: an argument that the engine has no counterpart of, or a combination that cannot work.
    """
    extractor, dropped = given["features_extractor_class"], given["lstm_kwargs"] or {}
    if set(dropped) - {"dropout"}:
        raise ConfigError(f"lstm_kwargs={given['lstm_kwargs']!r}: only dropout is available; remove the rest")
    if given["shared_lstm"] and given["enable_critic_lstm"]:
        raise ConfigError(
            "shared_lstm=True and enable_critic_lstm=True exclude each other; set enable_critic_lstm=False"
        )
    own = "separate" if given["enable_critic_lstm"] else "detached" if given["shared_lstm"] else "none"
    actor_layers, critic_layers = layers(given["net_arch"], extractor is NatureCNN)
    return {
        "encoder": ENCODERS.get(extractor, "auto"),
        "encoder_layers": [],
        "cnn_features": features,
        "normalize_images": given["normalize_images"],
        "share_encoder": given["share_features_extractor"],
        "activation": activation(given["activation_fn"]),
        "hidden_size": given["lstm_hidden_size"],
        "recurrent_layers": given["n_lstm_layers"],
        "recurrent_dropout": dropped.get("dropout", 0.0),
        "critic_recurrent": own,
        "head_layers": actor_layers,
        "critic_head_layers": critic_layers,
        "log_std_init": given["log_std_init"],
        "use_sde": given["use_sde"],
    }


def image_features(extractor: type[nn.Module], kwargs: Mapping[str, Any], normalize_images: bool) -> int:
    """Features that one of Stable-Baselines3's extractors makes of an image.

    Args:
        extractor: one of `ENCODERS`.
        kwargs: its arguments.
        normalize_images: whether the policy divides 8-bit images by 255.

    Raises:
        ConfigError: an argument that the engine has no counterpart of.
    """
    (keyword, usual), left = FEATURES[extractor], dict(kwargs)
    if left.pop("normalized_image", not normalize_images) != (not normalize_images):
        raise ConfigError("features_extractor_kwargs has normalized_image; set normalize_images in policy_kwargs")
    features: int = left.pop(keyword, usual)
    if left:
        raise ConfigError(f"features_extractor_kwargs={left} are not available with {extractor.__name__}")
    return features


def function_of(config: NetworkConfig) -> dict[str, Any]:
    """The settings by which the same weights are another function."""
    return {name: value for name, value in config if name not in IDLE}


def check_kinds(given: Mapping[str, Any]) -> None:
    """Refuses arguments of a policy that are of a kind of no use.

    Raises:
        ConfigError: names the first.
    """
    for name in ("features_extractor_kwargs", "optimizer_kwargs", "lstm_kwargs"):
        if not isinstance(given[name], (Mapping, type(None))):
            raise ConfigError(f"{name}={given[name]!r} must be a dict of arguments")
    for name in ("ortho_init", "shared_lstm", "enable_critic_lstm"):
        if not isinstance(given[name], (bool, np.bool_)):
            raise ConfigError(f"{name}={given[name]!r} must be True or False")
    for name in ("lstm_hidden_size", "n_lstm_layers"):
        if not is_width(given[name]):
            raise ConfigError(f"{name}={given[name]!r} must be a whole number above 0")
    for name, only in {"full_std": True, "use_expln": False, "squash_output": False}.items():
        if given[name] != only:
            raise ConfigError(f"{name}={given[name]!r} is not available; leave it at {only!r}")


def check_known(network: Mapping[str, Any], own: list[str]) -> None:
    """Refuses keys that are neither arguments of the policy, which are `own`, nor settings of its network."""
    known = sorted({*own, *NetworkConfig.model_fields})
    for key in sorted(set(network).difference(known)):
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else f"the keys there are {', '.join(known)}"
        raise ConfigError(f"policy_kwargs has the unknown key {key!r}; {hint}")


def activation(cls: type[nn.Module]) -> str:
    """The engine's name of a nonlinearity.

    Raises:
        ConfigError: the engine does not have it.
    """
    if cls not in list(ACTIVATIONS):
        known = ", ".join(f"nn.{known.__name__}" for known in ACTIVATIONS)
        raise ConfigError(f"activation_fn={getattr(cls, '__name__', cls)} is not available; choose one of {known}")
    return ACTIVATIONS[cls]


def layers(net_arch: Any, image: bool) -> tuple[list[int], list[int]]:
    """Widths of the dense layers behind the memories of actor and critic.

    Args:
        net_arch: a list for both, or a dict with `pi` and `vf`; None: none behind a NatureCNN, else [64, 64].
        image: whether the extractor is a NatureCNN.

    Raises:
        ConfigError: another form.
    """
    if net_arch is None:
        net_arch = [] if image else [64, 64]
    if isinstance(net_arch, list) and len(net_arch) == 1 and isinstance(net_arch[0], dict):
        warnings.warn(f"net_arch={net_arch} is how it was before Stable-Baselines3 1.8; drop the list", stacklevel=2)
        net_arch = net_arch[0]  # which RL Zoo's settings still have
    both = [net_arch.get("pi", []), net_arch.get("vf", [])] if isinstance(net_arch, dict) else [net_arch, net_arch]
    known = not isinstance(net_arch, dict) or set(net_arch) <= {"pi", "vf"}
    if not known or not all(isinstance(part, (list, tuple)) and all(map(is_width, part)) for part in both):
        raise ConfigError(f"net_arch={net_arch!r} must be a list of widths above 0, or dict(pi=[...], vf=[...])")
    return list(both[0]), list(both[1])


def is_width(value: Any) -> bool:
    """Whether it is a whole number above 0."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool) and bool(value > 0)
