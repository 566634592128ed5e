"""The one place that names what stands behind the ports, each imported only when the settings choose it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from cluster.errors import ConfigurationError, FieldError
from cluster.settings import Settings

if TYPE_CHECKING:
    from cluster.coordination.coordination import Coordination
    from cluster.storage.object_store import ObjectStore


def open_object_store(settings: Settings) -> ObjectStore:
    """Return the store of the lake at `settings.lake`; raises ConfigurationError for a URL that names none."""
    url = urlsplit(settings.lake)
    if url.scheme == "file" and url.netloc in {"", "localhost"} and url.path:
        from cluster.storage.local_object_store import LocalObjectStore

        return LocalObjectStore(Path(unquote(url.path)))
    if url.scheme == "s3" and url.netloc:
        from cluster.storage.s3_object_store import S3ObjectStore

        return S3ObjectStore(url.netloc, url.path, endpoint=settings.s3_endpoint)
    raise ConfigurationError(
        "The lake has no place.",
        errors=[FieldError("SOVEREIGN_LAKE_URL", f"must be file:///folder or s3://bucket/prefix; got {settings.lake!r}")],
    )


def open_coordination(settings: Settings) -> Coordination:
    """Return the store that this cluster agrees through; raises UnavailableError when it can't be opened."""
    from cluster.coordination.sqlite_coordination import SqliteCoordination

    return SqliteCoordination(settings.coordination_path)
