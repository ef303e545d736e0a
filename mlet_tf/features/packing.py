"""From tf.Example shards to training batches.

The trainer reads each row many times but preprocesses it once: `pack_examples` runs the transform graph
over several shards at a time and writes rows of fixed length, which tf.data then reads, shuffles and skips
in C++.
A packed row is `label` float32, `dense_features` float32 `[D]`, `sparse_features` int32 `[F]`.
"""

import collections
import dataclasses
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from mlet_tf.components.click_log_example_gen import read_ingest_report
from mlet_tf.components.common import example_files, join, writing
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.errors import InputError
from mlet_tf.export import Transform, raw_feature_spec
from mlet_tf.features.preprocessing import DENSE, LABEL, SPARSE
from mlet_tf.features.records import example_batches
from mlet_tf.features.vocabulary import vocabulary_file
from mlet_tf.progress import ProgressLine

# Each thread holds a batch and a packed shard, some 100 MB.
_MAX_THREADS = 16
_PACK_BATCH = 16_384
_ROWS, _PACKED = "rows.bin", "packed.json"
_RANGES = 16  # Pieces of a packed file that are read in random order.


def vocabulary_sizes(transform_output: tft.TFTransformOutput, schema: ClickLogSchema) -> dict[str, int]:
    """Number of values in the vocabulary of each sparse feature."""
    folder = join(transform_output.transform_savedmodel_dir, "assets")
    sizes = {}
    for name in schema.sparse_features:
        with tf.io.gfile.GFile(join(folder, vocabulary_file(name)), "rb") as file:
            sizes[name] = sum(1 for _ in file)
    return sizes


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Preprocessed rows in a file of fixed-length records.

    Attributes:
        path: The file.
        rows: Number of rows.
        dense: D, width of `dense_features`.
        sparse: F, width of `sparse_features`.
    """

    path: str
    rows: int
    dense: int
    sparse: int

    @property
    def record_bytes(self) -> int:
        """Bytes of a row."""
        return 4 * (1 + self.dense + self.sparse)

    def batches(self, batch_size: int) -> tf.data.Dataset:
        """All rows in file order, the last batch as short as it is: `(inputs, label)`."""
        records = tf.data.FixedLengthRecordDataset(self.path, self.record_bytes)
        return self._decode(records.batch(batch_size)).prefetch(2)

    def shuffled_batches(
        self,
        batch_size: int,
        seed: int,
        shuffle_rows: int,
        first_step: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> tf.data.Dataset:
        """One epoch in an order that depends on `seed` alone, in batches of one fixed size.

        Args:
            batch_size: Rows a batch; the rest of the last one is left to other epochs.
            seed: Order of the rows.
            shuffle_rows: Rows held in memory to draw from.
            first_step: Batches to leave out at the start, to go on after an interruption.
            part: Which of how many equal parts of each batch to give.
        """
        starts = np.linspace(0, self.rows, min(_RANGES, self.rows) + 1).astype(np.int64)
        order = np.random.default_rng(seed).permutation(len(starts) - 1)
        ranges = np.stack([starts[:-1][order], self.rows - starts[1:][order]], axis=1) * self.record_bytes

        def read(piece: tf.Tensor) -> tf.data.Dataset:
            return tf.data.FixedLengthRecordDataset(
                self.path, self.record_bytes, header_bytes=piece[0], footer_bytes=piece[1]
            )

        records = tf.data.Dataset.from_tensor_slices(ranges).interleave(
            read, cycle_length=len(ranges), block_length=64
        )
        records = records.shuffle(min(shuffle_rows, self.rows), seed=seed, reshuffle_each_iteration=False)
        records = records.skip(first_step * batch_size).batch(batch_size, drop_remainder=True)
        if part != (0, 1):
            which, rows = part[0], batch_size // part[1]
            records = records.map(
                lambda batch: batch[which * rows : (which + 1) * rows], num_parallel_calls=1
            )
        return self._decode(records).prefetch(2)

    def _decode(self, batches: tf.data.Dataset) -> tf.data.Dataset:
        def decode(records: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
            words = tf.io.decode_raw(records, tf.int32, fixed_length=None)
            words = tf.ensure_shape(words, [None, 1 + self.dense + self.sparse])
            floats = tf.bitcast(words[:, : 1 + self.dense], tf.float32)
            return {DENSE: floats[:, 1:], SPARSE: words[:, 1 + self.dense :]}, floats[:, 0]

        return batches.map(decode, num_parallel_calls=1)


def pack_examples(
    patterns: Sequence[str],
    schema: ClickLogSchema,
    transform: Transform,
    folder: str | Path,
) -> PackedRows:
    """Preprocesses all rows of tf.Example shards into one packed file, in the order of the sorted shards.

    A call that was killed is gone on with after the last shard that it had packed, and a folder that an earlier call
    finished is used as it is, unless the examples are others by now.

    Args:
        patterns: `<uri>/Split-<split>/*` of artifacts of ClickLogExampleGen.
        schema: Schema of the log.
        transform: The transform graph, see `mlet_tf.components.common.TransformGraph`.
        folder: Where to write, on a local disk; a folder for each transform graph.

    Returns:
        The packed rows.

    Raises:
        InputError: If no file matches, the files hold no row, or not as many as ClickLogExampleGen wrote, a file is
            damaged, or the folder cannot be written.
    """
    folder = Path(folder)
    files = example_files(patterns)
    reports = [_split_report(pattern) for pattern in patterns]
    written = sum(rows for rows, _ in reports)
    examples = hashlib.sha256(json.dumps([files, reports], sort_keys=True).encode()).hexdigest()
    with writing(folder, OSError):
        folder.mkdir(parents=True, exist_ok=True)
        packed = _Packed.read(folder, examples)
        if packed.files < len(files):
            _pack_rest(files, written, schema, transform, folder, packed)
    if not packed.rows or packed.rows != written:
        shutil.rmtree(folder)
        raise InputError(f"{', '.join(patterns)}: {written} rows were written, {packed.rows} can be read")
    sparse = len(schema.sparse_features)
    return PackedRows(str(folder / _ROWS), packed.rows, packed.words - 1 - sparse, sparse)


@dataclasses.dataclass
class _Packed:
    """How far a folder is packed.

    Attributes:
        examples: Digest of what is packed.
        files: Shards that are packed.
        rows: Rows in them.
        words: Words of 4 bytes in a row.
    """

    examples: str
    files: int = 0
    rows: int = 0
    words: int = 0

    @classmethod
    def read(cls, folder: Path, examples: str) -> "_Packed":
        """What the folder says, or nothing where it is of other examples."""
        if not (folder / _PACKED).exists():
            return cls(examples)
        packed = cls(**json.loads((folder / _PACKED).read_text()))
        if packed.examples == examples:
            return packed
        (folder / _PACKED).unlink()  # What it says will not be true once the first rows are written.
        return cls(examples)

    def write(self, folder: Path) -> None:
        """Says it in the folder."""
        aside = folder / f".{_PACKED}.{os.getpid()}"
        aside.write_text(json.dumps(dataclasses.asdict(self)))
        aside.replace(folder / _PACKED)


def _pack_rest(
    files: list[str], total: int, schema: ClickLogSchema, transform: Transform, folder: Path, packed: _Packed
) -> None:
    """Packs the files that are left, and keeps `packed` and the folder up to date, a file at a time."""
    preprocess = _preprocessor(schema, transform)

    def pack(path: str) -> list[np.ndarray]:
        return [preprocess(tf.constant(batch)).numpy() for batch in example_batches([path], _PACK_BATCH)]

    line, started, before = ProgressLine(), time.monotonic(), packed.rows

    def text() -> str:
        rate = (packed.rows - before) / (time.monotonic() - started)
        return f"packing {folder.name}: {packed.rows:,} of {total:,} rows, {rate:,.0f} rows/s"

    with (folder / _ROWS).open("r+b" if packed.files else "wb") as file:
        # What a killed call wrote after this is written again.
        file.seek(4 * packed.words * packed.rows)
        for batches in _in_order(pack, files[packed.files :]):
            for words in batches:
                file.write(words)  # `tofile` is silent where the last few bytes do not fit on the disk.
                packed.rows, packed.words = packed.rows + len(words), words.shape[1]
            file.flush()
            os.fsync(file.fileno())
            packed.files += 1
            packed.write(folder)
            line.show(packed.rows, total, text)


def _preprocessor(schema: ClickLogSchema, transform: Transform) -> Callable[[tf.Tensor], tf.Tensor]:
    """Serialised tf.Examples `[B]` to packed rows int32 `[B, 1 + D + F]`."""
    spec = raw_feature_spec(schema, with_label=True)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string)], autograph=False)
    def preprocess(serialized: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU"):  # A GPU would get texts to look up, and the few floats.
            rows = transform(tf.io.parse_example(serialized, spec))
            label = tf.bitcast(rows[LABEL], tf.int32)[:, tf.newaxis]
            return tf.concat(
                [label, tf.bitcast(rows[DENSE], tf.int32), tf.cast(rows[SPARSE], tf.int32)], axis=1
            )

    return preprocess.get_concrete_function()


def _in_order(function: Callable[[str], Any], items: Sequence[str]) -> Iterator[Any]:
    """What a function gives for each item, in their order; threads work on the next few items meanwhile."""
    threads = min(len(os.sched_getaffinity(0)), _MAX_THREADS)
    waiting: collections.deque[futures.Future] = collections.deque()
    with futures.ThreadPoolExecutor(threads) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _split_report(pattern: str) -> tuple[int, dict[str, Any]]:
    """Rows that ClickLogExampleGen says are in the files of one split, and all that it says."""
    uri, split, _ = pattern.rsplit("/", 2)
    report = read_ingest_report(uri)
    return report["rows"][split.removeprefix("Split-")], report
