"""A policy alone in a file, with the statistics that it acts and predicts by, and without pickled objects."""

import contextlib
import json
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from stable_baselines3.common.save_util import open_path
from stable_baselines3.common.utils import ConstantSchedule

from popgraft.disk import reason
from popgraft.errors import ConfigError, StoreError
from popgraft.sb3.archive import Source, called, content, reading
from popgraft.sb3.arguments import run_config
from popgraft.sb3.birth import settle
from popgraft.sb3.given import argument
from popgraft.sb3.kinds import named_code
from popgraft.sb3.parts import StatePart
from popgraft.sb3.plausible import check_sizes
from popgraft.sb3.values import Missing, decode, encode
from popgraft.untrusted import load_plain, unzip

P = TypeVar("P", bound=Any)
SPACES = ("observation_space", "action_space")


def write(path: Source, policy: Any, arguments: dict[str, Any]) -> None:
    """Writes a policy.

    Args:
        path: where to, or an open file.
        policy: a policy of `popgraft.sb3`.
        arguments: of its class.
    """
    given = {**arguments, "lr_schedule": policy.optimizer.param_groups[0]["lr"]}
    held = {
        "data": json.dumps({"arguments": encode(given), "statistics": sorted(policy.statistics)}),
        "policy": policy.state_dict(),
        "returns": StatePart(policy.member.returns, "returns").state_dict(),
    }
    file = open_path(path, "w", suffix="pkl")
    own = file if isinstance(path, (str, Path)) else contextlib.nullcontext()  # a file of the user's stays open
    with own:
        torch.save(held, file)


def load(cls: type[P], path: Source, device: torch.device | str) -> P:
    """Builds a policy from a file.

    Raises:
        StoreError: the file is missing, damaged or foreign.
        ConfigError: it needs an object that a file cannot hold.
    """
    try:
        blob = content(path, ".pkl")
    except OSError as error:
        raise StoreError(f"cannot read the policy {path}: {reason(error)}") from None
    path = called(path)
    files, missing = unzip(path, blob), Missing()
    held = None if "data" in files else load_plain(path, blob, files)
    if isinstance(held, dict) and "format_version" in held:
        raise StoreError(
            f"{path} is a checkpoint of a coordinator or scheduler; make a model with the arguments that it was made "
            "with, and call its set_parameters(path)"
        )
    if not isinstance(held, dict) or "data" not in held:
        raise StoreError(
            f"{path} is no saved policy; give a file that policy.save wrote, or an agent's to DistributionalPPO.load"
        )
    with reading(path):
        data = json.loads(held["data"])
        arguments, statistics = decode(data["arguments"], cls.__name__, missing), data["statistics"]
        missing.names += [f"{name}={path}" for name, path in named_code(arguments)]
    if missing.names:
        raise ConfigError(
            f"{path} was saved with {', '.join(missing.names)}, which a file cannot hold without code; save the whole "
            "model, and give it again: DistributionalPPO.load(path, custom_objects={...})"
        )
    with reading(path):
        spaces = {name: arguments[name] for name in SPACES}
        kwargs = {name: value for name, value in arguments.items() if name not in (*SPACES, "lr_schedule")}
        check_sizes(path, {**spaces, "settings": {}, "policy_kwargs": kwargs, "policy_class": cls}, held)
        policy = cls(**spaces, lr_schedule=ConstantSchedule(arguments["lr_schedule"]), **kwargs)
        settings = {"normalize_obs": "obs" in statistics, "normalize_reward": "returns" in statistics}
        config = run_config({"n_steps": 2}, policy, 1, None, settings, False)
        settle(policy, config, int(np.random.SeedSequence().generate_state(1)[0]), argument("device", device))
        policy.load_state_dict(held["policy"])
        StatePart(policy.member.returns, "returns").load_state_dict(held["returns"])
    policy.set_training_mode(False)
    return cast(P, policy)
