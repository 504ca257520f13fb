"""Which executor a configuration asks for."""

import os
from collections.abc import Callable
from typing import Any

from jaxtyping import Float
from torch import Tensor

from popgraft.config import Config
from popgraft.config.network import MEMORIES
from popgraft.errors import MissingExtra
from popgraft.execute.base import Executor, cores, everyone
from popgraft.execute.inline import InlineExecutor
from popgraft.execute.process import ProcessExecutor
from popgraft.execute.shard import resolve_device
from popgraft.messages import logger_of
from popgraft.native import native
from popgraft.rollout.definitions import check_names

logger = logger_of(__name__)


def make_executor(
    config: Config,
    hyperparams: dict[str, Float[Tensor, "pop"]],
    factory: Callable[..., Any] | None = None,
    members: list[int] | None = None,
) -> Executor:
    """With Ray, a shard is an actor. Here, several shards on CPUs run in a process each; one shard, or shards of a GPU,
    in the caller's process.

    Args:
        config: the run; `execute.shards` says into how many parts the population is divided.
        hyperparams: initial values of every member.
        factory: makes the environments, in place of the configured source.
        members: those that train; None: everybody.

    Raises:
        ConfigError: something that the configuration names is not there.
    """
    check_names(config, factory)
    if config.execute.kind == "ray":
        try:
            from popgraft.execute.ray import RayExecutor
            from popgraft.execute.ray_async import AsyncRayExecutor
        except ModuleNotFoundError as error:
            if error.name != "ray":
                raise
            raise MissingExtra("ray", "ray", "execute.kind: ray") from None
        if config.execute.mode == "async":
            return AsyncRayExecutor(config, hyperparams, factory)
        return RayExecutor(config, hyperparams, factory, members)
    on_cpu = resolve_device(config.engine.device).type == "cpu"
    parallel = on_cpu and os.name == "posix"
    memory = MEMORIES.load(config.model.network.recurrent)
    if on_cpu and memory and memory.compiled and native().library is None:
        logger.warning("%ss run in PyTorch, more slowly than compiled: %s", memory.__name__, native().reason)
    if on_cpu and config.model.network.precision == "bfloat16" and not native().rounds:
        logger.warning("products in bfloat16 are slower than in float32 here; set model.network.precision: float32")
    shards = config.execute.shards or (cores() if parallel else 1)
    several = min(shards, len(members or everyone(config))) > 1
    kind = ProcessExecutor if parallel and several else InlineExecutor
    return kind(config, hyperparams, factory, shards, members)
