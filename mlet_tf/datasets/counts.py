"""Counts of the values of all categories, exact and bounded in memory.

Whoever reads the rows counts them a block at a time (`ValueCounter`) and writes what has come together as a
run: for each feature the values found, sorted, and how often. A run is small, so counting needs little memory
however many distinct values there are, and any number of workers write runs side by side. `merge_counts`
adds up the runs of a feature a range of values at a time, in the way of an external merge sort.
"""

from __future__ import annotations

import bisect
import dataclasses
import json
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa

from mlet_tf.datasets.files import open_binary
from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.datasets.times import derive

# Rows a counter gathers before they should go out as a run.
RUN_ROWS = 1 << 18

_RUN = pa.schema([("value", pa.binary()), ("count", pa.int64())])
_META = b"mlet_tf"


@dataclasses.dataclass(frozen=True)
class Run:
    """A file of counts.

    Args:
        path: The file.
        rows: Rows that were counted.
        distinct: Distinct values by feature, in the order of `ClickLogSchema.sparse_features`.
    """

    path: str
    rows: int
    distinct: tuple[int, ...]


class ValueCounter:
    """Counts the values of a log's sparse features.

    Args:
        schema: Schema of the log.
    """

    def __init__(self, schema: ClickLogSchema) -> None:
        """See the class."""
        self._schema = schema
        self._clear()

    def add(self, table: pa.Table, keep: np.ndarray) -> None:
        """Counts some rows of a table.

        Args:
            table: Typed columns, as of `read_chunk` or of `encoding.dictionary_columns`.
            keep: Which of its rows to count, bool.
        """
        self.rows += int(keep.sum())
        columns = [table[name] for name in self._schema.categoricals]
        time = self._schema.time
        if time is not None:
            numbers = np.asarray(table[time.name].cast(pa.int64()))
            parts = derive(numbers, time)
            columns += [pa.array(parts[name]).cast(pa.string()).cast(pa.binary()) for name in time.derive]
        for counted, column in zip(self._counted, columns, strict=True):
            counted.append(_count(column, keep))

    def take_run(self) -> bytes:
        """What was counted since the last run, as the content of a file."""
        tables = [_sum_counts(counted).sort_by("value") for counted in self._counted]
        meta = {"rows": self.rows, "distinct": [table.num_rows for table in tables]}
        sink = pa.BufferOutputStream()
        schema = _RUN.with_metadata({_META: json.dumps(meta)})
        options = pa.ipc.IpcWriteOptions(compression="lz4")
        with pa.ipc.new_file(sink, schema, options=options) as writer:
            for table in tables:
                columns = [_one_array(table[name]) for name in _RUN.names]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
        self._clear()
        return sink.getvalue().to_pybytes()

    def _clear(self) -> None:
        self.rows = 0
        self._counted: list[list[pa.Table]] = [[] for _ in self._schema.sparse_features]


def open_run(path: str) -> Run:
    """Looks at a file of counts."""
    with open_binary(path) as file:
        meta = json.loads(pa.ipc.open_file(file).schema.metadata[_META])
    return Run(path, meta["rows"], tuple(meta["distinct"]))


def merge_counts(runs: Sequence[Run], feature: int, max_values: int) -> Iterator[pa.Table]:
    """Adds up the counts of one feature over all runs.

    Args:
        runs: The runs.
        feature: Its number in the order of `ClickLogSchema.sparse_features`.
        max_values: About how many values of runs to hold in memory at a time.

    Yields:
        Tables of `value` (binary) and `count` (int64), each of a range of values that no other one has.
    """
    runs = [run for run in runs if run.distinct[feature]]
    bounds = [None]
    if sum(run.distinct[feature] for run in runs) > max_values:
        bounds += _split(runs, feature, max_values)
    for low, high in zip(bounds, [*bounds[1:], None], strict=True):
        yield _sum_counts([_read_range(run, feature, low, high) for run in runs])


def _split(runs: Sequence[Run], feature: int, max_values: int) -> list[bytes]:
    """Values that divide the runs into ranges of about `max_values` values, from a sample of each run."""
    step = max(1, max_values // (4 * len(runs)))
    sample: list[bytes] = []
    for run in runs:
        values = _read(run, feature)["value"]
        sample += values.take(pa.array(np.arange(step - 1, len(values), step))).to_pylist()
    return sorted(set(sorted(sample)[:: max(1, max_values // step)][1:]))


def _read_range(run: Run, feature: int, low: bytes | None, high: bytes | None) -> pa.Table:
    """The counts of a run from `low` on and below `high`."""
    batch = _read(run, feature)
    values = _Values(batch["value"])
    start = 0 if low is None else bisect.bisect_left(values, low)
    end = len(values) if high is None else bisect.bisect_left(values, high)
    # Taken, not sliced: a slice would hold the whole run in memory.
    return pa.Table.from_batches([batch.take(pa.array(np.arange(start, end)))])


def _read(run: Run, feature: int) -> pa.RecordBatch:
    with open_binary(run.path) as file:
        return pa.ipc.open_file(file).get_batch(feature)


class _Values:
    """An Arrow array as a sequence of Python's objects, for `bisect`."""

    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> bytes:
        return self._array[index].as_py()


def _count(column: pa.ChunkedArray | pa.Array, keep: np.ndarray) -> pa.Table:
    column = _one_array(column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    index = np.asarray(column.indices.fill_null(len(column.dictionary)))
    counts = np.bincount(index[keep], minlength=len(column.dictionary))[: len(column.dictionary)]
    found = np.flatnonzero(counts)
    return pa.table([column.dictionary.take(pa.array(found)), pa.array(counts[found])], schema=_RUN)


def _sum_counts(tables: Sequence[pa.Table]) -> pa.Table:
    if len(tables) < 2:
        return tables[0] if tables else _RUN.empty_table()
    summed = pa.concat_tables(tables).group_by("value").aggregate([("count", "sum")])
    return pa.table([summed["value"], summed["count_sum"]], schema=_RUN)


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
