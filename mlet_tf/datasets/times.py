"""Times of a click log: parsing texts, checking numbers, deriving categories."""

from __future__ import annotations

import datetime
import re
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.datasets.schema import TimeColumn

if TYPE_CHECKING:
    import tensorflow as tf

_Numbers = TypeVar("_Numbers", np.ndarray, "tf.Tensor")

# Format `iso8601`: a date, perhaps a time, perhaps a zone. `re`, RE2 and Arrow all accept the pattern.
ISO_8601 = (
    r"^(?P<year>[0-9]{4})-(?P<month>[0-9]{2})-(?P<day>[0-9]{2})"
    r"(?:[Tt ](?P<hour>[0-9]{2})(?::(?P<minute>[0-9]{2})(?::(?P<second>[0-9]{2})(?:[.,][0-9]+)?)?)?"
    r" ?(?:[Zz]|UTC|(?P<sign>[+-])(?P<zone_hour>[0-9]{2})(?::?(?P<zone_minute>[0-9]{2}))?)?)?$"
)
_ISO_FIELDS = ("year", "month", "day", "hour", "minute", "second", "zone_hour", "zone_minute")
_ISO_BYTES = re.compile(ISO_8601.encode())
_UNITS = {"s": 1, "ms": 1000, "us": 1_000_000, "ns": 1_000_000_000}

# The last second of the year 9999; milliseconds since 1970 would be larger today.
_LAST_SECOND = 253402300799
_HOUR = 3600


def valid_times(values: np.ndarray, time: TimeColumn) -> np.ndarray:
    """Whether each int64 of `values` is a time in the column's format."""
    if time.format != "yymmddhh":
        return (values >= 0) & (values <= _LAST_SECOND)
    year, month, day, hour = _yymmddhh(values)
    days = _days_of_month(2000 + year, month)
    return (
        (values >= 0)
        & (year <= 99)
        & (month >= 1)
        & (month <= 12)
        & (day >= 1)
        & (day <= days)
        & (hour <= 23)
    )


def derive(values: np.ndarray, time: TimeColumn) -> dict[str, np.ndarray]:
    """Computes the features named in `time.derive` as int64: `hour_of_day` 0..23, `weekday` 0 (Monday)..6."""
    hours = hours_since_1970(values, time)
    # 1970-01-01 was a Thursday.
    parts = {"hour_of_day": hours % 24, "weekday": (hours // 24 + 3) % 7}
    return {name: parts[name] for name in time.derive}


def hours_since_1970(values: np.ndarray, time: TimeColumn) -> np.ndarray:
    """Whole hours from 1970-01-01 00:00 to each time; years of `yymmddhh` are 2000 to 2099."""
    values = np.asarray(values, np.int64)
    if time.format != "yymmddhh":
        return values // _HOUR
    year, month, day, hour = _yymmddhh(values)
    months = ((2000 - 1970 + year) * 12 + month - 1).astype("datetime64[M]")
    return (months.astype("datetime64[D]").astype(np.int64) + day - 1) * 24 + hour


def yymmddhh(hours: np.ndarray) -> np.ndarray:
    """Writes hours since 1970 as `yymmddhh`; the inverse of `hours_since_1970`."""
    days = (hours // 24).astype("datetime64[D]")
    months = days.astype("datetime64[M]")
    month_count = months.astype(np.int64)
    day = (days - months.astype("datetime64[D]")).astype(np.int64) + 1
    year = month_count // 12 + 1970 - 2000
    return ((year * 100 + month_count % 12 + 1) * 100 + day) * 100 + hours % 24


def unix_seconds(
    year: _Numbers, month: _Numbers, day: _Numbers, hour: _Numbers, minute: _Numbers, second: _Numbers
) -> _Numbers:
    """Seconds from 1970-01-01 to a time in UTC; int64 arrays or tensors, whose values are not checked."""
    # Years begin in March here, so that the leap day is the last one.
    from_march = (month + 9) % 12
    years = year - from_march // 10
    leap_days = years // 4 - years // 100 + years // 400
    days = 365 * years + leap_days + (153 * from_march + 2) // 5 + day - 719_469
    return ((days * 24 + hour) * 60 + minute) * 60 + second


def iso_seconds(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """Converts ISO 8601 times to Unix seconds; other texts become null and are marked.

    Args:
        texts: Strings or bytes in UTF-8, with nulls.
    """
    found = pc.extract_regex(texts.cast(pa.string()), ISO_8601)
    fields = {}
    for name in _ISO_FIELDS:
        digits = pc.struct_field(found, [found.type.get_field_index(name)])
        digits = pc.if_else(pc.equal(digits, ""), "0", digits).fill_null("0")
        fields[name] = digits.cast(pa.int64()).to_numpy()
    sign = pc.struct_field(found, [found.type.get_field_index("sign")])
    east = np.where(np.asarray(pc.equal(sign, "-").fill_null(False)), -1, 1)
    seconds = _seconds_of(fields, east)
    fits = np.asarray(found.is_valid()) & _real_date(fields)
    bad = np.asarray(texts.is_valid()) & ~fits
    return pa.array(np.where(fits, seconds, 0), pa.int64(), mask=~fits), bad


def parse_iso(text: bytes) -> int:
    """One text as `iso_seconds` converts it.

    Raises:
        ValueError: It is not an ISO 8601 time.
    """
    found = _ISO_BYTES.fullmatch(text)
    if not found:
        raise ValueError(text)
    fields = {name: np.array([int(found[name] or 0)]) for name in _ISO_FIELDS}
    if not _real_date(fields)[0]:
        raise ValueError(text)
    return int(_seconds_of(fields, -1 if found["sign"] == b"-" else 1)[0])


def _seconds_of(fields: dict[str, np.ndarray], east: np.ndarray | int) -> np.ndarray:
    local = unix_seconds(*(fields[name] for name in _ISO_FIELDS[:6]))
    return local - east * (fields["zone_hour"] * 60 + fields["zone_minute"]) * 60


def _real_date(fields: dict[str, np.ndarray]) -> np.ndarray:
    year, month, day, hour, minute, second, zone_hour, zone_minute = (fields[name] for name in _ISO_FIELDS)
    return (
        ((month >= 1) & (month <= 12) & (day >= 1) & (day <= _days_of_month(year, month)))
        & ((hour <= 23) & (minute <= 59) & (second <= 59))
        & ((zone_hour <= 23) & (zone_minute <= 59))
    )


def _days_of_month(year: np.ndarray, month: np.ndarray) -> np.ndarray:
    leap = (year % 4 == 0) & ((year % 100 != 0) | (year % 400 == 0))
    days = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])[np.clip(month, 0, 12)]
    return days + (leap & (month == 2))


def from_timestamps(column: pa.Array, time: TimeColumn) -> pa.Array:
    """Timestamps or dates as the numbers of a time column; without a zone they are in UTC."""
    if not pa.types.is_timestamp(column.type):
        column = column.cast(pa.timestamp("s"))
    numbers = column.cast(pa.int64())
    valid = np.asarray(numbers.is_valid())
    seconds = numbers.fill_null(0).to_numpy() // _UNITS[column.type.unit]
    if time.format == "yymmddhh":
        # A year outside 2000 to 2099 gives an invalid number.
        seconds = yymmddhh(seconds // _HOUR)
    return pa.array(seconds, pa.int64(), mask=~valid)


def number_of(value: datetime.date, time: TimeColumn) -> int:
    """A `datetime` (without a zone in UTC) or a date as the number of a time column."""
    moment = value if isinstance(value, datetime.datetime) else datetime.datetime(*value.timetuple()[:3])
    zoned = moment if moment.tzinfo else moment.replace(tzinfo=datetime.UTC)
    seconds = np.array([int(zoned.timestamp() // 1)])
    return int((yymmddhh(seconds // _HOUR) if time.format == "yymmddhh" else seconds)[0])


def _yymmddhh(values: np.ndarray) -> tuple[np.ndarray, ...]:
    values = np.asarray(values, np.int64)
    return values // 1_000_000, values // 10_000 % 100, values // 100 % 100, values % 100
