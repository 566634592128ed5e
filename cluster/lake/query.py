"""Usage rows for the command line and the platform itself, read from the raw segments by DuckDB.

Analysts read the same files with their own tools: docs/analysts.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import duckdb
import pyarrow.dataset as ds
from pyarrow import fs

from cluster.errors import ConfigurationError, FieldError, InvalidRequestError, StorageError
from cluster.journal.fact import Stream
from cluster.lake.layout import raw_prefix
from cluster.lake.schema import SCHEMAS, USAGE
from cluster.settings import Settings

MAX_LIMIT = 1_000_000

# One row an event, however often it was shipped, and no loss that turned out to be none.
_USAGE = """
with once as (
    select * from raw where ($tenant_id is null or tenant_id = $tenant_id)
    qualify row_number() over (partition by event_id order by ingest_time, writer_id, writer_epoch, writer_seq) = 1
)
select * from once
where (kind <> 'lost' or reservation_id not in (select reservation_id from once where kind = 'final'))
  and ($agent_id is null or agent_id = $agent_id)
  and ($invocation_id is null or invocation_id = $invocation_id)
  and ($since is null or event_time >= $since)
order by event_time desc, event_id desc
limit $limit
"""

# What was used in a period, each event once; a loss counts only where no end was found.
_QUANTITIES = """
with once as (
    select * from raw
    qualify row_number() over (partition by event_id order by ingest_time, writer_id, writer_epoch, writer_seq) = 1
)
select tenant_id, project_id, agent_id, model,
       count(distinct invocation_id) filter (where kind in ('final', 'lost')) as calls,
       {sums}
from once
where billable and event_time >= $begin and event_time < $end and ($tenant_id is null or tenant_id = $tenant_id)
  and (kind <> 'lost' or reservation_id not in (select reservation_id from once where kind = 'final'))
group by all order by all
"""

_AUDIT = """
select * from raw
where ($tenant_id is null or tenant_id = $tenant_id)
  and ($action is null or action = $action)
  and ($since is null or event_time >= $since)
qualify row_number() over (partition by event_id order by ingest_time, writer_id, writer_epoch, writer_seq) = 1
order by event_time desc, event_id desc
limit $limit
"""


def usage_rows(
    settings: Settings,
    *,
    tenant_id: str | None = None,
    agent_id: str | None = None,
    invocation_id: str | None = None,
    since: datetime | None = None,
    limit: int = 1_000,
) -> list[dict[str, Any]]:
    """Return usage events as dictionaries of the lake's columns, newest `event_time` first, at most `limit`.

    Each event once; a `lost` event whose reservation has a `final` one is left out. Times are aware and UTC. A lake
    without usage has no rows. Raises StorageError when the lake cannot be read, InvalidRequestError for a bad limit.
    """
    values = {"tenant_id": tenant_id, "agent_id": agent_id, "invocation_id": invocation_id, "since": since}
    return _newest(settings, Stream.USAGE, _USAGE, values, limit)


def audit_rows(
    settings: Settings,
    *,
    tenant_id: str | None = None,
    action: str | None = None,
    since: datetime | None = None,
    limit: int = 1_000,
) -> list[dict[str, Any]]:
    """Return audit events as dictionaries of the lake's columns, newest first; see `usage_rows`."""
    return _newest(settings, Stream.AUDIT, _AUDIT, {"tenant_id": tenant_id, "action": action, "since": since}, limit)


def usage_quantities(
    settings: Settings, begin: datetime, end: datetime, columns: Sequence[str], *, tenant_id: str | None = None
) -> list[dict[str, Any]]:
    """Return what was used from `begin` until and without `end`, by tenant, project, agent and model, in that order.

    Each row has `calls` and the sum of each of `columns`, which are whole numbers of the lake's. Raises StorageError.
    """
    sums = ", ".join(f"sum({USAGE.field(name).name}) as {name}" for name in columns)
    values = {"begin": begin, "end": end, "tenant_id": tenant_id}
    rows = _rows(settings, Stream.USAGE, _QUANTITIES.format(sums=sums), values)
    # DuckDB sums to 128 bits, which Arrow has as decimals.
    return [{name: int(value) if name in columns else value for name, value in row.items()} for row in rows]


@contextmanager
def raw_relation(settings: Settings, stream: Stream) -> Iterator[duckdb.DuckDBPyConnection]:
    """Open DuckDB with all raw rows of a stream as the view `raw`, whatever store the lake is on; without network."""
    url = urlsplit(settings.lake)
    with duckdb.connect(":memory:") as con:
        con.execute("set timezone = 'UTC'")
        con.register("raw", _dataset(url.scheme, settings, stream))
        yield con


def _newest(settings: Settings, stream: Stream, sql: str, values: dict[str, Any], limit: int) -> list[dict[str, Any]]:
    if not 1 <= limit <= MAX_LIMIT:
        raise InvalidRequestError("No rows can be asked for so.", errors=[FieldError("limit", f"must be 1 to {MAX_LIMIT}")])
    return _rows(settings, stream, sql, values | {"limit": limit})


def _rows(settings: Settings, stream: Stream, sql: str, values: dict[str, Any]) -> list[dict[str, Any]]:
    try:
        with raw_relation(settings, stream) as con:
            # Through Arrow: DuckDB's own fetch wants pytz for times with a zone.
            found = con.sql(sql, params=values).to_arrow_table().to_pylist()
            return [{name: _as_utc(value) for name, value in row.items()} for row in found]
    except (duckdb.Error, OSError) as e:
        raise StorageError(f"The lake at {settings.lake} could not be read: {e}.") from e


def _as_utc(value: Any) -> Any:
    return value.astimezone(UTC) if isinstance(value, datetime) else value


def _dataset(scheme: str, settings: Settings, stream: Stream) -> ds.Dataset:
    url = urlsplit(settings.lake)
    if scheme == "file":
        files: fs.FileSystem = fs.LocalFileSystem()
        root = str(Path(unquote(url.path)))
    elif scheme == "s3":
        files = _s3(settings.s3_endpoint)
        root = url.netloc + url.path.rstrip("/")
    else:
        raise ConfigurationError(f"The lake's URL {settings.lake!r} is neither file:// nor s3://.")
    where = fs.FileSelector(f"{root}/{raw_prefix(stream).rstrip('/')}", recursive=True, allow_not_found=True)
    # Only whole segments; and with the schema of this release, so that older files lack columns and do not lack rows.
    paths = [f.path for f in files.get_file_info(where) if f.is_file and f.path.endswith(".parquet")]
    return ds.dataset(sorted(paths), schema=SCHEMAS[stream], format="parquet", filesystem=files)


def _s3(endpoint: str) -> fs.S3FileSystem:
    if not endpoint:
        return fs.S3FileSystem()
    place = urlsplit(endpoint)
    return fs.S3FileSystem(endpoint_override=place.netloc, scheme=place.scheme, allow_bucket_creation=False)
