"""Typed columns from raw ones, with a reason for each invalid value; `values` does the same for single values."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.datasets.times import from_timestamps, iso_seconds, valid_times
from mlet_tf.datasets.values import (
    CATEGORY,
    INTEGER,
    SPACES,
    WHOLE,
    WHOLE_REWRITE,
    is_missing,
    is_utf8,
    may_hold_whole,
    parse_int64,
)

_TEXT_SHOWN = 200
_INT64 = np.iinfo(np.int64)
_EXACT_FLOAT = 2.0**53
_NUMBER = re.compile("0|-?[1-9][0-9]{0,19}")  # A whole number as a category has it.
_WHOLE_DECIMAL = r"^-?[0-9]+(?:\.0+)?$"
# Label texts, in small letters, that mean a truth value; to Arrow's text of it.
TRUTH_TEXTS = {"true": "true", "1": "true", "false": "false", "0": "false"}
_SHORT_INTEGER = 17  # Bytes of text that cannot be more than 64 bits.


def arrow_schema(schema: ClickLogSchema, columns: Sequence[str] | None = None) -> pa.Schema:
    """The types of the tables read: int64 for label, integers and time, binary for categories."""
    wanted = (schema.label, *schema.raw_features) if columns is None else columns
    categories = set(schema.categoricals)
    return pa.schema([(name, pa.binary() if name in categories else pa.int64()) for name in wanted])


def text_types(schema: ClickLogSchema, wanted: pa.Schema) -> pa.Schema:
    """The types that text is parsed to before `convert_column` converts it to the wanted types."""
    texts = {schema.label} if schema.positive else set()
    if schema.time is not None and schema.time.format == "iso8601":
        texts.add(schema.time.name)
    return pa.schema([(field.name, pa.binary() if field.name in texts else field.type) for field in wanted])


@dataclasses.dataclass(frozen=True)
class Check:
    """A condition on the numbers of a column.

    Args:
        valid: Whether each int64 is valid.
        expected: The same in words.
    """

    valid: Callable[[np.ndarray], np.ndarray]
    expected: str


def row_checks(schema: ClickLogSchema) -> dict[str, Check]:
    """Columns in which a missing or invalid value makes a row bad."""
    texts = "0 or 1"
    if schema.positive:
        others = " or ".join(map(repr, schema.negative)) or "any other text"
        texts = f"{' or '.join(map(repr, schema.positive))}, or {others}"
    checks = {schema.label: Check(lambda values: (values == 0) | (values == 1), texts)}
    time = schema.time
    if time is not None:
        checks[time.name] = Check(lambda values: valid_times(values, time), f"a time ({time.format})")
    return checks


def expected_values(name: str, schema: ClickLogSchema) -> str:
    """What the values of a column should be, in words."""
    if name in schema.categoricals:
        return CATEGORY
    check = row_checks(schema).get(name)
    return check.expected if check else "an integer"


def convert(
    table: pa.Table | pa.RecordBatch, wanted: pa.Schema, schema: ClickLogSchema
) -> tuple[list[pa.Array], dict[int, str]]:
    """Converts columns to the wanted types.

    Args:
        table: The raw columns: text of any kind, integers, floats, decimals, booleans or, for the time, timestamps.
        wanted: Names and types wanted, as of `arrow_schema`.
        schema: Says what is missing and what must hold.

    Returns:
        The columns, and the reason for each row with an invalid value.
    """
    columns: list[pa.Array] = []
    reasons: dict[int, str] = {}
    needed = row_checks(schema)
    for name in wanted.names:
        raw = table.column(table.schema.get_field_index(name))
        raw = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
        values, bad = convert_column(raw, name, schema)
        if name in needed:
            bad = bad | np.asarray(values.is_null())
        columns.append(values)
        for row in np.flatnonzero(bad).tolist():
            expected, received = (
                expected_values(name, schema),
                _shown(_plain(raw[row : row + 1])[0].as_py(), schema),
            )
            reasons.setdefault(row, f"column {name!r} should be {expected}. Received: {received}")
    return columns, reasons


def convert_column(raw: pa.Array, name: str, schema: ClickLogSchema) -> tuple[pa.Array, np.ndarray]:
    """Converts one column.

    Args:
        raw: The values; see `convert`.
        name: Its name.
        schema: Says what it should hold.

    Returns:
        int64 or binary, null where a value is missing, and a bool mask of invalid values.
    """
    time = schema.time if schema.time is not None and name == schema.time.name else None
    raw = _plain(raw)
    if time is not None and pa.types.is_temporal(raw.type):
        values, bad = from_timestamps(raw, time), np.zeros(len(raw), bool)
    else:
        raw, fractions = _whole_numbers(raw)
        raw = _without_missing(raw, schema.missing_marks)
        if name == schema.label and schema.positive:
            values, bad = _to_labels(raw, schema)
        elif time is not None and time.format == "iso8601" and pa.types.is_binary(raw.type):
            values, bad = _only_utf8(raw, iso_seconds)
        elif name in schema.categoricals:
            values, bad = _to_categories(raw)
        else:
            values, bad = _to_int64(raw)
        bad = bad | fractions
    check = row_checks(schema).get(name)
    if check:
        bad = bad | (np.asarray(values.is_valid()) & ~check.valid(values.fill_null(0).to_numpy()))
    return values, bad


def is_convertible(kind: pa.DataType) -> bool:
    """Whether `convert_column` takes a type for one of its columns."""
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    types = pa.types
    checks = (
        types.is_integer,
        types.is_floating,
        types.is_decimal,
        types.is_boolean,
        types.is_null,
        is_text,
    )
    return any(check(kind) for check in checks)


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is text or bytes."""
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in checks)


def _shown(value: object, schema: ClickLogSchema) -> str:
    if is_missing(value, [mark.encode() for mark in schema.missing_marks]):
        return "no value"
    return repr(value.decode("utf-8", "backslashreplace") if isinstance(value, bytes) else value)[
        :_TEXT_SHOWN
    ]


def _plain(raw: pa.Array) -> pa.Array:
    """The same values as binary, integers, floats, decimals, booleans or timestamps."""
    if pa.types.is_dictionary(raw.type):
        raw = raw.cast(raw.type.value_type)
    if pa.types.is_null(raw.type) or is_text(raw.type):
        return raw.cast(pa.binary())
    if raw.type == pa.float16():
        return pa.array(raw.to_numpy(zero_copy_only=False).astype(np.float32))
    return raw


def _whole_numbers(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Floats as int64, decimals as text, and which are not whole, or floats so large that they may be rounded."""
    if pa.types.is_decimal(raw.type):
        # Arrow casts no decimals to text, so Python does, each distinct value once.
        encoded = raw.dictionary_encode()
        texts = pa.array([f"{value:f}" for value in encoded.dictionary.to_pylist()], pa.string())
        texts = texts.take(encoded.indices)
        whole = np.asarray(pc.fill_null(pc.match_substring_regex(texts, _WHOLE_DECIMAL), False))
        texts = pc.if_else(pa.array(whole), texts, pa.scalar(None, texts.type))
        return texts.cast(pa.binary()), np.asarray(raw.is_valid()) & ~whole
    if not pa.types.is_floating(raw.type):
        return raw, np.zeros(len(raw), bool)
    numbers = raw.fill_null(np.nan).to_numpy().astype(np.float64)
    present = ~np.isnan(numbers)
    whole = present & (np.abs(numbers) < _EXACT_FLOAT) & (numbers == np.floor(numbers))
    return pa.array(np.where(whole, numbers, 0).astype(np.int64), mask=~whole), present & ~whole


def _without_missing(raw: pa.Array, marks: Sequence[str]) -> pa.Array:
    """The column with null for the marks of missing values; a number is missing if its text is a mark."""
    if pa.types.is_binary(raw.type):
        return _null_where(_canonical(raw), [mark.encode() for mark in marks])
    if not pa.types.is_integer(raw.type):
        return raw
    numbers = [int(mark) for mark in marks if _NUMBER.fullmatch(mark)]
    return _null_where(raw, [number for number in numbers if _holds(raw.type, number)])


def _null_where(raw: pa.Array, values: list[bytes] | list[int]) -> pa.Array:
    found = pc.is_in(raw, value_set=pa.array(values, raw.type)) if values else None
    if found is None or not pc.any(found).as_py():
        return raw
    return pc.if_else(found, pa.scalar(None, raw.type), raw)


def _holds(kind: pa.DataType, number: int) -> bool:
    try:
        pa.scalar(number, kind)
    except (pa.ArrowInvalid, OverflowError):
        return False
    return True


def _canonical(raw: pa.Array) -> pa.Array:
    """Text in which `5.0` is `5`; columns without such text, which are most, are returned unchanged."""
    data = raw.buffers()[2]
    if data is None or not may_hold_whole(data.to_pybytes()):
        return raw
    return pc.replace_substring_regex(raw, WHOLE, WHOLE_REWRITE)


def _to_labels(raw: pa.Array, schema: ClickLogSchema) -> tuple[pa.Array, np.ndarray]:
    texts = raw if pa.types.is_binary(raw.type) else raw.cast(pa.string()).cast(pa.binary())
    present = np.asarray(texts.is_valid())
    chosen: list[Sequence[str]] = [schema.positive, schema.negative]
    if pa.types.is_boolean(raw.type):
        chosen = [[TRUTH_TEXTS.get(text.lower(), text) for text in group] for group in chosen]
    clicks, others = (
        np.asarray(pc.is_in(texts, value_set=_canonical(pa.array([t.encode() for t in group], pa.binary()))))
        for group in chosen
    )
    bad = present & ~clicks & ~others if schema.negative else np.zeros(len(raw), bool)
    return pa.array(clicks.astype(np.int64), mask=~present | bad), bad


def _to_categories(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    if pa.types.is_integer(raw.type):
        return raw.cast(pa.string()).cast(pa.binary()), np.zeros(len(raw), bool)
    if not pa.types.is_binary(raw.type):
        return pa.nulls(len(raw), pa.binary()), np.asarray(raw.is_valid())
    nul = np.asarray(pc.fill_null(pc.greater_equal(pc.find_substring(raw, b"\0"), 0), False))
    return raw, nul | _not_utf8(raw)


def _to_int64(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Converts to int64; values that are not such integers become null and are marked."""
    present = np.asarray(raw.is_valid())
    if pa.types.is_binary(raw.type):
        return _only_utf8(raw, _parse_integers)
    if raw.type == pa.uint64():
        fits = present & np.asarray(pc.fill_null(pc.less_equal(raw, pa.scalar(_INT64.max, raw.type)), False))
        raw = pc.if_else(pa.array(fits), raw, pa.scalar(None, raw.type))
        return raw.cast(pa.int64()), present & ~fits
    if pa.types.is_temporal(raw.type):
        return pa.nulls(len(raw), pa.int64()), present
    return raw.cast(pa.int64()), np.zeros(len(raw), bool)


def _parse_integers(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    text = _canonical(raw).cast(pa.string())
    if (pc.max(pc.binary_length(text)).as_py() or 0) <= _SHORT_INTEGER:
        with contextlib.suppress(pa.ArrowInvalid):
            return text.cast(pa.int64()), np.zeros(len(raw), bool)
    text = _canonical(pc.utf8_trim(text, characters=SPACES).cast(pa.binary())).cast(pa.string())
    fits = np.array(pc.fill_null(pc.match_substring_regex(text, INTEGER), False))
    long = fits & np.asarray(pc.fill_null(pc.greater(pc.binary_length(text), _SHORT_INTEGER), False))
    for i in np.flatnonzero(long).tolist():
        fits[i] = is_int64(text[i].as_py().encode())
    values = pc.if_else(pa.array(fits), text, pa.scalar(None, text.type)).cast(pa.int64())
    return values, np.asarray(raw.is_valid()) & ~fits


def _only_utf8(
    raw: pa.Array, convert_texts: Callable[[pa.Array], tuple[pa.Array, np.ndarray]]
) -> tuple[pa.Array, np.ndarray]:
    """Converts the texts that are UTF-8; the others are marked."""
    broken = _not_utf8(raw)
    if broken.any():
        raw = pc.if_else(pa.array(broken), pa.scalar(None, raw.type), raw)
    values, bad = convert_texts(raw)
    return values, bad | broken


def is_int64(text: bytes) -> bool:
    """Whether a text is a 64-bit integer, by the rules for columns."""
    try:
        parse_int64(text)
    except ValueError:
        return False
    return True


def _not_utf8(raw: pa.Array) -> np.ndarray:
    try:
        raw.cast(pa.string())
    except pa.ArrowInvalid:
        pass
    else:
        return np.zeros(len(raw), bool)
    # Python looks at the values that are not ASCII, which are few in most logs.
    ascii_only = pc.fill_null(pc.string_is_ascii(raw.view(pa.string())), True)
    suspects = np.flatnonzero(~np.asarray(ascii_only))
    broken = np.zeros(len(raw), bool)
    broken[suspects] = [not is_utf8(value) for value in raw.take(pa.array(suspects)).to_pylist()]
    return broken
