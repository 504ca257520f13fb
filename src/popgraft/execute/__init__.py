"""Where a population runs: shards, and the executors that hold them."""

from popgraft.execute.base import Advance, Executor
from popgraft.execute.local import LocalExecutor
from popgraft.execute.shard import Shard

__all__ = ["Advance", "Executor", "LocalExecutor", "Shard"]
