"""Rows in any form, converted to serialised tf.Examples of raw columns."""

from __future__ import annotations

import codecs
import datetime
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.datasets import ClickLogSchema, TimeColumn, quoting
from mlet_tf.datasets.convert import convert_column, expected_values, is_convertible
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.datasets.times import number_of, parse_iso, valid_times
from mlet_tf.datasets.values import (
    TEXT_TYPES,
    Text,
    as_bytes,
    is_missing,
    to_category,
    to_integer,
    whole_number,
)
from mlet_tf.errors import InputError

if TYPE_CHECKING:
    import pandas as pd

    # Rows to predict: dicts of values by column, lines of a raw log, or columns.
    RowBatch: TypeAlias = (
        Sequence[Mapping[str, object]] | Sequence[Text] | pd.DataFrame | pa.Table | pa.RecordBatch
    )

# A column as Arrow holds it, or its values as they came.
_Column: TypeAlias = pa.Array | pa.ChunkedArray | Sequence[object]

_SHOWN = 300
_FEW = 100


class Rows:
    """Rows to be predicted.

    A missing value is None, NaN (pandas' and decimal's too), an empty text, one of the schema's marks, or an absent
    key; its feature is left out. With a schema, values are read as the pipeline reads its logs, so the integer 5, the
    float 5.0 and the texts `5` and `5.0` are the same category.

    Args:
        rows: A list of dicts (column to value), a pandas frame, an Arrow table or batch, or, with a
            schema, lines of a raw log with or without the label.
        schema: The log's columns. Without one, integers are sent as int64 and texts as bytes.

    Raises:
        InputError: A value does not fit its column, or the schema does not have a column.
    """

    def __init__(self, rows: RowBatch, schema: ClickLogSchema | None = None) -> None:
        self._rows = rows
        self._schema = schema
        self._marks = frozenset(mark.encode() for mark in (schema.missing_marks if schema else ("",)))
        table = self._columns()
        self._check_names(table)
        wanted = schema.raw_features if schema else list(table)
        columns = {name: table[name] for name in wanted if name in table}
        self.count = len(rows)
        self.examples = self._encode_few(columns) if self.count <= _FEW else self._encode_many(columns)

    def describe(self, row: int) -> str:
        """The row as the caller passed it, for error messages."""
        rows = self._rows
        if hasattr(rows, "iloc"):
            found = rows.iloc[row].to_dict()
        elif isinstance(rows, pa.Table | pa.RecordBatch):
            found = rows.slice(row, 1).to_pylist()[0]
        else:
            found = rows[row]
        return _shown(found)

    def _encode_few(self, columns: Mapping[str, _Column]) -> list[bytes]:
        """Encodes row by row, which is faster for few rows."""
        names = [name.encode() for name in columns]
        values = [self._values(name, _as_list(column)) for name, column in columns.items()]
        return [
            _encode_row((name, column[row]) for name, column in zip(names, values, strict=True) if column)
            for row in range(self.count)
        ]

    def _encode_many(self, columns: Mapping[str, _Column]) -> list[bytes]:
        arrays = {name: self._array(name, column) for name, column in columns.items()}
        table = {name: array for name, array in arrays.items() if array is not None}
        return encode_examples(pa.table(table)).to_pylist() if table else [b""] * self.count

    def _columns(self) -> Mapping[str, _Column]:
        """Columns by name: Arrow arrays, or lists of the values as they came."""
        rows = self._rows
        if hasattr(rows, "iloc") and hasattr(rows, "columns"):
            _check_unique(rows.columns)
            return {name: _pandas_column(rows[name]) for name in rows.columns}
        if isinstance(rows, pa.Table | pa.RecordBatch):
            _check_unique(rows.schema.names)
            return dict(zip(rows.schema.names, rows.columns, strict=True))
        if isinstance(rows, (*TEXT_TYPES, Mapping)) or not isinstance(rows, Sequence):
            raise InputError(
                "rows: expected a list of dicts or of lines, a pandas frame or an Arrow table. "
                f"Received: {type(rows).__name__}"
            )
        records = [row for row in rows if isinstance(row, Mapping)]
        if len(records) == len(rows):
            names: dict[str, object] = {}
            for record in records:
                names.update(record)
            return {name: [record.get(name) for record in records] for name in names}
        return self._columns_of_lines(rows)

    def _columns_of_lines(self, rows: Sequence[object]) -> dict[str, list[bytes | None]]:
        lines: list[Text] = []
        for number, row in enumerate(rows):
            if not isinstance(row, TEXT_TYPES):
                raise InputError(f"row {number}: expected a dict or a line. Received: {type(row).__name__}")
            lines.append(row)
        if self._schema is None:
            raise InputError("rows: lines of a log can only be read with a schema. Received: none")
        schema = self._schema
        columns = schema.columns
        unlabelled = tuple(name for name in columns if name != schema.label)
        texts = [_line_bytes(number, line).rstrip(b"\r\n") for number, line in enumerate(lines)]
        texts[0] = texts[0].removeprefix(codecs.BOM_UTF8)  # As the reader does; a list of lines is not empty.
        quoted = quoting.resolve(schema, texts)
        _refuse_header(texts[0], schema, quoted)
        records = []
        for number, text in enumerate(texts):
            fields = quoting.split(text, schema.separator, quoted)
            if fields is None:
                raise InputError(f"row {number}: {quoting.reason(text, schema.separator, quoted)}")
            names = {len(columns): columns, len(unlabelled): unlabelled}.get(len(fields))
            if names is None:
                raise InputError(
                    f"row {number}: expected {len(columns)} columns, or {len(unlabelled)} without the label. "
                    f"Received: {len(fields)}"
                )
            records.append(dict(zip(names, fields, strict=True)))
        return {name: [record.get(name) for record in records] for name in columns}

    def _check_names(self, table: Mapping[str, _Column]) -> None:
        for name in table:
            if not isinstance(name, str):
                raise InputError(f"columns: expected names that are texts. Received: {name!r}")
            if self._schema is not None and name not in self._schema.columns:
                raise InputError(
                    f"columns: expected names of schema {self._schema.name!r} "
                    f"({', '.join(self._schema.raw_features)}). Received: {name!r}"
                )

    def _array(self, name: str, values: _Column) -> pa.Array | None:
        """A column as int64 or binary with nulls; None where no row has a value."""
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        column = values if isinstance(values, pa.Array) else _as_arrow(values)
        if column is not None and (quick := self._quick(name, column)) is not None:
            return quick
        found = self._values(name, _as_list(values))
        if found is None:
            return None
        kind = pa.int64() if any(isinstance(value, int) for value in found) else pa.binary()
        return pa.array(found, kind)

    def _quick(self, name: str, values: pa.Array) -> pa.Array | None:
        """The column, if it can be converted without looking at each value; None otherwise."""
        if self._schema is None:
            return _without_schema(values, self._marks)
        if not is_convertible(values.type):
            return None
        try:
            found, bad = convert_column(values, name, self._schema)
        except pa.ArrowInvalid:  # Text type, but the values are not UTF-8.
            return None
        return None if bad.any() else found

    def _values(self, name: str, values: Sequence[object]) -> list[int | bytes | None] | None:
        """A column as integers or bytes, None for a missing value; None where no row has a value."""
        convert = self._converter(name, values)
        found = []
        for row, value in enumerate(values):
            try:
                found.append(None if is_missing(value, self._marks) else convert(value))
            except (ValueError, TypeError, OverflowError):
                unnamed = "a text" if convert is _text else "an integer"
                expected = expected_values(name, self._schema) if self._schema else unnamed
                raise InputError(
                    f"row {row}: column {name!r} should be {expected} or missing. Received: {_shown(value)}"
                ) from None
        return found if any(value is not None for value in found) else None

    def _converter(self, name: str, values: Sequence[object]) -> Callable[[object], int | bytes]:
        """What converts one value of a column."""
        schema = self._schema
        if schema is None:
            texts = any(isinstance(value, TEXT_TYPES) and value for value in values)
            numbers = any(
                not isinstance(value, TEXT_TYPES) and not is_missing(value, self._marks) for value in values
            )
            return to_integer if numbers and not texts else _text
        if name in schema.categoricals:
            return to_category
        if schema.time is not None and name == schema.time.name:
            return functools.partial(_time, time=schema.time)
        return to_integer


def _refuse_header(line: bytes, schema: ClickLogSchema, quoted: str) -> None:
    """Raises where the first line names the columns: it is no row, and their order may be another."""
    fields = quoting.split(line, schema.separator, quoted) or []
    names = {name.encode() for name in schema.raw_features}
    # Of one field alone, or with a value for the label, it may be a row of such categories.
    whole = schema.label.encode() in fields or 1 < len(fields) < len(schema.columns)
    if schema.header and whole and names <= set(fields):
        raise InputError(
            "row 0: expected a row. Received: the header of a file; csv.DictReader reads such a file, whatever the "
            "order of its columns"
        )


def _without_schema(values: pa.Array, marks: Iterable[bytes]) -> pa.Array | None:
    if pa.types.is_signed_integer(values.type):
        return values.cast(pa.int64())
    if not pa.types.is_string(values.type) and not pa.types.is_binary(values.type):
        return None
    column = values.cast(pa.binary())
    found = pc.is_in(column, value_set=pa.array(list(marks), pa.binary()))
    return pc.if_else(found, pa.scalar(None, pa.binary()), column)


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python does not print integers of more than 4300 digits.
        text = type(value).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _check_unique(names: Iterable[object]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"columns: expected each name once. Received: {name!r} {count} times")


def _line_bytes(number: int, line: Text) -> bytes:
    try:
        return as_bytes(line)
    except UnicodeEncodeError:
        raise InputError(f"row {number}: expected UTF-8 text. Received: {_shown(line)}") from None


def _text(value: object) -> bytes:
    """The text of a value without a schema: text unchanged, and whole numbers in a column of texts."""
    if isinstance(value, TEXT_TYPES):
        return as_bytes(value)
    if isinstance(value, bool):
        raise ValueError(value)
    return str(whole_number(value)).encode()


def _time(value: object, time: TimeColumn) -> int:
    """A value of the time column as its number."""
    if isinstance(value, np.datetime64):
        value = value.astype("datetime64[us]").item()
    if isinstance(value, datetime.date):
        number = number_of(value, time)
    elif time.format == "iso8601" and isinstance(value, TEXT_TYPES):
        number = parse_iso(as_bytes(value))
    else:
        number = to_integer(value)
    if not valid_times(np.array([number]), time)[0]:
        raise ValueError(value)
    return number


def _as_list(column: _Column) -> Sequence[object]:
    return column.to_pylist() if isinstance(column, pa.Array | pa.ChunkedArray) else column


def _encode_row(features: Iterable[tuple[bytes, int | bytes | None]]) -> bytes:
    """One tf.Example in protobuf's wire format; a feature without a value is left out."""
    entries = []
    for name, value in features:
        if value is None:
            continue
        if isinstance(value, bytes):
            feature = _field(1, _field(1, value))
        else:
            feature = _field(3, _field(1, _varint(value & 0xFFFFFFFFFFFFFFFF)))
        entries.append(_field(1, _field(1, name) + _field(2, feature)))
    return _field(1, b"".join(entries)) if entries else b""


def _field(number: int, content: bytes) -> bytes:
    return bytes((number << 3 | 2,)) + _varint(len(content)) + content


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    digits = bytearray()
    while number >= 0x80:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _as_arrow(values: Sequence[object]) -> pa.Array | None:
    """A list of values of one plain type as an Arrow array; None for any other."""
    kinds = set(map(type, values)) - {type(None)}
    try:
        if kinds == {int}:
            return pa.array(values, pa.int64())
        if kinds == {float}:
            return pa.array(values, pa.float64())
        if kinds in ({str}, {bytes}):
            return pa.array(values, pa.binary())
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        pass
    return None


def _pandas_column(series: pd.Series) -> _Column:
    """As an Arrow array, in which NaN and NA are null; a list where the column mixes types."""
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return series.tolist()
