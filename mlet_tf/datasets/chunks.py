"""Dividing the files of a click log into chunks that are read independently."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Sequence
from typing import BinaryIO, TypeAlias

import numpy as np
import pyarrow as pa

from mlet_tf import storage
from mlet_tf.datasets import quoting as quoting_lib
from mlet_tf.datasets.compression import CompressedSource
from mlet_tf.datasets.convert import TRUTH_TEXTS, is_convertible
from mlet_tf.datasets.files import file_kind
from mlet_tf.datasets.parquet_files import open_parquet
from mlet_tf.datasets.schema import ClickLogSchema, nearest_hint
from mlet_tf.errors import InputError
from mlet_tf.formats import codec_of, is_parquet, refused_format, suspected_format

MAX_LINE_BYTES = 1 << 20
_PEEK_BYTES = 1 << 16
_PEEK_LINES = 100
_HEADER_SHOWN = 200
_BOM = b"\xef\xbb\xbf"
_SEPARATORS = "\t,;| \x01"


@dataclasses.dataclass(frozen=True)
class Chunk:
    """A part of one file, read independently of the others.

    Args:
        path: The file.
        kind: As of `file_kind`.
        start: First byte of uncompressed text, or first row group. A text chunk holds the lines that begin
            in `[start, end)`.
        end: End, not included; `None` is the end of the file.
        columns: Names of the file's columns, in file order.
        first_row: Parquet: rows of the file before this chunk.
        aligned: Text: a line begins at `start`.
        quoting: Text: see `quoting.resolve`.
    """

    path: str
    kind: str
    start: int
    end: int | None
    columns: tuple[str, ...]
    first_row: int
    aligned: bool
    quoting: str = "none"


@dataclasses.dataclass(frozen=True)
class Reject:
    """A row that was set aside.

    Args:
        file: Where it is.
        line: Number of its line (of its row in Parquet), from 1; `read_chunk` counts from the chunk's start.
        reason: What was expected and received.
        text: The beginning of the line.
    """

    file: str
    line: int
    reason: str
    text: str


@dataclasses.dataclass(frozen=True)
class Block:
    """Some rows of a chunk.

    Args:
        table: Good rows: the label and the wanted columns, typed.
        positions: The position of each row of `table` in the file: byte offset (uncompressed) or row number. It does
            not depend on the chunks.
        rejects: Bad rows.
        lines: Lines read, empty ones included.
        rejected: Places of `rejects` among all rows of the block, int64.
    """

    table: pa.Table
    positions: np.ndarray
    rejects: list[Reject]
    lines: int
    rejected: np.ndarray = dataclasses.field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def rows_read(self) -> int:
        """Good and bad rows together."""
        return self.table.num_rows + len(self.rejects)


def plan_chunks(
    files: Sequence[str], schema: ClickLogSchema, chunk_bytes: int = 32 << 20, label: bool = True
) -> list[Chunk]:
    """Divides files into chunks and checks the first lines of each file.

    Args:
        files: Paths, as of `list_files`.
        schema: What the columns should be.
        chunk_bytes: Wanted size of a chunk. A compressed file cannot be split, so it is one chunk of any size (read
            as a stream).
        label: Whether the label is required. Otherwise files without a header may have one column fewer.

    Returns:
        The chunks of each file in order.

    Raises:
        InputError: A file is empty, unreadable or of an unsupported format, has another separator, or lacks a column.
    """
    chunks: list[Chunk] = []
    for path in files:
        kind = file_kind(path)
        chunks += (
            _parquet_chunks(path, schema, chunk_bytes, label)
            if kind == "parquet"
            else _text_chunks(path, kind, schema, chunk_bytes, label)
        )
    return chunks


Source: TypeAlias = BinaryIO | CompressedSource  # The bytes of a text file, uncompressed.


def open_text(path: str, kind: str) -> Source:
    """Opens a text file at its first byte; compressed text is decompressed."""
    return storage.open_binary(path) if kind == "text" else CompressedSource(path, kind)


def _parquet_chunks(path: str, schema: ClickLogSchema, chunk_bytes: int, label: bool) -> list[Chunk]:
    with open_parquet(path) as file:
        columns = file.schema_arrow
        _check_header(path, list(columns.names), schema, label)
        _check_parquet_types(path, columns, schema, label)
        groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
        sizes = [(group.total_byte_size, group.num_rows) for group in groups]
    chunks, start, held, first_row, rows = [], 0, 0, 0, 0
    for i, (size, count) in enumerate(sizes):
        held, rows = held + size, rows + count
        if held >= chunk_bytes or i + 1 == len(sizes):
            chunks.append(Chunk(path, "parquet", start, i + 1, schema.columns, first_row, True))
            start, held, first_row = i + 1, 0, rows
    return chunks


def _needed(schema: ClickLogSchema, label: bool) -> tuple[str, ...]:
    return (schema.label, *schema.raw_features) if label else schema.raw_features


def _check_parquet_types(path: str, found: pa.Schema, schema: ClickLogSchema, label: bool) -> None:
    for name in _needed(schema, label):
        kind = found.field(name).type
        fits = is_convertible(kind)
        if name in schema.categoricals:
            fits = fits and not pa.types.is_boolean(kind)
        elif name == schema.label and schema.positive and pa.types.is_boolean(kind):
            _check_truth_label(path, schema)
        elif schema.time is not None and name == schema.time.name:
            fits = fits or pa.types.is_timestamp(kind) or pa.types.is_date(kind)
        if not fits:
            expected = "text or integers" if name in schema.categoricals else "integers"
            raise InputError(f"{path}: column {name!r} should hold {expected}. Received: {kind}")


def _check_truth_label(path: str, schema: ClickLogSchema) -> None:
    """Raises where label texts do not say what truth values mean: all rows would have one label."""
    for text in (*schema.positive, *schema.negative):
        if text.lower() in TRUTH_TEXTS:
            return
    raise InputError(
        f"{path}: column {schema.label!r} should hold label texts such as {schema.positive[0]!r}. Received: truth "
        "values; leave `positive` and `negative` out of the schema, or name 'true' or 'false' there"
    )


def _text_chunks(path: str, kind: str, schema: ClickLogSchema, chunk_bytes: int, label: bool) -> list[Chunk]:
    head = _text_head(path, kind)
    try:
        columns, start, quoting = _check_head(path, head, schema, label)
    except InputError:
        if suspected := suspected_format(head):
            raise InputError(f"{path} is {suspected}") from None
        raise
    if kind != "text":
        return [Chunk(path, kind, start, None, columns, 0, True, quoting)]
    size = storage.file_size(path)
    count = max(1, round((size - start) / chunk_bytes))
    edges = [start + (size - start) * i // count for i in range(count + 1)]
    return [
        Chunk(path, kind, begin, end, columns, 0, begin == start, quoting)
        for begin, end in itertools.pairwise(edges)
        if begin < end
    ]


def _text_head(path: str, kind: str) -> bytes:
    """The first bytes of the text: all of it, or `_PEEK_BYTES` and as many more as its first line takes."""
    with contextlib.closing(open_text(path, kind)) as source:
        head = source.read(_PEEK_BYTES)
        if kind != "text":
            _check_compressed(path, kind, head)
        while b"\n" not in head and len(head) <= MAX_LINE_BYTES and (more := source.read(_PEEK_BYTES)):
            head += more
    return head


def _check_compressed(path: str, kind: str, head: bytes) -> None:
    """Raises if something other than text was compressed."""
    if not head:
        raise InputError(f"{path} is empty (0 bytes when uncompressed): expected rows of a click log")
    inside = refused_format(head)
    if is_parquet(head):
        inside = "a Parquet file: unpack it first"
    elif codec := codec_of(head):
        inside = f"a {codec} file: unpack it once"
    if inside:
        raise InputError(f"{path} is a {kind} file, and what is inside of it is {inside}")


def _check_head(
    path: str, head: bytes, schema: ClickLogSchema, label: bool
) -> tuple[tuple[str, ...], int, str]:
    """Checks the first lines; returns the file's columns, the first byte after mark and header, and the quoting."""
    whole = len(head) < _PEEK_BYTES
    start = len(_BOM) if head.startswith(_BOM) else 0
    lines = head[start:].split(b"\n")
    lines = [line.removesuffix(b"\r") for line in (lines if whole else lines[:-1])]
    quoting = quoting_lib.resolve(schema, lines)
    columns = schema.columns
    if schema.header:
        line = head[start:].split(b"\n", 1)[0]
        if len(line) > MAX_LINE_BYTES:
            raise InputError(f"{path}: the header should have at most {MAX_LINE_BYTES} bytes. Received: more")
        columns = _header_columns(path, line.removesuffix(b"\r"), schema, quoting, label)
        start += len(line) + 1
        lines = lines[1:]
    lines = [line for line in lines if line.strip()]
    if not label and not schema.header:
        columns = _columns_of(lines, schema, quoting)
    _check_fields(path, lines, columns, schema, quoting)
    return columns, start, quoting


def _columns_of(lines: Sequence[bytes], schema: ClickLogSchema, quoting: str) -> tuple[str, ...]:
    """The columns of a file without a header, which may lack the label."""
    counts = _field_counts(lines, schema.separator, quoting)
    if len(schema.columns) not in counts and len(schema.columns) - 1 in counts:
        return tuple(name for name in schema.columns if name != schema.label)
    return schema.columns


def _header_columns(
    path: str, line: bytes, schema: ClickLogSchema, quoting: str, label: bool
) -> tuple[str, ...]:
    needed = set(_needed(schema, label))
    fields = quoting_lib.split(line, schema.separator, quoting)
    if fields is None:
        raise InputError(
            f"{path}: the header should have quotes around whole names. Received: {line[:_HEADER_SHOWN]!r}"
        )
    names = [field.decode("utf-8", "replace") for field in fields]
    if len(names) == 1 and len(schema.columns) > 1:
        for other in _SEPARATORS:
            if needed <= set(names[0].split(other)):
                raise InputError(
                    f"{path}: the header is one column with the separator {schema.separator!r} of schema "
                    f"{schema.name!r}; the separator {other!r} would fit"
                )
    _check_header(path, names, schema, label)
    return tuple(names)


def _check_header(path: str, names: list[str], schema: ClickLogSchema, label: bool) -> None:
    for name in _needed(schema, label):
        if names.count(name) > 1:
            raise InputError(
                f"{path}: the header should name column {name!r} once. Received: {names.count(name)} times"
            )
        if name not in names:
            shown = ", ".join(names[:30])[:_HEADER_SHOWN]
            shown = "".join(letter if letter.isprintable() else "\ufffd" for letter in shown)
            raise InputError(
                f"{path} has no column {name!r}, which schema {schema.name!r} expects"
                f"{nearest_hint(name, names)}. Its columns: {shown}"
            )


def _field_counts(lines: Sequence[bytes], separator: str, quoting: str) -> set[int]:
    fields = (quoting_lib.split(line, separator, quoting) for line in lines[:_PEEK_LINES])
    return {len(found) for found in fields if found is not None}


def _check_fields(
    path: str, lines: list[bytes], columns: Sequence[str], schema: ClickLogSchema, quoting: str
) -> None:
    """Raises if the first lines of a file show that it does not follow the schema."""
    lines, expected = lines[:_PEEK_LINES], len(columns)
    counts = _field_counts(lines, schema.separator, quoting)
    if not counts or expected in counts:
        return
    for other in _SEPARATORS:
        if {line.count(other.encode()) + 1 for line in lines} == {expected}:
            raise InputError(
                f"{path}: with the separator {schema.separator!r} of schema {schema.name!r} the first rows "
                f"have {_join(counts)} column(s) instead of {expected}; the separator {other!r} would fit"
            )
    # A few first lines may all be bad, but not all because of the label alone.
    if len(counts) == 1 and (len(lines) >= 10 or counts == {expected - 1}):
        raise InputError(
            f"{path}: each of the first {len(lines)} rows should have {expected} columns (schema "
            f"{schema.name!r}, separator {schema.separator!r}). Received: {_join(counts)}"
        )


def _join(numbers: set[int]) -> str:
    return ", ".join(str(number) for number in sorted(numbers)[:3])
