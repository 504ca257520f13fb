"""Where a population runs: shards, and the executors that hold them."""

from popgraft.execute.base import Advance, Executor, Loss, Part, Stopped
from popgraft.execute.inline import InlineExecutor
from popgraft.execute.lockstep import LockstepExecutor
from popgraft.execute.make import make_executor
from popgraft.execute.process import ProcessExecutor
from popgraft.execute.shard import Shard

__all__ = [
    "Advance",
    "Executor",
    "InlineExecutor",
    "LockstepExecutor",
    "Loss",
    "Part",
    "ProcessExecutor",
    "Shard",
    "Stopped",
    "make_executor",
]
