"""One chunk of a raw log into shards of serialised examples."""

import dataclasses
import itertools
import json
import uuid
import zlib
from concurrent import futures
from typing import Any

import numpy as np
import pyarrow as pa
import tensorflow as tf
from isal import isal_zlib

from mlet_tf.datasets.encoding import dictionary_columns, encode_examples, list_records
from mlet_tf.datasets.files import plain_name
from mlet_tf.datasets.parts import Parts
from mlet_tf.datasets.reading import Block, Chunk, read_chunk
from mlet_tf.errors import InputError
from mlet_tf.features.counts import ValueCounter
from mlet_tf.features.ingestion.config import EVAL, TRAIN, IngestConfig
from mlet_tf.features.records import GZIP, count_records, frame

# Size of a shard before compression; shards must not be huge, because a trainer shuffles across them.
_SHARD_BYTES = 128 << 20
_REJECTS_SHOWN = 10
# ISA-L's gzip at its level 1: files as small as zlib's at level 1 in a quarter of the time.
_COMPRESSION_LEVEL = 1


@dataclasses.dataclass(frozen=True)
class Task:
    """A chunk to be read.

    Args:
        index: Its number.
        chunk: The chunk.
        split: The split of all its rows, if it is given.
    """

    index: int
    chunk: Chunk
    split: str | None

    def __str__(self) -> str:
        """For messages."""
        return f"chunk {self.index} of {self.chunk.path}"


@dataclasses.dataclass
class Result:
    """What a chunk was turned into.

    Args:
        lines: Lines (or rows of Parquet) in it.
        rows: Rows read, the rejected ones included.
        rejected: Rejected rows.
        first_rejects: The first of them.
        rejects_file: The file with all of them, if there are any.
        shards: Files written, as (split, path, rows found on reading it again).
        counts: Files with the values of `train`, counted, see `mlet_tf.features.counts`.
        encoded: Rows that were encoded, by split.
        unlisted: Rows by value of the column that splits the log, for values that no part lists.
        error: Why the chunk cannot be read or written.
    """

    lines: int = 0
    rows: int = 0
    rejected: int = 0
    first_rejects: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    rejects_file: str | None = None
    shards: list[tuple[str, str, int]] = dataclasses.field(default_factory=list)
    counts: list[str] = dataclasses.field(default_factory=list)
    encoded: dict[str, int] = dataclasses.field(default_factory=lambda: {TRAIN: 0, EVAL: 0})
    unlisted: dict[str, int] = dataclasses.field(default_factory=dict)
    error: str | None = None


def write_chunk(task: Task, config: IngestConfig, cut: int | None, folder: str) -> Result:
    """Reads a chunk and writes its examples and rejects into `folder`, under unique names.

    Args:
        task: The chunk.
        config: How to read and to split.
        cut: For a split by time: the first value of the time column that belongs to `eval`.
        folder: Where to write.

    Returns:
        What was read and written; `error` is set if the user has to fix something.
    """
    result = Result()
    name = f"{folder}/{task.index:05d}-{uuid.uuid4().hex}"
    writers = {split: _ShardWriter(f"{name}-{split}") for split in (TRAIN, EVAL)}
    rejects = _RejectWriter(f"{name}-rejects.jsonl")
    counts = _CountWriter(config, f"{name}-counts")
    parts = Parts({split: config.parts.get(split, ()) for split in (TRAIN, EVAL)})
    columns = [config.schema.label, *config.schema.raw_features]
    try:
        # Compression is half the work and releases the GIL: it runs while the next block is read.
        with futures.ThreadPoolExecutor(1) as thread:
            written = thread.submit(lambda: None)
            for block in read_chunk(task.chunk, config.schema_to_read):
                table = dictionary_columns(block.table.select(columns))
                records = list_records(encode_examples(table))
                in_eval = _in_eval(block, task, config, cut, parts)
                counts.add(table, ~in_eval)
                records_of = {
                    TRAIN: list(itertools.compress(records, ~in_eval)),
                    EVAL: list(itertools.compress(records, in_eval)),
                }
                written.result()
                written = thread.submit(_write_records, writers, records_of)
                for split, part in records_of.items():
                    result.encoded[split] += len(part)
                rejects.write(block)
                result.lines += block.lines
                result.rows += block.rows_read
            written.result()
        for split, writer in writers.items():
            result.shards += [(split, path, count_records(path)) for path in writer.close()]
        result.rejects_file = rejects.close()
        result.counts, result.unlisted = counts.close(), parts.unlisted
    except InputError as error:
        result.error = str(error)
    except (OSError, tf.errors.OpError) as error:
        result.error = f"Examples cannot be written to {folder}: {getattr(error, 'message', error)}"
    result.rejected, result.first_rejects = rejects.count, rejects.first
    return result


def _write_records(writers: dict[str, "_ShardWriter"], records_of: dict[str, list[bytes]]) -> None:
    for split, records in records_of.items():
        writers[split].write(records)


def _in_eval(block: Block, task: Task, config: IngestConfig, cut: int | None, parts: Parts) -> np.ndarray:
    """Which of a block's good rows belong to `eval`."""
    if task.split is not None:
        return np.full(block.table.num_rows, task.split == EVAL)
    if config.method == "time" and config.schema.time is not None:
        return block.table[config.schema.time.name].to_numpy() >= cut
    if config.column is not None:
        return parts.of_rows(block.table[config.column]) == (TRAIN, EVAL).index(EVAL)
    return _uniform(block.positions, task.chunk.path, config.seed) < config.eval_share


def _uniform(positions: np.ndarray, path: str, seed: int) -> np.ndarray:
    """A number in [0, 1) for each row, from the `plain_name` of the file, the row's place in it and the seed."""
    name = plain_name(path)
    with np.errstate(over="ignore"):
        key = _mix(np.uint64(zlib.crc32(name.encode())) + (np.uint64(seed % (1 << 32)) << np.uint64(32)))
        return (_mix(positions.astype(np.uint64) ^ key) >> np.uint64(11)) * 2.0**-53


def _mix(x: Any) -> Any:
    """The finaliser of splitmix64: all bits of the result depend on all bits of the argument."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


class _ShardWriter:
    """Writes records into one file after another, each of limited size."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._paths: list[str] = []
        self._file: Any = None
        self._deflate: Any = None
        self._bytes = 0

    def write(self, records: list[bytes]) -> None:
        """Writes records, opening the next file where the last one is full."""
        if not records:
            return
        if self._file is None or self._bytes > _SHARD_BYTES:
            self._close_file()
            self._paths.append(f"{self._prefix}-{len(self._paths):03d}.gz")
            self._file = tf.io.gfile.GFile(self._paths[-1], "wb")
            self._deflate = isal_zlib.compressobj(level=_COMPRESSION_LEVEL, wbits=GZIP)
            self._bytes = 0
        framed = frame(records)
        self._bytes += len(framed)
        self._file.write(self._deflate.compress(framed))

    def close(self) -> list[str]:
        """Finishes the last file; returns all."""
        self._close_file()
        return self._paths

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.write(self._deflate.flush())
            self._file.close()


class _CountWriter:
    """Counts the values of `train` and writes a file whenever enough were counted."""

    def __init__(self, config: IngestConfig, prefix: str) -> None:
        self._counter = ValueCounter(config.schema)
        self._prefix = prefix
        self._paths: list[str] = []

    def add(self, table: pa.Table, keep: np.ndarray) -> None:
        """Counts the rows of a block that `keep` marks."""
        self._counter.add(table, keep)
        if self._counter.full:
            self._write()

    def close(self) -> list[str]:
        """Finishes; returns all files."""
        if self._counter.rows:
            self._write()
        return self._paths

    def _write(self) -> None:
        self._paths.append(f"{self._prefix}-{len(self._paths):03d}.arrow")
        self._counter.take_run(self._paths[-1])


class _RejectWriter:
    """Writes rejected rows as lines of JSON; their line numbers count from the chunk's start."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: Any = None
        self.count = 0
        self.first: list[dict[str, Any]] = []

    def write(self, block: Block) -> None:
        """Writes the rejects of a block."""
        for reject in block.rejects:
            if self._file is None:
                self._file = tf.io.gfile.GFile(self._path, "w")
            row = dataclasses.asdict(reject)
            self._file.write(json.dumps(row) + "\n")
            self.count += 1
            if len(self.first) < _REJECTS_SHOWN:
                self.first.append(row)

    def close(self) -> str | None:
        """Finishes the file; returns its path if there is one."""
        if self._file is None:
            return None
        self._file.close()
        return self._path
