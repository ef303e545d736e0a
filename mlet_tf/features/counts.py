"""Counts of the values of all categories, exact and bounded in memory.

Whoever reads the rows counts them a block at a time (`ValueCounter`) and writes what has come together as a
run: for each feature the values found, sorted, and how often, in blocks of limited size. A run is small, so
counting needs little memory however many distinct values there are, and any number of workers write runs side
by side. `merge_counts` adds up the runs of a feature in the way of an external merge sort.
"""

from __future__ import annotations

import bisect
import dataclasses
import heapq
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mlet_tf.datasets.schema import ClickLogSchema
from mlet_tf.datasets.times import derive
from mlet_tf.storage import create_binary, open_binary

# What a counter gathers before it should go out as a run: rows, and bytes of their counted values.
_RUN_ROWS = 1 << 18
_RUN_BYTES = 1 << 27

# A block has at most so many values, and so many bytes of them; a longer value has a block of its own.
_BLOCK_VALUES = 1 << 10
_BLOCK_BYTES = 1 << 20

# What is added up at a time at most: so many files, and so many bytes of their values.
_MAX_FILES = 64
_MAX_BYTES = 1 << 28

_BLOCK = pa.schema([("value", pa.binary()), ("count", pa.int64())])
_META = b"mlet_tf"


@dataclasses.dataclass(frozen=True)
class Run:
    """A file of counts.

    Args:
        path: The file.
        rows: Rows that were counted.
        blocks: Blocks by feature, in the order of `ClickLogSchema.sparse_features`.
    """

    path: str
    rows: int
    blocks: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class _Sorted:
    """The blocks `[start, stop)` of a file: values of one feature, rising, each once."""

    path: str
    start: int
    stop: int


class ValueCounter:
    """Counts the values of a log's sparse features.

    Args:
        schema: Schema of the log.
    """

    def __init__(self, schema: ClickLogSchema) -> None:
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
            self._bytes += counted[-1].nbytes

    @property
    def full(self) -> bool:
        """Whether enough was counted for a run."""
        return self.rows >= _RUN_ROWS or self._bytes >= _RUN_BYTES

    def take_run(self, path: str) -> Run:
        """Writes what was counted since the last run.

        Args:
            path: The file to be written.
        """
        blocks: list[list[pa.RecordBatch]] = []
        for counted in self._counted:
            blocks.append(list(_blocks(_sum_counts(counted).sort_by("value"))))
            counted.clear()
        run = Run(path, self.rows, tuple(map(len, blocks)))
        meta = {"rows": run.rows, "blocks": run.blocks}
        _write(path, itertools.chain.from_iterable(blocks), {_META: json.dumps(meta)})
        self._clear()
        return run

    def _clear(self) -> None:
        self.rows = self._bytes = 0
        self._counted: list[list[pa.RecordBatch]] = [[] for _ in self._schema.sparse_features]


def open_run(path: str) -> Run:
    """Looks at a file of counts."""
    with open_binary(path) as file:
        meta = json.loads(pa.ipc.open_file(file).schema.metadata[_META])
    return Run(path, meta["rows"], tuple(meta["blocks"]))


def merge_counts(runs: Sequence[Run], feature: int, max_values: int, folder: str) -> Iterator[pa.Table]:
    """Adds up the counts of one feature over all runs.

    Args:
        runs: The runs.
        feature: Its number in the order of `ClickLogSchema.sparse_features`.
        max_values: About how many values of runs to hold in memory at a time, fewer where they are long; not
            less than a few blocks.
        folder: Where sums of a part of the runs are put, if there are too many runs to read side by side.

    Yields:
        Tables of `value` (binary) and `count` (int64), each of a range of values that no other one has.
    """
    firsts = [sum(run.blocks[:feature]) for run in runs]
    files = [
        _Sorted(run.path, first, first + run.blocks[feature])
        for run, first in zip(runs, firsts, strict=True)
        if run.blocks[feature]
    ]
    # A block of each file waits in memory; these are to be half of the values at most.
    at_once = min(_MAX_FILES, max(2, max_values // (2 * _BLOCK_VALUES)))
    names = (f"{folder}/{number}.arrow" for number in itertools.count())
    while len(files) > at_once:
        groups = [files[first : first + at_once] for first in range(0, len(files), at_once)]
        files = [_merge(group, max_values, next(names)) for group in groups]
    yield from _add_up(files, max_values)


def _merge(files: Sequence[_Sorted], max_values: int, path: str) -> _Sorted:
    """Adds up files into one."""
    sums = (_blocks(table.sort_by("value")) for table in _add_up(files, max_values))
    return _Sorted(path, 0, _write(path, itertools.chain.from_iterable(sums)))


def _add_up(files: Sequence[_Sorted], max_values: int) -> Iterator[pa.Table]:
    """Adds up files that are read side by side, each once.

    The next block always comes from the file that has been read up to the lowest value. All values up to the
    lowest of these ends are complete, and of no file more than one block has to wait.
    """
    unread = [_read(file) for file in files]
    waiting: dict[int, pa.RecordBatch] = {number: next(blocks) for number, blocks in enumerate(unread)}
    ends = [(_last(block), number) for number, block in waiting.items()]
    heapq.heapify(ends)
    while True:
        parts: list[pa.RecordBatch] = []
        values, size = 0, 0
        while ends and (not parts or (values < max_values // 2 and size < _MAX_BYTES // 2)):
            number = ends[0][1]
            block, following = waiting.pop(number), next(unread[number], None)
            parts.append(block)
            values, size = values + block.num_rows, size + block.nbytes
            if following is None:
                heapq.heappop(ends)
            else:
                waiting[number] = following
                heapq.heapreplace(ends, (_last(following), number))
        for _, number in ends:
            block = waiting[number]
            complete = bisect.bisect_right(_Values(block["value"]), ends[0][0])
            parts.append(block.slice(0, complete))
            waiting[number] = block.slice(complete)
        yield _sum_counts(parts)
        if not ends:
            return


def _read(file: _Sorted) -> Iterator[pa.RecordBatch]:
    with open_binary(file.path) as opened:
        reader = pa.ipc.open_file(opened)
        for number in range(file.start, file.stop):
            yield reader.get_batch(number)


def _write(path: str, blocks: Iterable[pa.RecordBatch], metadata: dict[bytes, str] | None = None) -> int:
    """Writes blocks; returns how many."""
    written = 0
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with (
        create_binary(path) as file,
        pa.ipc.new_file(file, _BLOCK.with_metadata(metadata), options=options) as writer,
    ):
        for block in blocks:
            writer.write_batch(block)
            written += 1
    return written


def _blocks(table: pa.Table) -> Iterator[pa.RecordBatch]:
    """Divides a table into blocks."""
    whole = pa.RecordBatch.from_arrays([_one_array(table[name]) for name in _BLOCK.names], schema=_BLOCK)
    sizes = np.cumsum(pc.binary_length(whole["value"]).to_numpy(), dtype=np.int64)
    start = 0
    while start < len(sizes):
        before = sizes[start - 1] if start else 0
        fit = int(np.searchsorted(sizes, before + _BLOCK_BYTES, side="right"))
        stop = min(start + _BLOCK_VALUES, max(start + 1, fit))
        yield whole.slice(start, stop - start)
        start = stop


def _last(block: pa.RecordBatch) -> bytes:
    return block["value"][-1].as_py()


class _Values:
    """An Arrow array as a sequence of Python's objects, for `bisect`."""

    def __init__(self, array: pa.Array) -> None:
        self._array = array

    def __len__(self) -> int:
        return len(self._array)

    def __getitem__(self, index: int) -> bytes:
        return self._array[index].as_py()


def _count(column: pa.ChunkedArray | pa.Array, keep: np.ndarray) -> pa.RecordBatch:
    column = _one_array(column)
    if not pa.types.is_dictionary(column.type):
        column = column.dictionary_encode()
    index = np.asarray(column.indices.fill_null(len(column.dictionary)))
    counts = np.bincount(index[keep], minlength=len(column.dictionary))[: len(column.dictionary)]
    found = np.flatnonzero(counts)
    values = column.dictionary.take(pa.array(found))
    return pa.RecordBatch.from_arrays([values, pa.array(counts[found])], schema=_BLOCK)


def _sum_counts(parts: Sequence[pa.RecordBatch]) -> pa.Table:
    table = pa.Table.from_batches(parts, _BLOCK)
    if len(parts) < 2:
        return table
    summed = table.group_by("value").aggregate([("count", "sum")])
    return pa.table([summed["value"], summed["count_sum"]], schema=_BLOCK)


def _one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if not isinstance(column, pa.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
