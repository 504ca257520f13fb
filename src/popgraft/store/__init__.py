"""The run folder: configuration, database and snapshots on disk. It sees tensors and numbers, never a network."""

from popgraft.store.database import Aftermath, EventRecord, GraftRecord, MemberRecord, RunDatabase
from popgraft.store.folder import RunFolder

__all__ = ["Aftermath", "EventRecord", "GraftRecord", "MemberRecord", "RunDatabase", "RunFolder"]
