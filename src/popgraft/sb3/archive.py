"""Models in files: Stable-Baselines3's zip layout, without pickled objects.

    data                           JSON: arguments, spaces, counters
    policy.pth                     the policy's state dict
    policy.optimizer.pth           the optimizer's
    kl_penalty_state.pth, …        the other parts of `get_parameters`
    pytorch_variables.pth          the random generators, the latest observations
    _stable_baselines3_version, system_info.txt

Tensors are read with `weights_only`, and `data` holds nothing but values, so that reading executes nothing. What is not
restored: environments, the recurrent state, a VecNormalize (save it beside the model), and the
user's own objects: policy and extractor classes must be given to `load` again; a schedule that is a function is
replaced by the value that it begins with.
"""

import contextlib
import dataclasses
import io
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from stable_baselines3.common.save_util import save_to_zip_file
from stable_baselines3.common.utils import check_for_correct_spaces

from popgraft import untrusted
from popgraft.disk import reason
from popgraft.errors import ArgumentError, ConfigError, PopgraftError, StoreError
from popgraft.foreign import checkpoint
from popgraft.foreign.checkpoint import V1, weights_of
from popgraft.sb3.arguments import Settings, batches, fitting
from popgraft.sb3.given import argument
from popgraft.sb3.kinds import named_code
from popgraft.sb3.plausible import check_sizes
from popgraft.sb3.values import Missing, decode, encode
from popgraft.untrusted import Budget, load_plain, unzip

M = TypeVar("M", bound=Any)
Source = str | Path | io.BufferedIOBase

ARGUMENTS = (
    "learning_rate",
    "n_steps",
    "batch_size",
    "n_epochs",
    "gamma",
    "gae_lambda",
    "clip_range",
    "clip_range_vf",
    "normalize_advantage",
    "ent_coef",
    "vf_coef",
    "max_grad_norm",
    "use_sde",
    "sde_sample_freq",
    "target_kl",
    "tensorboard_log",
    "policy_kwargs",
    "verbose",
    "seed",
)
"""Arguments of the constructor that are attributes too."""

COUNTERS = ("num_timesteps", "_total_timesteps", "_num_timesteps_at_start", "_n_updates", "_current_progress_remaining")
"""Attributes that learning has changed."""

SPACES = ("observation_space", "action_space")


@dataclasses.dataclass(frozen=True)
class Archive:
    """What a file holds.

    Attributes:
        data: entries of `data`, not yet decoded.
        parameters: what `get_parameters` gives, and the optimizer.
        variables: state of the random generators, and the observations to act on next.
    """

    data: dict[str, Any]
    parameters: dict[str, Any]
    variables: dict[str, Any]


def write(path: Source, model: Any, exclude: set[str], include: set[str]) -> None:
    """Writes a model.

    Raises:
        ConfigError: something is to be included that a file does not hold.
    """
    values = {name: getattr(model, name) for name in (*ARGUMENTS, *COUNTERS, *SPACES, "raw_space")}
    values |= {
        "policy_class": next(
            (name for name, policy in model.policy_aliases.items() if policy is model.policy_class), model.policy_class
        ),
        "stats_window_size": model._stats_window_size,
        "n_envs": model.n_envs,
        "settings": model.settings,
        "adversarial": model.adversary and model.adversary.state_dict(),
        "ep_info_buffer": None if model.ep_info_buffer is None else list(model.ep_info_buffer),
        "ep_success_buffer": None if model.ep_success_buffer is None else list(model.ep_success_buffer),
    }
    if include - set(values):
        raise ConfigError(f"include={sorted(include)}: a file holds {', '.join(values)} and the parameters, no more")
    data = {name: encode(value) for name, value in values.items() if name not in exclude - include}
    parameters = model.get_parameters(include_optimizer=True)
    parameters["policy.optimizer"] = parameters.pop("optimizer_state")
    variables = {"action": model.generators[0].get_state(), "prediction": model.policy.generator.get_state()}
    if model._last_obs is not None:
        variables["last_obs"] = _each(torch.as_tensor, model._last_obs)
        variables["last_episode_starts"] = torch.as_tensor(model._last_episode_starts)
    save_to_zip_file(path, data=data, params=parameters, pytorch_variables=variables)


def read(path: Source, device: torch.device | str = "auto", print_system_info: bool = False) -> Archive:
    """Reads a file without executing anything in it.

    Raises:
        StoreError: it is missing, damaged, foreign, or holds pickled objects.
    """
    blob = _blob(path)
    path, budget = called(path), Budget(len(blob))
    files = unzip(path, blob, budget)
    if _is_saved_by_torch(files):
        checkpoint.parse(path, blob)
        raise StoreError(
            f"{path} holds parameters alone, as PBTTrainingCoordinator and PBTScheduler write them; make a model with "
            "the arguments that it was made with, and call its set_parameters(path)"
        )
    if "data" not in files:
        raise StoreError(
            f"{path} is no saved agent; give a file that DistributionalPPO.save, or popgraft export, wrote"
        )
    try:
        data = json.loads(files["data"])
        entries = data.items()
    except (ValueError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path} is damaged or no saved agent ({type(error).__name__}: {error})") from None
    if print_system_info:
        print(files.get("system_info.txt", b"").decode(errors="replace"))
    place = argument("device", device)
    parts = {
        name.removesuffix(".pth"): _on(place, load_plain(path, content, budget=budget))
        for name, content in files.items()
        if name.endswith(".pth")
    }
    variables = parts.pop("pytorch_variables", {})
    if not isinstance(variables, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise StoreError(f"{path} is damaged: a file in it holds no dict of tensors")
    pickled = [name for name, value in entries if isinstance(value, dict) and ":serialized:" in value]
    if pickled or "settings" not in data:
        raise StoreError(
            f"{path} was not written by DistributionalPPO.save"
            + (f": it holds pickled objects ({', '.join(pickled[:3])}, …), which are not executed" if pickled else "")
            + "; set_parameters takes over weights from any dict of tensors"
        )
    return Archive(data, parts, variables)


def parameters(path: Source, device: torch.device | str = "auto") -> dict[str, Any]:
    """The parameters in a file that `write` wrote, or in a checkpoint of a coordinator or scheduler.

    Raises:
        StoreError: it is missing, damaged, foreign, or holds pickled objects.
    """
    blob = _blob(path)
    if not _is_saved_by_torch(unzip(called(path), blob)):
        return read(path, device).parameters
    found = checkpoint.parse(called(path), blob)
    data = {"policy": weights_of(found.data)} if found.format == V1 else found.data
    on_device: dict[str, Any] = _on(argument("device", device), data)
    return on_device


def _blob(path: Source) -> bytes:
    try:
        return content(path, ".zip")
    except OSError as error:
        raise StoreError(f"cannot read the model {path}: {reason(error)}") from None


def _is_saved_by_torch(files: Iterable[str]) -> bool:
    """Whether files of an archive are what `torch.save` makes of one value."""
    return any(name.endswith("/data.pkl") for name in files)


def content(path: Source, suffix: str) -> bytes:
    """What a file holds; the suffix may be left out of its name. A file of the user's stays open.

    Raises:
        OSError: it cannot be read.
        ArgumentError: neither a path nor a file of bytes.
        StoreError: see `untrusted.read`.
    """
    if isinstance(path, (str, Path)):
        place = Path(path)
        return untrusted.read(place if place.exists() or place.suffix == suffix else Path(f"{place}{suffix}"))
    found = None
    if not getattr(path, "closed", True):
        if path.seekable():
            path.seek(0)  # as zipfile does it: a file that was just written stands at its end
        found = path.read()
    if not isinstance(found, bytes):
        raise ArgumentError(f"path={path!r} must be a path, or a file that is open for reading bytes")
    return found


def called(path: Source) -> str:
    """What a file is called in messages."""
    return str(path) if isinstance(path, (str, Path)) else f"the open file {getattr(path, 'name', '')}".rstrip()


def _on(device: torch.device, value: Any) -> Any:
    """Plain values whose tensors are on a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return {key: _on(device, part) for key, part in value.items()}
    return [_on(device, part) for part in value] if isinstance(value, list) else value


def code_of(path: Source) -> dict[str, str]:
    """The kinds `module:Class` that a file's settings name, which must be given to `load` again.

    Raises:
        StoreError: the file cannot be read.
    """
    archive = read(path, "cpu")
    with reading(called(path)):
        return dict(named_code(archive.data["settings"]))


def load(
    cls: type[M],
    path: Source,
    env: Any,
    device: Any,
    custom_objects: dict[str, Any],
    arguments: dict[str, Any],
    print_system_info: bool,
    force_reset: bool,
) -> M:
    """Builds a model from a file.

    Args:
        cls: the algorithm.
        path: the file.
        env: its environment, or None.
        device: where it lives.
        custom_objects: values that win over the file's, if they are known.
        arguments: values that win over these.
        print_system_info: whether to print what the file was written with.
        force_reset: whether training begins with new episodes.

    Raises:
        ConfigError: a value that a file cannot hold is not given, or the environment's spaces differ.
        StoreError: the file cannot be read.
    """
    archive = read(path, device, print_system_info)
    path = called(path)
    known = {*archive.data, *Settings.__annotations__}
    given = {name: value for name, value in custom_objects.items() if name in known} | arguments
    missing = Missing()
    with reading(path):
        values = {name: decode(value, name, missing) for name, value in archive.data.items() if name not in given}
        missing.names += [f"{name}={code}" for name, code in named_code(values["settings"]) if name not in given]
        if "policy_kwargs" not in given:
            missing.names += [f"policy_kwargs={code}" for _, code in named_code(values.get("policy_kwargs") or {})]
    missing.check(path)
    with reading(path):
        values["settings"] |= {name: given[name] for name in given if name not in archive.data}
        values |= given
        values["policy_class"] = cls.policy_aliases.get(values["policy_class"], values["policy_class"])
        check_sizes(path, values, archive.parameters)
        model = _built(cls, archive, values, env, device, given)
        if env is not None and not force_reset:
            _go_on(model, archive.variables)
        return model


def _built(cls: type[M], archive: Archive, values: dict[str, Any], env: Any, device: Any, given: dict[str, Any]) -> M:
    """The model that values describe, of which some were given to `load`."""
    names = (*ARGUMENTS, "stats_window_size")
    arguments = {name: values[name] for name in names if name in values}
    try:
        model = cls(
            values["policy_class"], env, device=device, _init_setup_model=False, **arguments, **values["settings"]
        )
    except ArgumentError as error:
        if given:
            raise
        raise ValueError(str(error)) from error  # the file's, which is damaged
    if env is None:
        for name in (*SPACES, "n_envs"):
            setattr(model, name, values[name])
        model.raw_space = values.get("raw_space", model.observation_space)
    else:
        try:
            check_for_correct_spaces(model.env, values["observation_space"], values["action_space"])
        except ValueError as error:
            raise ConfigError(f"{error}; give the environment that the model was trained in") from None
    if model.n_envs != values["n_envs"] and "batch_size" not in given:
        _fit_batches(model, values["n_envs"])
    model._setup_model()
    model.set_parameters(archive.parameters)
    for name in COUNTERS:
        setattr(model, name, values.get(name, getattr(model, name)))
    if model.adversary and values.get("adversarial") and "adversary" not in given:
        model.adversary.load_state_dict(values["adversarial"])
    for name in ("ep_info_buffer", "ep_success_buffer"):
        if values.get(name) is not None:
            setattr(model, name, deque(values[name], maxlen=model._stats_window_size))
    generators = {"action": model.generators[0], "prediction": model.policy.generator}
    for name, generator in generators.items():
        if name in archive.variables:
            generator.set_state(archive.variables[name].cpu())
    return cast(M, model)


def _go_on(model: Any, variables: dict[str, Any]) -> None:
    """Takes up the episodes in which the environments were when the file was written, if they are as many."""
    if "last_obs" not in variables or len(variables["last_episode_starts"]) != model.n_envs:
        return
    held = (variables[name] for name in ("last_obs", "last_episode_starts"))
    model._last_obs, model._last_episode_starts = (_each(lambda x: x.cpu().numpy(), each) for each in held)
    if model._vec_normalize_env is not None:
        model._last_original_obs = model._vec_normalize_env.get_original_obs()


def _each(fn: Callable[[Any], Any], shown: Any) -> Any:
    """Applies `fn` to an observation, or to every key of it."""
    return {key: fn(part) for key, part in shown.items()} if isinstance(shown, dict) else fn(shown)


def _fit_batches(model: Any, n_envs: int) -> None:
    """Makes minibatches fit another number of environments than a file was written with, which `learn` tells of."""
    old, steps, length = model.batch_size, model.n_steps, model.settings.get("sequence_length")
    _, length = batches(steps, n_envs, old, length)
    model.batch_size = fitting(steps, model.n_envs, old, length)
    if model.batch_size != old:
        model.caution = (
            f"batch_size={old} does not divide the {steps * model.n_envs} samples of a rollout (n_steps={steps} x "
            f"{model.n_envs} environments; the file was written with {n_envs}): it is {model.batch_size} from now on; "
            "choose one with load(..., batch_size=...)"
        )


@contextlib.contextmanager
def reading(path: Source) -> Iterator[None]:
    """Puts into the user's words whatever values do that do not belong together."""
    try:
        yield
    except PopgraftError:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}"
        raise StoreError(f"{path} is damaged, or what load was given does not fit it ({why})") from error
