"""Rows as a file and back: the one place of curation that knows Parquet."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.errors import IntegrityError
from cluster.lake.seal import write_parquet


def write_rows(table: pa.Table) -> bytes:
    """Return a table as a Parquet file with the settings of the lake."""
    return write_parquet(table)


def read_rows(key: str, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of the object under `key`, or some columns of them; raises IntegrityError when it is not whole."""
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        # For small objects handing columns to threads takes longer than reading them.
        return file.read(columns, use_threads=len(data) > 2**20)
    except (pa.ArrowException, OSError) as e:
        raise IntegrityError(f"{key} is not a whole Parquet file: {e}.", hint=NAMES_ALL) from e


NAMES_ALL = "`sovereign lake verify` names all that is wrong."
