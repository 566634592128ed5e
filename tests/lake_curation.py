"""Curators for tests, a store in which a test can step in, and what was curated."""

from __future__ import annotations

from collections.abc import Callable

from cluster.clock import FakeClock
from cluster.lake.curation.curator import Curator
from cluster.storage.object_store import PutOutcome
from tests.lake_raw import INGEST_US, curated
from tests.memory_store import MemoryObjectStore

QUARANTINE = "usage/quarantine/v1/p"
DAY_US = 86_400_000_000
MINUTE_US = 60_000_000


class CrashError(Exception):
    """What a test puts in the way of one PUT."""


class TrickyStore(MemoryObjectStore):
    """Calls `before` with each key that is about to be put."""

    def __init__(self) -> None:
        super().__init__()
        self.before: Callable[[str], None] = lambda key: None

    def put_if_absent(self, key: str, data: bytes, *, sha256: str) -> PutOutcome:
        self.before(key)
        return super().put_if_absent(key, data, sha256=sha256)


def curator(store: MemoryObjectStore, *, now_us: int = INGEST_US, **options: object) -> Curator:
    return Curator(store, clock=FakeClock(now_us), **options)  # type: ignore[arg-type]  # the tests' own values


def keys(store: MemoryObjectStore, prefix: str) -> list[str]:
    return [o.key for o in store.list(prefix)]


def ids(store: MemoryObjectStore) -> list[str]:
    return [r["event_id"] for r in curated(store)]


def reasons(store: MemoryObjectStore) -> dict[str, str]:
    return {r["event_id"]: r["reason"] for r in curated(store, QUARANTINE)}


class Catalogue:
    """Knows one tenant and one model, and changes its mind."""

    tenants = frozenset({"acme"})

    def unknown_tenants(self, tenants: object) -> set[str]:
        return set(tenants) - self.tenants  # type: ignore[call-overload]  # names

    def unpriced_models(self, models: object) -> set[str]:
        return set(models) - {"scripted:echo"}  # type: ignore[call-overload]  # names
