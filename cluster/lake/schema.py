"""The columns of the lake's raw rows, in order. Signed, microseconds, no dictionaries: Spark, DuckDB and Polars all read them."""

from __future__ import annotations

from typing import Final

import pyarrow as pa

from cluster.journal.fact import Stream

_TIME = pa.timestamp("us", tz="UTC")

USAGE: Final = pa.schema(
    [
        ("event_id", pa.string()),
        ("schema_version", pa.int16()),
        ("kind", pa.string()),
        ("event_time", _TIME),
        ("start_time", _TIME),
        ("ingest_time", _TIME),
        ("tenant_id", pa.string()),
        ("project_id", pa.string()),
        ("agent_id", pa.string()),
        ("agent_version", pa.string()),
        ("invocation_id", pa.string()),
        ("parent_invocation_id", pa.string()),
        ("trace_id", pa.string()),
        ("reservation_id", pa.string()),
        ("model", pa.string()),
        ("outcome", pa.string()),
        ("billable", pa.bool_()),
        ("tokens_input_uncached", pa.int64()),
        ("tokens_cache_read", pa.int64()),
        ("tokens_cache_write", pa.int64()),
        ("tokens_output", pa.int64()),
        ("tokens_reasoning", pa.int64()),
        ("tool_calls", pa.int32()),
        ("cpu_us", pa.int64()),
        ("reserved_cpu_milli_ms", pa.int64()),
        ("mem_mib_ms", pa.int64()),
        ("latency_us", pa.int64()),
        ("queue_us", pa.int64()),
        ("provider_usage_raw", pa.string()),
        ("writer_id", pa.string()),
        ("writer_epoch", pa.int32()),
        ("writer_seq", pa.int64()),
    ]
)

AUDIT: Final = pa.schema(
    [
        ("event_id", pa.string()),
        ("schema_version", pa.int16()),
        ("event_time", _TIME),
        ("ingest_time", _TIME),
        ("action", pa.string()),
        ("outcome", pa.string()),
        ("actor", pa.string()),
        ("tenant_id", pa.string()),
        ("object_id", pa.string()),
        ("request_id", pa.string()),
        ("decision_id", pa.string()),
        ("reason", pa.string()),
        ("detail_json", pa.string()),
        ("writer_id", pa.string()),
        ("writer_epoch", pa.int32()),
        ("writer_seq", pa.int64()),
    ]
)

# Set while sealing: when, and from which fact of which journal.
SEALED_COLUMNS: Final = ("ingest_time", "writer_id", "writer_epoch", "writer_seq")
SCHEMAS: Final = {Stream.USAGE: USAGE, Stream.AUDIT: AUDIT}
# A later release only appends columns, and each may be empty: so a number of columns says which ones they were. These are the
# numbers of the first release, whose intents do not say them.
FIRST_COLUMNS: Final = {Stream.USAGE: 32, Stream.AUDIT: 16}


def first_columns(stream: Stream, count: int) -> pa.Schema:
    """Return the schema as it was when the stream had `count` columns; all that there are when it never had so many."""
    return pa.schema(list(SCHEMAS[stream])[:count])
