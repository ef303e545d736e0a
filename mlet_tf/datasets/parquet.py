"""Blocks of rows of a Parquet chunk."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlet_tf import storage
from mlet_tf.datasets.chunks import Block, Chunk, Reject
from mlet_tf.datasets.convert import convert, is_text
from mlet_tf.datasets.parquet_files import PARQUET_ERRORS, rows_error
from mlet_tf.datasets.schema import ClickLogSchema

_BLOCK_ROWS = 32_768


def read_parquet(
    chunk: Chunk, schema: ClickLogSchema, wanted: pa.Schema, block_bytes: int, max_row_bytes: int
) -> Iterator[Block]:
    """Reads the row groups of a chunk.

    Args:
        chunk: The chunk.
        schema: What the columns should be.
        wanted: Names and types of the columns wanted.
        block_bytes: About how much text is held at a time.
        max_row_bytes: Rows with more text than this in the columns wanted are rejected.

    Yields:
        Blocks in file order.

    Raises:
        InputError: The file is damaged, or has a column that this Arrow cannot read.
    """
    row, groups = chunk.first_row, list(range(chunk.start, chunk.end or 0))
    with storage.open_binary(chunk.path) as source:
        try:
            metadata = pq.read_metadata(source)
            small = _small_dictionaries(metadata, groups, wanted.names, block_bytes)
            file = pq.ParquetFile(source, metadata=metadata, read_dictionary=small)
            for batch in file.iter_batches(
                _batch_rows(metadata, groups, block_bytes), row_groups=groups, columns=wanted.names
            ):
                sizes = _text_bytes(batch)
                held = np.where(sizes > max_row_bytes, 0, sizes)
                for start, stop in _ranges(held, block_bytes):
                    part, part_sizes = batch.slice(start, stop - start), sizes[start:stop]
                    yield _block(part, part_sizes, chunk, schema, wanted, row + start, max_row_bytes)
                row += batch.num_rows
        except PARQUET_ERRORS as error:
            raise rows_error(chunk.path, error, groups, wanted.names, row) from error


def _small_dictionaries(
    metadata: pq.FileMetaData, groups: list[int], names: list[str], limit: int
) -> list[str]:
    """Columns to read as dictionaries, so that a value stored once is held once and not in each row.

    Large dictionaries are excluded: Arrow would keep all distinct values of a row group.
    """
    large: set[str] = set()
    for group in map(metadata.row_group, groups):
        for column in map(group.column, range(group.num_columns)):
            if not column.has_dictionary_page or column.total_uncompressed_size > limit:
                large.add(column.path_in_schema)
    return [name for name in names if name not in large]


def _batch_rows(metadata: pq.FileMetaData, groups: list[int], block_bytes: int) -> int:
    """The number of rows with which a batch of the widest row group has about the wanted bytes."""
    sizes = [(metadata.row_group(i).total_byte_size, metadata.row_group(i).num_rows) for i in groups]
    row_bytes = max((size / rows for size, rows in sizes if rows), default=0)
    return int(np.clip(block_bytes / max(row_bytes, 1), 1, _BLOCK_ROWS))


def _text_bytes(batch: pa.RecordBatch) -> np.ndarray:
    """Bytes of text in each row, `[rows]` int64."""
    sizes = np.zeros(batch.num_rows, np.int64)
    for column in batch.columns:
        if is_text(column.type):
            sizes += pc.binary_length(column).fill_null(0).to_numpy()
        elif pa.types.is_dictionary(column.type) and is_text(column.type.value_type):
            of_values = pc.binary_length(column.dictionary).fill_null(0).to_numpy()
            # The last one stands for a missing value.
            sizes += np.append(of_values, 0)[column.indices.fill_null(len(of_values)).to_numpy()]
    return sizes


def _ranges(sizes: np.ndarray, limit: int) -> Iterator[tuple[int, int]]:
    """Ranges of rows, each with at most `limit` bytes or a single row."""
    ends, start, before = np.cumsum(sizes), 0, 0
    while start < len(sizes):
        stop = max(start + 1, int(np.searchsorted(ends, before + limit, side="right")))
        yield start, stop
        start, before = stop, ends[stop - 1]


def _block(
    batch: pa.RecordBatch,
    sizes: np.ndarray,
    chunk: Chunk,
    schema: ClickLogSchema,
    wanted: pa.Schema,
    row: int,
    max_row_bytes: int,
) -> Block:
    too_long = sizes > max_row_bytes
    reasons = {
        i: f"the row should have at most {max_row_bytes} bytes of text. Received: {sizes[i]}"
        for i in np.flatnonzero(too_long).tolist()
    }
    short = np.flatnonzero(~too_long)
    columns, bad = convert(batch.filter(pa.array(~too_long)) if reasons else batch, wanted, schema)
    reasons |= {int(short[i]): reason for i, reason in bad.items()}
    keep = np.ones(len(short), bool)
    keep[list(bad)] = False
    table = pa.Table.from_arrays(columns, schema=wanted)
    if bad:
        table = table.filter(pa.array(keep)).combine_chunks()
    rejects = [Reject(chunk.path, row - chunk.first_row + i + 1, reasons[i], "") for i in sorted(reasons)]
    return Block(table, row + short[keep], rejects, batch.num_rows, np.array(sorted(reasons), np.int64))
