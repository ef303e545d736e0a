"""A column of the log that names the part of its rows: `train`, `test` and so on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.errors import InputError

_MOST_UNLISTED = 1000  # Values that are counted one by one; a column of ids may have any number.
_SHOWN = 5
_NO_VALUE, _FURTHER = "no value", "further values"


class Parts:
    """Finds the part of each row, and counts the values that no part lists.

    Args:
        lists: Values of each part, each value in one of them and as the reader gives it (`5`, not `5.0`).
    """

    def __init__(self, lists: Mapping[str, Sequence[str]]) -> None:
        self._values = pa.array([value for values in lists.values() for value in values], pa.string())
        of_value = np.repeat(np.arange(len(lists)), [len(values) for values in lists.values()])
        # The last one is for values that are not listed.
        self._part = np.append(of_value, len(lists)).astype(np.uint8)
        self.unlisted: dict[str, int] = {}

    def of_rows(self, column: pa.ChunkedArray) -> np.ndarray:
        """The part of each row as a place in `lists`, their number for a value not listed; uint8 `[rows]`."""
        texts = column.cast(pa.string())
        place = pc.index_in(texts, value_set=self._values)
        self._count(texts.filter(place.is_null()))
        return self._part[place.fill_null(len(self._values)).to_numpy()]

    def _count(self, texts: pa.ChunkedArray) -> None:
        for entry in pc.value_counts(texts).to_pylist():
            text = _NO_VALUE if entry["values"] is None else repr(entry["values"])
            name = text if text in self.unlisted or len(self.unlisted) < _MOST_UNLISTED else _FURTHER
            self.unlisted[name] = self.unlisted.get(name, 0) + entry["counts"]


def check_listed(unlisted: Mapping[str, int], column: str, key: str) -> None:
    """Raises an `InputError` if there are values that no part lists.

    Args:
        unlisted: Rows by value, of `Parts.unlisted`.
        column: The column.
        key: Dotted key of the lists.
    """
    if not unlisted:
        return
    largest = sorted(unlisted.items(), key=lambda item: (-item[1], item[0]))
    shown = [f"{value[:100]} in {rows:,} rows" for value, rows in largest[:_SHOWN]]
    if len(largest) > _SHOWN:
        rest = sum(rows for _, rows in largest[_SHOWN:])
        shown.append(f"others in {rest:,} rows")
    raise InputError(f"{key!r} should list all values of column {column!r}. Received: {', '.join(shown)}")
