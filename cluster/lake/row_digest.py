"""A digest of rows that does not depend on how Parquet encodes them, so that a later library writes the same one.

SHA-256 over: "sovereign-rows-1", the number of rows, and for each column in order its name and type (each ended by a zero byte),
one byte a row that says whether there is a value, and the values: fixed-width ones little-endian with 0 for none; texts as
their lengths (int32 each, 0 for none) and then their UTF-8 bytes. Integers of the frame are u64, little-endian.
"""

from __future__ import annotations

import hashlib
import struct

import pyarrow as pa
import pyarrow.compute as pc


def row_digest(table: pa.Table) -> str:
    """Return the digest of a table of the lake's types, as 64 hex digits."""
    h = hashlib.sha256(b"sovereign-rows-1" + struct.pack("<Q", table.num_rows))
    for field, column in zip(table.schema, table.columns, strict=True):
        h.update(f"{field.name}\0{field.type}\0".encode())
        values = pa.concat_arrays(column.chunks) if column.num_chunks != 1 else column.chunk(0)
        h.update(_fixed(pc.cast(pc.is_valid(values), pa.uint8())))
        if pa.types.is_string(field.type):
            full = pc.fill_null(values, "") if values.null_count else values
            h.update(_fixed(pc.binary_length(full)))
            h.update(_text(full))
        else:
            plain = pc.cast(values, pa.uint8()) if pa.types.is_boolean(field.type) else _as_integers(values)
            h.update(_fixed(pc.fill_null(plain, 0) if plain.null_count else plain))
    return h.hexdigest()


def _as_integers(values: pa.Array) -> pa.Array:
    return pc.cast(values, pa.int64()) if pa.types.is_timestamp(values.type) else values


def _fixed(values: pa.Array) -> memoryview | bytes:
    buffer = values.buffers()[1]
    if buffer is None:
        return b""
    width = values.type.byte_width
    return memoryview(buffer)[values.offset * width : (values.offset + len(values)) * width]


def _text(values: pa.Array) -> memoryview | bytes:
    _, offsets, data = values.buffers()
    if data is None or not len(values):
        return b""
    (begin,) = struct.unpack_from("<i", offsets, values.offset * 4)
    (end,) = struct.unpack_from("<i", offsets, (values.offset + len(values)) * 4)
    return memoryview(data)[begin:end]
