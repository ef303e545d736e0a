"""Columnar reading of raw click logs: text, compressed text and Parquet into Arrow tables, bad rows set aside.

`plan_chunks` divides a log into chunks that can be read independently, on one machine or many. `read_chunk` reads a
chunk as a stream of blocks, each a typed table and the rejected rows. Rows are handled in Python only in a block with
a bad row, to find it.

Rules for text: quotes are as in `ClickLogSchema.quoting`, lines end in LF or CRLF, empty lines are ignored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from mlet_tf.datasets.chunks import MAX_LINE_BYTES, Block, Chunk, Reject, open_text, plan_chunks
from mlet_tf.datasets.convert import arrow_schema
from mlet_tf.datasets.files import list_files
from mlet_tf.datasets.parquet import read_parquet
from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.datasets.text import TextParser, line_blocks
from mlet_tf.errors import InputError

__all__ = [
    "Block",
    "Chunk",
    "Reject",
    "arrow_schema",
    "check_reject_share",
    "lines_before",
    "list_files",
    "plan_chunks",
    "read_chunk",
    "read_log",
]

BLOCK_BYTES = 8 << 20


def read_chunk(
    chunk: Chunk,
    schema: ClickLogSchema,
    columns: Sequence[str] | None = None,
    block_bytes: int = BLOCK_BYTES,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> Iterator[Block]:
    """Reads one chunk.

    Args:
        chunk: The chunk.
        schema: What the columns should be.
        columns: Columns wanted; by default the label and all of `schema.raw_features`. Only these are
            checked.
        block_bytes: About how much text is held at a time.
        max_line_bytes: Longer lines (in Parquet: rows with more text) are rejected, and skipped without being held in
            memory.

    Yields:
        Blocks in file order.

    Raises:
        InputError: The file is damaged.
    """
    wanted = arrow_schema(schema, columns)
    if chunk.kind == "parquet":
        yield from read_parquet(chunk, schema, wanted, block_bytes, max_line_bytes)
        return
    parser = TextParser(chunk, schema, wanted, max_line_bytes)
    source = open_text(chunk.path, chunk.kind)
    try:
        for offset, data in line_blocks(source, chunk, block_bytes, max_line_bytes):
            yield parser.parse(offset, data)
    finally:
        source.close()


def read_log(
    data: str,
    schema: ClickLogSchema,
    columns: Sequence[str] | None = None,
    max_reject_share: float = 0.001,
    block_bytes: int = BLOCK_BYTES,
    on_rejects: Callable[[str], None] | None = None,
) -> Iterator[pa.Table]:
    """Reads a whole log in order, as a stream of tables.

    Args:
        data: A file, a pattern or a folder.
        schema: What the columns should be.
        columns: Columns wanted; by default the label and all of `schema.raw_features`.
        max_reject_share: Largest share of bad rows that is tolerated.
        block_bytes: About how much text is held at a time.
        on_rejects: Called at the end with a line on the rejected rows, if there are any.

    Yields:
        Tables with the good rows.

    Raises:
        InputError: There is no file, a file is damaged, or (at the end) too many rows are bad.
    """
    rows, rejected = 0, 0
    shown: list[Reject] = []
    for chunk in plan_chunks(list_files(data), schema, chunk_bytes=1 << 62):
        before = lines_before([chunk], [], schema)[0]
        for block in read_chunk(chunk, schema, columns, block_bytes):
            rows += block.rows_read
            rejected += len(block.rejects)
            shown += [dataclasses.replace(r, line=r.line + before) for r in block.rejects[: 10 - len(shown)]]
            yield block.table
    check_reject_share(rows, rejected, shown, max_reject_share)
    if rejected and on_rejects is not None:
        first = shown[0]
        on_rejects(
            f"{rejected:,} of {rows:,} rows are malformed and left out; the first one is "
            f"{first.file}:{first.line}: {first.reason}"
        )


def lines_before(chunks: Sequence[Chunk], lines: Sequence[int], schema: ClickLogSchema) -> list[int]:
    """How many lines of its file come before each chunk.

    Args:
        chunks: All chunks, in the order planned.
        lines: Lines found in each of the first chunks.
        schema: Says whether text files begin with a header line.

    Returns:
        A number for each chunk for which it is known: up to one more than `lines` has.
    """
    before: list[int] = []
    for i, chunk in enumerate(chunks[: len(lines) + 1]):
        if i and chunks[i - 1].path == chunk.path:
            before.append(before[-1] + lines[i - 1])
        else:
            before.append(int(schema.header and chunk.kind != "parquet"))
    return before


def check_reject_share(rows: int, rejected: int, first: Sequence[Reject], max_reject_share: float) -> None:
    """Raises an `InputError` with the first rejected rows if there are too many.

    Args:
        rows: Rows read, good and bad.
        rejected: Bad rows.
        first: The first of them; up to ten are shown.
        max_reject_share: Largest share allowed.
    """
    if rejected > max_reject_share * rows:
        lines = "\n".join(f"  {r.file}:{r.line}: {r.reason}" for r in list(first)[:10])
        raise InputError(
            f"{rejected} of {rows} rows were rejected ({rejected / rows:.2%}); allowed is a share of "
            f"{max_reject_share:.2%}. The first ones:\n{lines}"
        )
