"""Writing tables of raw columns to files in the format of a schema."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mlet_tf.datasets import quoting
from mlet_tf.datasets.convert import arrow_schema
from mlet_tf.datasets.schema import ClickLogSchema


@contextlib.contextmanager
def log_writer(path: Path, target: Path, schema: ClickLogSchema) -> Iterator[Callable[[pa.Table], None]]:
    """Opens a log to be written.

    Args:
        path: Its suffix decides the format: `.parquet` is Parquet, `.gz` compressed text, all others plain text.
        target: Where to write.
        schema: Columns and format.

    Yields:
        A function that writes a table of all columns of the schema: label 0 or 1, times as numbers, null where a
        value is missing.
    """
    if path.suffix == ".parquet":
        types = _parquet_types(schema)
        with pq.ParquetWriter(target, types) as parquet:
            yield lambda table: parquet.write_table(
                _with_label_texts(table, schema, schema.label_texts).cast(types)
            )
        return
    # No name and no time in the gzip header: same rows, same bytes.
    with target.open("wb") as raw:
        file = gzip.GzipFile("", "wb", 3, raw, mtime=0) if path.suffix == ".gz" else raw
        with file:
            if schema.header:
                file.write(_header(schema))

            def write(table: pa.Table) -> None:
                file.write(_text(table, schema))

            yield write


def _parquet_types(schema: ClickLogSchema) -> pa.Schema:
    typed = arrow_schema(schema)
    types = {name: typed.field(name).type if name in typed.names else pa.int64() for name in schema.columns}
    if schema.positive:
        types[schema.label] = pa.string()
    if schema.time is not None and schema.time.format == "iso8601":
        types[schema.time.name] = pa.timestamp("s", "UTC")
    return pa.schema(types.items())


def _header(schema: ClickLogSchema) -> bytes:
    return (schema.separator.join(quoting.field(name, schema) for name in schema.columns) + "\n").encode()


def _with_label_texts(table: pa.Table, schema: ClickLogSchema, texts: Sequence[str]) -> pa.Table:
    """The table with the two texts in the place of the labels 0 and 1, where the schema's labels are texts."""
    if not schema.positive:
        return table
    labels = pa.array(texts).take(table[schema.label].combine_chunks())
    return table.set_column(table.column_names.index(schema.label), schema.label, labels)


def _text(table: pa.Table, schema: ClickLogSchema) -> bytes:
    missing = (schema.missing[0] if schema.missing else "").encode()
    if schema.time is not None and schema.time.format == "iso8601":
        seconds = table[schema.time.name].to_numpy().astype("datetime64[s]")
        texts = pa.array(np.char.add(np.datetime_as_string(seconds), "Z"))
        table = table.set_column(table.column_names.index(schema.time.name), schema.time.name, texts)
    labels = [quoting.field(text, schema) for text in schema.label_texts]
    columns = [
        c if pa.types.is_binary(c.type) else c.cast(pa.string()).cast(pa.binary())
        for c in _with_label_texts(table, schema, labels).columns
    ]
    columns = [pc.fill_null(column, missing).combine_chunks() for column in columns]
    lines = pc.binary_join_element_wise(*columns, schema.separator.encode())
    lines = pc.binary_join_element_wise(lines, b"", b"\n")
    offsets = np.frombuffer(lines.buffers()[1], np.int32)
    return lines.buffers()[2].to_pybytes()[: int(offsets[len(lines)])]
