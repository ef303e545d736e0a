"""Rows in any of the forms that callers have them in, as serialised tf.Examples of raw columns."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.convert import CATEGORY, is_category, parse_int64, to_categories, to_int64
from mlet_tf.datasets.encoding import encode_examples
from mlet_tf.errors import InputError

_SHOWN = 300
_FEW = 100


class Rows:
    """Rows to be predicted.

    A missing value is None, NaN, the schema's marks for it, or an absent key: the feature is then absent.
    With a schema, texts are read as the pipeline reads its logs.

    Args:
        rows: A list of dicts (column to value), a pandas frame, an Arrow table or batch, or, with a
            schema, lines of a raw log with or without the label.
        schema: The log's columns. Without one, integers are sent as int64 and texts as bytes.

    Raises:
        InputError: A value does not fit its column, or a column is none of the schema's.
    """

    def __init__(self, rows: Any, schema: ClickLogSchema | None = None) -> None:
        """See the class."""
        self._rows = rows
        self._schema = schema
        self._integers = {*schema.integers, *([schema.time.name] if schema.time else [])} if schema else set()
        marks = {"", *schema.missing} if schema else {""}
        self._missing = marks | {mark.encode() for mark in marks}
        table = self._columns()
        self._check_names(table)
        wanted = schema.raw_features if schema else list(table)
        columns = {name: table[name] for name in wanted if name in table}
        self.count = len(rows)
        self.examples = self._encode_few(columns) if self.count <= _FEW else self._encode_many(columns)

    def describe(self, row: int) -> str:
        """The row as the caller gave it, for an error text."""
        rows = self._rows
        if hasattr(rows, "iloc"):
            found = rows.iloc[row].to_dict()
        elif isinstance(rows, pa.Table | pa.RecordBatch):
            found = rows.slice(row, 1).to_pylist()[0]
        else:
            found = rows[row]
        return _shown(found)

    def _encode_few(self, columns: Mapping[str, Any]) -> list[bytes]:
        """Row by row, which for few rows is quicker than a column at a time."""
        names = [name.encode() for name in columns]
        values = [self._values(name, _as_list(column)) for name, column in columns.items()]
        return [
            _encode_row((name, column[row]) for name, column in zip(names, values, strict=True) if column)
            for row in range(self.count)
        ]

    def _encode_many(self, columns: Mapping[str, Any]) -> list[bytes]:
        arrays = {name: self._array(name, column) for name, column in columns.items()}
        table = {name: array for name, array in arrays.items() if array is not None}
        return encode_examples(pa.table(table)).to_pylist() if table else [b""] * self.count

    def _columns(self) -> dict[str, Any]:
        """Columns by name: Arrow arrays, or lists of the values as they came."""
        rows = self._rows
        if hasattr(rows, "iloc") and hasattr(rows, "columns"):
            _check_unique(rows.columns)
            return {name: _pandas_column(rows[name]) for name in rows.columns}
        if isinstance(rows, pa.Table | pa.RecordBatch):
            _check_unique(rows.schema.names)
            return dict(zip(rows.schema.names, rows.columns, strict=True))
        if isinstance(rows, str | bytes | Mapping) or not isinstance(rows, Sequence):
            raise InputError(
                "rows: expected a list of dicts or of lines, a pandas frame or an Arrow table. "
                f"Received: {type(rows).__name__}"
            )
        if all(isinstance(row, Mapping) for row in rows):
            names: dict[str, Any] = {}
            for row in rows:
                names.update(row)
            return {name: [row.get(name) for row in rows] for name in names}
        return self._columns_of_lines(rows)

    def _columns_of_lines(self, lines: Sequence[Any]) -> dict[str, list]:
        for number, line in enumerate(lines):
            if not isinstance(line, str | bytes):
                raise InputError(f"row {number}: expected a dict or a line. Received: {type(line).__name__}")
        if self._schema is None:
            raise InputError("rows: lines of a log can only be read with a schema. Received: none")
        columns = self._schema.columns
        unlabelled = tuple(name for name in columns if name != self._schema.label)
        records = []
        for number, line in enumerate(lines):
            fields = _fields(line, self._schema.separator)
            names = {len(columns): columns, len(unlabelled): unlabelled}.get(len(fields))
            if names is None:
                raise InputError(
                    f"row {number}: expected {len(columns)} columns, or {len(unlabelled)} without the label. "
                    f"Received: {len(fields)}"
                )
            records.append(dict(zip(names, fields, strict=True)))
        return {name: [record.get(name) for record in records] for name in columns}

    def _check_names(self, table: Mapping[str, Any]) -> None:
        for name in table:
            if not isinstance(name, str):
                raise InputError(f"columns: expected names that are texts. Received: {name!r}")
            if self._schema is not None and name not in self._schema.columns:
                raise InputError(
                    f"columns: expected names of schema {self._schema.name!r} "
                    f"({', '.join(self._schema.raw_features)}). Received: {name!r}"
                )

    def _array(self, name: str, values: Any) -> pa.Array | None:
        """A column as int64 or binary with nulls; None where no row has a value."""
        if isinstance(values, pa.ChunkedArray):
            values = values.combine_chunks()
        column = values if isinstance(values, pa.Array) else _as_arrow(values)
        if column is not None and (quick := self._quick(name, column)) is not None:
            return quick
        found = self._values(name, _as_list(values))
        if found is None:
            return None
        return pa.array(found, pa.int64() if self._is_integer(name, found) else pa.binary())

    def _values(self, name: str, values: Sequence[Any]) -> list[int | bytes | None] | None:
        """A column as integers or bytes, None for a missing value; None where no row has a value."""
        if self._is_integer(name, values):
            convert, expected = _integer, "an integer"
        else:
            convert, expected = (_category, CATEGORY) if self._schema else (_bytes, "a text")
        found = []
        for row, value in enumerate(values):
            try:
                found.append(None if self._is_missing(value) else convert(value))
            except (ValueError, TypeError, OverflowError):
                raise InputError(
                    f"row {row}: column {name!r} should be {expected} or missing. Received: {_shown(value)}"
                ) from None
        return found if any(value is not None for value in found) else None

    def _quick(self, name: str, values: pa.Array) -> pa.Array | None:
        """The column where no look at each value is needed; None otherwise."""
        if pa.types.is_signed_integer(values.type) and (self._schema is None or name in self._integers):
            return values.cast(pa.int64())
        if not pa.types.is_string(values.type) and not pa.types.is_binary(values.type):
            return None
        marks = pa.array([mark for mark in self._missing if isinstance(mark, bytes)], pa.binary())
        column = values.cast(pa.binary())
        column = pc.if_else(pc.is_in(column, marks), pa.scalar(None, pa.binary()), column)
        if self._schema is None:
            return column
        try:
            column, bad = (to_int64 if name in self._integers else to_categories)(column)
        except pa.ArrowInvalid:
            return None
        return None if bad.any() else column

    def _is_integer(self, name: str, values: Sequence[Any]) -> bool:
        if self._schema is not None:
            return name in self._integers
        present = [value for value in values if not self._is_missing(value)]
        return bool(present) and not any(isinstance(value, str | bytes) for value in present)

    def _is_missing(self, value: Any) -> bool:
        if value is None or (isinstance(value, Real) and math.isnan(value)):
            return True
        return isinstance(value, str | bytes) and value in self._missing


def _shown(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:
        # Python writes no integer of more than 4300 digits.
        text = type(value).__name__
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


def _check_unique(names: Iterable[Any]) -> None:
    for name, count in Counter(names).items():
        if count > 1:
            raise InputError(f"columns: expected each name once. Received: {name!r} {count} times")


def _fields(line: str | bytes, separator: str) -> Sequence[str | bytes]:
    if isinstance(line, bytes):
        return line.rstrip(b"\r\n").split(separator.encode())
    return line.rstrip("\r\n").split(separator)


def _integer(value: Any) -> int:
    if isinstance(value, str | bytes):
        return parse_int64(_as_bytes(value))
    number = _whole(value)
    if not -(2**63) <= number < 2**63:
        raise ValueError
    return number


def _category(value: Any) -> bytes:
    text = _bytes(value)
    if not is_category(text):
        raise ValueError
    return text


def _bytes(value: Any) -> bytes:
    if isinstance(value, str | bytes):
        return _as_bytes(value)
    # A category that is a number, as pandas reads it: a missing one beside it makes it a float.
    if isinstance(value, bool):
        raise ValueError
    return str(_whole(value)).encode()


def _whole(value: Any) -> int:
    """A number as an integer, where it is one; a large float may have been another before it was one."""
    if isinstance(value, Integral):
        return int(value)
    if not isinstance(value, Real) or not float(value).is_integer() or abs(value) >= 2.0**53:
        raise ValueError
    return int(value)


def _as_bytes(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogateescape")


def _as_list(column: Any) -> Sequence[Any]:
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


def _as_arrow(values: Sequence[Any]) -> pa.Array | None:
    """A list of values of one plain type as an Arrow array; None for any other."""
    kinds = set(map(type, values)) - {type(None)}
    try:
        if kinds == {int}:
            return pa.array(values, pa.int64())
        if kinds in ({str}, {bytes}):
            return pa.array(values, pa.binary())
    except (pa.ArrowInvalid, OverflowError, UnicodeEncodeError):
        pass
    return None


def _pandas_column(series: Any) -> Any:
    """As an Arrow array, in which NaN and NA are null; a list where the column mixes types."""
    try:
        return pa.array(series, from_pandas=True)
    except (pa.ArrowException, OverflowError, TypeError, ValueError):
        return series.tolist()
