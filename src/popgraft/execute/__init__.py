"""Where a population runs: shards, and the executors that hold them."""

from popgraft.execute.base import Advance, Executor, Part
from popgraft.execute.inline import InlineExecutor
from popgraft.execute.make import make_executor
from popgraft.execute.process import ProcessExecutor
from popgraft.execute.shard import Shard

__all__ = [
    "Advance",
    "Executor",
    "InlineExecutor",
    "Part",
    "ProcessExecutor",
    "Shard",
    "make_executor",
]
