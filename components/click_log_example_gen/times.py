"""Where to cut a log by time, from one pass over its time column."""

from collections.abc import Iterable

import apache_beam as beam
import numpy as np

from components.click_log_example_gen.config import IngestConfig
from components.click_log_example_gen.shards import Task
from mlet_tf.datasets.reading import read_chunk
from mlet_tf.errors import InputError

_MOST_VALUES = 1 << 18


class TimeCounts:
    """How many rows have each time; of too many times, neighbours are counted together."""

    def __init__(self) -> None:
        """Starts with none; `error` says why a chunk cannot be read."""
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
        self.error = self.error or other.error
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


class CountTimes(beam.DoFn):
    """Counts the times in a chunk."""

    def __init__(self, config: IngestConfig) -> None:
        """Keeps the configuration."""
        self._config = config

    def process(self, task: Task) -> Iterable[TimeCounts]:
        """Reads the time column of one chunk."""
        schema, counts = self._config.schema, TimeCounts()
        try:
            for block in read_chunk(task.chunk, schema, [schema.time.name]):
                counts.add(block.table[schema.time.name].to_numpy())
        except InputError as error:
            counts.error = str(error)
        yield counts


class MergeTimes(beam.CombineFn):
    """Merges the counts of all chunks."""

    def create_accumulator(self) -> TimeCounts:
        """Starts with none."""
        return TimeCounts()

    def add_input(self, accumulator: TimeCounts, element: TimeCounts) -> TimeCounts:
        """Adds one chunk."""
        return accumulator.merge(element)

    def merge_accumulators(self, accumulators: Iterable[TimeCounts]) -> TimeCounts:
        """Adds up partial results."""
        merged = TimeCounts()
        for counts in accumulators:
            merged.merge(counts)
        return merged

    def extract_output(self, accumulator: TimeCounts) -> TimeCounts:
        """Returns the counts."""
        return accumulator


def choose_cut(counts: TimeCounts, eval_share: float) -> int:
    """Finds the time from which on the share of rows is nearest to `eval_share`.

    Args:
        counts: Rows by time.
        eval_share: Share wanted.

    Returns:
        The first time of `eval`; some row is earlier.

    Raises:
        InputError: A chunk cannot be read, or all rows have one time.
    """
    if counts.error:
        raise InputError(counts.error)
    if len(counts.values) < 2:
        seen = f"{counts.values[0]} in all rows" if len(counts.values) else "no rows"
        raise InputError(f"A split by time should have rows of different times. Received: {seen}")
    shares = 1 - np.cumsum(counts.counts)[:-1] / counts.counts.sum()
    return int(counts.values[1:][np.argmin(np.abs(shares - eval_share))])
