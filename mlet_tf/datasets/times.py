"""The numbers in a time column: which are times, and the categories derived from them."""

from __future__ import annotations

import numpy as np

from mlet_tf.datasets.schema import TimeColumn

# The last second of the year 9999; milliseconds of our days lie beyond it.
_LAST_SECOND = 253402300799
_HOUR = 3600


def valid_times(values: np.ndarray, time: TimeColumn) -> np.ndarray:
    """Says of each int64 of `values` whether it is a time in the column's format."""
    if time.format == "unix_seconds":
        return (values >= 0) & (values <= _LAST_SECOND)
    year, month, day, hour = _yymmddhh(values)
    leap = (year % 4 == 0).astype(np.int64)
    days = np.array([0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31])[np.clip(month, 0, 12)]
    days = days + leap * (month == 2)
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
    if time.format == "unix_seconds":
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


def _yymmddhh(values: np.ndarray) -> tuple[np.ndarray, ...]:
    values = np.asarray(values, np.int64)
    return values // 1_000_000, values // 10_000 % 100, values // 100 % 100, values % 100
