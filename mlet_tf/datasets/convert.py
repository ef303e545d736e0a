"""Typed columns out of raw ones, with a reason for each value that does not fit."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.datasets.times import valid_times

CATEGORY = "UTF-8 text without a NUL byte"
_TEXT_SHOWN = 200
# What Arrow's own conversion takes, so that both ways through a block of text agree.
_INTEGER = r"^(-?[0-9]{1,100}|0[xX][0-9a-fA-F]{1,16})$"
_INTEGER_BYTES = re.compile(_INTEGER.encode())
_SPACES = " \t"
_INT64 = np.iinfo(np.int64)


def arrow_schema(schema: ClickLogSchema, columns: Sequence[str] | None = None) -> pa.Schema:
    """The types of the tables read: int64 for label, integers and time, binary for categories."""
    wanted = (schema.label, *schema.raw_features) if columns is None else columns
    categories = set(schema.categoricals)
    return pa.schema([(name, pa.binary() if name in categories else pa.int64()) for name in wanted])


@dataclasses.dataclass(frozen=True)
class _Check:
    valid: Callable[[np.ndarray], np.ndarray]
    expected: str


def row_checks(schema: ClickLogSchema) -> dict[str, _Check]:
    """Columns in which a missing value, or one that does not pass, makes a row bad."""
    checks = {schema.label: _Check(lambda values: (values == 0) | (values == 1), "0 or 1")}
    time = schema.time
    if time is not None:
        checks[time.name] = _Check(lambda values: valid_times(values, time), f"a time ({time.format})")
    return checks


def convert(
    table: pa.Table | pa.RecordBatch, wanted: pa.Schema, schema: ClickLogSchema
) -> tuple[list[pa.Array], dict[int, str]]:
    """Converts columns to the wanted types.

    Args:
        table: The raw columns: text of any kind, integers or, for integers, floats.
        wanted: Names and types wanted, as of `arrow_schema`.
        schema: Says what is missing and what must hold.

    Returns:
        The columns, and for each row with a value that does not fit the reason.
    """
    columns: list[pa.Array] = []
    reasons: dict[int, str] = {}
    checks = row_checks(schema)
    for field in wanted:
        raw = table.column(table.schema.get_field_index(field.name))
        raw = raw.combine_chunks() if isinstance(raw, pa.ChunkedArray) else raw
        raw = _without_missing(raw, schema.missing)
        check = checks.get(field.name)
        if field.type == pa.binary():
            values, bad = to_categories(raw)
            expected = CATEGORY
        else:
            values, bad = to_int64(raw)
            expected = check.expected if check else "an integer"
        if check:
            bad |= ~check.valid(values.fill_null(-1).to_numpy()) | np.asarray(values.is_null())
        columns.append(values)
        for row in np.flatnonzero(bad).tolist():
            received = raw[row].as_py()
            received = (
                received.decode("utf-8", "backslashreplace") if isinstance(received, bytes) else received
            )
            shown = "no value" if received is None else repr(received)[:_TEXT_SHOWN]
            reasons.setdefault(row, f"column {field.name!r} should be {expected}. Received: {shown}")
    return columns, reasons


def _without_missing(raw: pa.Array, missing: Sequence[str]) -> pa.Array:
    if pa.types.is_dictionary(raw.type):
        raw = raw.cast(raw.type.value_type)
    if pa.types.is_null(raw.type):
        raw = raw.cast(pa.binary())
    if pa.types.is_integer(raw.type) and any(mark.removeprefix("-").isdigit() for mark in missing):
        raw = raw.cast(pa.string())
    if is_text(raw.type):
        raw = raw.cast(pa.binary())
        if missing:
            marks = pa.array([mark.encode() for mark in missing], pa.binary())
            raw = pc.if_else(pc.is_in(raw, value_set=marks), pa.scalar(None, pa.binary()), raw)
    elif pa.types.is_floating(raw.type):
        raw = pc.if_else(pc.is_nan(raw), pa.scalar(None, raw.type), raw)
    return raw


def to_categories(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Converts to binary; also which values are no categories."""
    if not pa.types.is_binary(raw.type):
        return raw.cast(pa.string()).cast(pa.binary()), np.zeros(len(raw), bool)
    nul = np.asarray(pc.fill_null(pc.greater_equal(pc.find_substring(raw, b"\0"), 0), False))
    return raw, nul | _not_utf8(raw)


def to_int64(raw: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Converts to int64; values that are no such integer become null and are marked."""
    present = np.asarray(raw.is_valid())
    if pa.types.is_binary(raw.type):
        raw = pc.if_else(pa.array(_not_utf8(raw)), pa.scalar(None, raw.type), raw)
        text = pc.utf8_trim(raw.cast(pa.string()), characters=_SPACES)
        fits = np.array(pc.fill_null(pc.match_substring_regex(text, _INTEGER), False))
        long = fits & np.asarray(pc.fill_null(pc.greater(pc.binary_length(text), 17), False))
        for i in np.flatnonzero(long).tolist():
            fits[i] = is_int64(text[i].as_py().encode())
        raw = text
    elif pa.types.is_floating(raw.type):
        numbers = raw.fill_null(0).to_numpy()
        fits = present & (numbers == np.floor(numbers)) & (np.abs(numbers) < 2.0**53)
    else:
        fits = (
            present & np.asarray(pc.fill_null(pc.less_equal(raw, pa.scalar(_INT64.max, raw.type)), False))
            if raw.type == pa.uint64()
            else present
        )
    values = pc.if_else(pa.array(fits), raw, pa.scalar(None, raw.type)).cast(pa.int64())
    return values, present & ~fits


def is_int64(text: bytes) -> bool:
    """Whether `to_int64` converts a text."""
    try:
        parse_int64(text)
    except ValueError:
        return False
    return True


def parse_int64(text: bytes) -> int:
    """One text as `to_int64` converts it.

    Raises:
        ValueError: It is no integer of 64 bits.
    """
    digits = text.strip(_SPACES.encode())
    if not _INTEGER_BYTES.fullmatch(digits):
        raise ValueError(f"expected an integer, received {text!r}")
    number = int(digits, 16 if digits[:2] in (b"0x", b"0X") else 10)
    if not _INT64.min <= number <= _INT64.max:
        raise ValueError(f"expected an integer of 64 bits, received {text!r}")
    return number


def is_category(text: bytes) -> bool:
    """Whether `to_categories` takes a text."""
    return is_utf8(text) and b"\0" not in text


def _not_utf8(raw: pa.Array) -> np.ndarray:
    try:
        raw.cast(pa.string())
    except pa.ArrowInvalid:
        return np.array([value is not None and not is_utf8(value) for value in raw.to_pylist()])
    return np.zeros(len(raw), bool)


def is_text(kind: pa.DataType) -> bool:
    """Whether it is a type of text or bytes."""
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(check(kind) for check in checks)


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are UTF-8."""
    if data.isascii():
        return True
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
