"""What every object store promises, over all of them: the local one, moto, a real SeaweedFS, and the one that tests use."""

from __future__ import annotations

import hashlib
import os
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.errors import ConfigurationError, InvalidRequestError, NotFoundError, StorageError
from cluster.settings import Settings
from cluster.storage.local_object_store import LocalObjectStore
from cluster.storage.object_store import ObjectInfo, ObjectStore, PutOutcome
from cluster.storage.probe import PROBE_KEY, probe_create_only
from cluster.storage.s3_object_store import S3ObjectStore
from cluster.wiring import open_object_store
from tests.memory_store import MemoryObjectStore
from tests.servers.crooked_s3 import CrookedS3, crooked_s3, moto_server
from tests.servers.seaweedfs import S3Server, s3_credentials, seaweedfs
from tests.sizes import soak

__all__ = ["crooked_s3", "moto_server", "s3_credentials", "seaweedfs"]

OpenStore = Callable[[], ObjectStore]
pytestmark = pytest.mark.usefixtures("s3_credentials")


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def put(store: ObjectStore, key: str, data: bytes) -> PutOutcome:
    return store.put_if_absent(key, data, sha256=sha(data))


@pytest.fixture(params=["memory", "local", "moto", "seaweedfs"])
def open_store(request: pytest.FixtureRequest, tmp_path: Path) -> OpenStore:
    """Opens the same, at first empty, place each time, as another process would."""
    prefix = f"t/{uuid.uuid4().hex}"
    if request.param == "memory":
        one = MemoryObjectStore()
        return lambda: one
    if request.param == "local":
        return lambda: LocalObjectStore(tmp_path / "lake")
    if request.param == "moto":
        host, port = request.getfixturevalue("moto_server")
        return lambda: S3ObjectStore("lake", prefix, endpoint=f"http://{host}:{port}")
    server: S3Server = request.getfixturevalue("seaweedfs")
    return lambda: S3ObjectStore(server.bucket, prefix, endpoint=server.endpoint)


def test_an_object_reads_back_as_it_was_written(open_store: OpenStore) -> None:
    """Bytes, size and digest are what was put, seen through another client too."""
    data = os.urandom(300_000)
    assert put(open_store(), "usage/raw/v1/ingest_date=2026-01-31/a.parquet", data) is PutOutcome.CREATED
    other = open_store()
    assert other.get("usage/raw/v1/ingest_date=2026-01-31/a.parquet") == data
    info = other.head("usage/raw/v1/ingest_date=2026-01-31/a.parquet")
    assert info == ObjectInfo("usage/raw/v1/ingest_date=2026-01-31/a.parquet", 300_000, sha(data))


def test_a_key_is_written_once(open_store: OpenStore) -> None:
    """Control: the create-only condition. The second writer is told EXISTS and the first content stays, even when equal."""
    store = open_store()
    assert put(store, "a/b", b"first") is PutOutcome.CREATED
    assert put(store, "a/b", b"second") is PutOutcome.EXISTS
    assert put(open_store(), "a/b", b"first") is PutOutcome.EXISTS
    assert store.get("a/b") == b"first"


def test_an_empty_object_is_an_object(open_store: OpenStore) -> None:
    """Nothing in it is not nothing there."""
    store = open_store()
    assert put(store, "empty", b"") is PutOutcome.CREATED
    assert store.get("empty") == b""
    assert put(store, "empty", b"x") is PutOutcome.EXISTS


def test_what_is_not_there_is_said_so(open_store: OpenStore) -> None:
    """A missing object is NotFoundError on get, None on head, and nothing in a list."""
    store = open_store()
    with pytest.raises(NotFoundError, match="no object nowhere/at-all"):
        store.get("nowhere/at-all")
    assert store.head("nowhere/at-all") is None
    assert list(store.list("nowhere/")) == []


def test_keys_are_listed_in_order_from_after_a_key(open_store: OpenStore) -> None:
    """A list is cut by prefix, begins after a key, and rises."""
    store = open_store()
    keys = [f"p/d={d}/k{i}" for d in ("01", "02") for i in range(3)] + ["p/z", "q/other"]
    for key in reversed(keys):
        put(store, key, key.encode())
    assert [o.key for o in store.list("p/")] == keys[:-1]
    assert [o.key for o in store.list("p/d=01/")] == keys[:3]
    assert [o.key for o in store.list("p/", after="p/d=01/k1")] == keys[2:-1]
    assert [o.size_bytes for o in store.list("q/")] == [len("q/other")]


def test_a_long_list_is_whole(open_store: OpenStore) -> None:
    """More keys than one page of S3 holds (1,000) are all listed, once each."""
    count = soak(40, 1_100)
    store = open_store()
    for i in range(count):
        put(store, f"many/k{i:05d}", b"x")
    assert [o.key for o in store.list("many/")] == [f"many/k{i:05d}" for i in range(count)]


def test_a_key_outside_the_grammar_is_refused(open_store: OpenStore) -> None:
    """Control: check_key. No key leads out of the store's own place."""
    store = open_store()
    for key in ("", "/a", "a/", "a//b", "../a", "a/../b", "a/.b", "a\0b", "a b", "ä", "a" * 801):
        with pytest.raises(InvalidRequestError, match="key"):
            put(store, key, b"x")
        with pytest.raises(InvalidRequestError, match="key"):
            store.get(key)
        with pytest.raises(InvalidRequestError, match="key"):
            store.head(key)


def test_of_many_writers_one_wins(open_store: OpenStore, request: pytest.FixtureRequest) -> None:
    """Of sixteen who write one key at once, one is told CREATED, and what he wrote is what everyone reads."""
    if "moto" in request.node.name:
        pytest.skip("by design: moto checks and writes in two steps, so its own race is lost")
    start = threading.Barrier(16)
    won: list[int] = []
    stores = [open_store(), open_store()]

    def race(i: int) -> None:
        store = stores[i % 2]
        data = f"writer {i}".encode() * 1_000
        start.wait()
        if put(store, "race/key", data) is PutOutcome.CREATED:
            won.append(i)

    threads = [threading.Thread(target=race, args=(i,)) for i in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert len(won) == 1
    assert open_store().get("race/key") == f"writer {won[0]}".encode() * 1_000


def test_a_store_that_keeps_its_first_content_passes_the_probe(open_store: OpenStore) -> None:
    """The start-up probe accepts each of them, at the first start and at later ones, and leaves one object."""
    for _ in range(3):
        probe_create_only(open_store())
    assert [o.key for o in open_store().list("_probe/")] == [PROBE_KEY]


def test_a_store_that_ignores_the_condition_is_refused(crooked_s3: CrookedS3) -> None:
    """Threat 66. Control: probe_create_only. A store that overwrites is named, and nothing starts on it."""
    store = S3ObjectStore("lake", f"t/{uuid.uuid4().hex}", endpoint=crooked_s3.endpoint)
    probe_create_only(store)
    crooked_s3.ignore_conditions = True
    with pytest.raises(ConfigurationError, match="ignores `If-None-Match: \\*`") as e:
        probe_create_only(store)
    assert crooked_s3.endpoint in str(e.value)


def test_a_put_whose_answer_was_lost_is_our_own(crooked_s3: CrookedS3) -> None:
    """Threat 63. Control: S3ObjectStore._resolve. The retry's 412 for our own bytes is CREATED; for others' it is EXISTS."""
    store = S3ObjectStore("lake", f"t/{uuid.uuid4().hex}", endpoint=crooked_s3.endpoint)
    crooked_s3.lose_answers = 1
    assert put(store, "once", b"mine") is PutOutcome.CREATED
    assert store.get("once") == b"mine"
    crooked_s3.lose_answers = 1
    assert put(store, "once", b"another's") is PutOutcome.EXISTS
    assert store.get("once") == b"mine"


@pytest.mark.parametrize("refusal", [(503, "SlowDown"), (500, "InternalError"), (409, "ConditionalRequestConflict")])
def test_a_store_that_refuses_is_a_storage_error(crooked_s3: CrookedS3, refusal: tuple[int, str]) -> None:
    """Threat 64. Nothing is taken for stored that was refused; when the store is well again the same PUT succeeds."""
    store = S3ObjectStore("lake", f"t/{uuid.uuid4().hex}", endpoint=crooked_s3.endpoint)
    crooked_s3.refuse, crooked_s3.refusal = 100, refusal
    with pytest.raises(StorageError, match="PUT late in s3://lake"):
        put(store, "late", b"x")
    crooked_s3.refuse = 0
    assert store.head("late") is None
    assert put(store, "late", b"x") is PutOutcome.CREATED


def test_a_store_that_is_away_is_a_storage_error() -> None:
    """Nobody listens: the error says where, and that it is tried again."""
    from tests.servers.seaweedfs import free_ports

    store = S3ObjectStore("lake", endpoint=f"http://127.0.0.1:{free_ports(1)[0]}", connect_timeout_s=0.2)
    with pytest.raises(StorageError, match=r"s3://lake at http://127\.0\.0\.1") as e:
        put(store, "a", b"x")
    assert e.value.retryable


def test_a_missing_bucket_is_named(moto_server: tuple[str, int]) -> None:
    """A bucket that does not exist is an error that says to make it, not a missing object."""
    store = S3ObjectStore("nobodys", endpoint=f"http://{moto_server[0]}:{moto_server[1]}")
    with pytest.raises(StorageError, match="bucket nobodys exists"):
        put(store, "a", b"x")
    with pytest.raises(StorageError, match="bucket nobodys exists"):
        store.get("a")


def test_a_file_in_the_making_is_no_object(tmp_path: Path) -> None:
    """What a killed writer leaves in the folder is neither listed nor read."""
    store = LocalObjectStore(tmp_path)
    put(store, "d/a", b"x")
    (tmp_path / "d" / ".half.tmp").write_bytes(b"hal")
    assert [o.key for o in store.list("")] == ["d/a"]


def test_local_keys_are_listed_as_s3_would(tmp_path: Path) -> None:
    """Order is of whole keys: `a-b` stands before `a/b`, although the folder `a` stands before both."""
    store = LocalObjectStore(tmp_path)
    keys = ["a-b", "a/b", "a/c/d", "a0", "b"]
    for key in reversed(keys):
        put(store, key, b"")
    assert [o.key for o in store.list("")] == keys
    assert [o.key for o in store.list("a/", after="a/b")] == ["a/c/d"]
    assert [o.key for o in store.list("a")] == keys[:4]


def test_the_settings_choose_the_store(tmp_path: Path) -> None:
    """`lake_url` names the store; one that names none is refused with the setting's name."""
    local = open_object_store(Settings(home=tmp_path))
    assert local.describe() == (tmp_path / "lake").as_uri()
    s3 = open_object_store(Settings(lake_url="s3://bucket/some/prefix", s3_endpoint="http://127.0.0.1:1"))
    assert s3.describe() == "s3://bucket/some/prefix at http://127.0.0.1:1"
    for wrong in ("ftp://x/y", "s3:///x", "lake", "file://other/x"):
        with pytest.raises(ConfigurationError, match="SOVEREIGN_LAKE_URL"):
            open_object_store(Settings(lake_url=wrong))
