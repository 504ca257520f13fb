"""The run folder: configuration, database and snapshots on disk. It sees tensors and numbers, never a network."""

from popgraft.store.database import RunDatabase
from popgraft.store.folder import RunFolder
from popgraft.store.records import (
    AdoptionRecord,
    Aftermath,
    EventRecord,
    GraftRecord,
    MemberRecord,
    MetricsRecord,
    SessionRecord,
)

__all__ = [
    "AdoptionRecord",
    "Aftermath",
    "EventRecord",
    "GraftRecord",
    "MemberRecord",
    "MetricsRecord",
    "RunDatabase",
    "RunFolder",
    "SessionRecord",
]
