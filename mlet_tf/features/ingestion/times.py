"""Where to cut a log by time, from one pass over its time column."""

from collections.abc import Iterable

import numpy as np

from mlet_tf.datasets.reading import read_chunk
from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.features.ingestion.shards import Task

_MOST_VALUES = 1 << 18


class TimeCounts:
    """Rows by time; if there are too many times, neighbours are counted together."""

    def __init__(self) -> None:
        """Starts with none."""
        self.error: str | None = None
        self.values = np.empty(0, np.int64)
        self.counts = np.empty(0, np.int64)
        self.step = 1

    def add(self, values: np.ndarray) -> "TimeCounts":
        """Counts the times of some rows."""
        return self._add(values, np.ones(len(values), np.int64))

    def merge(self, other: "TimeCounts") -> "TimeCounts":
        """Adds the counts of another."""
        self.step = max(self.step, other.step)
        return self._add(other.values, other.counts)

    def _add(self, values: np.ndarray, counts: np.ndarray) -> "TimeCounts":
        values = np.concatenate([self.values, values])
        counts = np.concatenate([self.counts, counts])
        while True:
            self.values, index = np.unique(values // self.step * self.step, return_inverse=True)
            if len(self.values) <= _MOST_VALUES:
                break
            self.step *= 2
        self.counts = np.bincount(index, weights=counts, minlength=len(self.values)).astype(np.int64)
        return self


def count_times(task: Task, schema: ClickLogSchema, column: str) -> TimeCounts:
    """Counts the times in the time column of a chunk; `error` says why it cannot be read."""
    counts = TimeCounts()
    try:
        for block in read_chunk(task.chunk, schema, [column]):
            counts.add(block.table[column].to_numpy())
    except InputError as error:
        counts.error = str(error)
    return counts


def choose_cut(chunks: Iterable[TimeCounts], eval_share: float) -> int:
    """Finds the time whose later rows, itself included, are the share nearest to `eval_share`.

    Args:
        chunks: Rows by time, of each chunk.
        eval_share: Share wanted.

    Returns:
        The first time of `eval`; some row is earlier.

    Raises:
        InputError: A chunk cannot be read, or all rows have one time.
    """
    counts = TimeCounts()
    for chunk in chunks:
        if chunk.error:
            raise InputError(chunk.error)
        counts.merge(chunk)
    if len(counts.values) < 2:
        seen = f"{counts.values[0]} in all rows" if len(counts.values) else "no rows"
        raise InputError(f"A split by time should have rows of different times. Received: {seen}")
    shares = 1 - np.cumsum(counts.counts)[:-1] / counts.counts.sum()
    return int(counts.values[1:][np.argmin(np.abs(shares - eval_share))])
