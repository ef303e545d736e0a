"""From tf.Example shards to training batches.

The trainer reads each row many times but preprocesses it once: `pack_examples` runs the transform graph
over batches and writes rows of fixed length, which tf.data then reads, shuffles and skips in C++.
A packed row is `label` float32, `dense_features` float32 `[D]`, `sparse_features` int32 `[F]`.
"""

import dataclasses
import json
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
import tensorflow_transform as tft

from components.click_log_example_gen import read_ingest_report
from components.common import example_dataset, example_files, join, writing
from mlet_tf.datasets import ClickLogSchema
from mlet_tf.datasets.vocabulary import vocabulary_file
from mlet_tf.errors import InputError
from mlet_tf.export import Transform, raw_feature_spec
from pipeline.preprocessing import DENSE, LABEL, SPARSE

_PACK_BATCH = 4096
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
    """Preprocesses all rows of tf.Example shards into one packed file.

    A folder that an earlier call finished is used as it is.

    Args:
        patterns: `<uri>/Split-<split>/*` of artifacts of ClickLogExampleGen.
        schema: Schema of the log.
        transform: The transform graph, see `components.common.TransformGraph`.
        folder: Where to write, on a local disk.

    Returns:
        The packed rows.

    Raises:
        InputError: If no file matches, the files hold no row, or not as many as ClickLogExampleGen wrote, or the
            folder cannot be written.
    """
    folder = Path(folder)
    if not folder.exists():
        # Writing goes through Python, reading through TensorFlow, whose errors are others.
        with writing(folder, OSError):
            _write_packed(patterns, schema, transform, folder)
    return PackedRows(path=str(folder / "rows.bin"), **json.loads((folder / "meta.json").read_text()))


def _write_packed(
    patterns: Sequence[str],
    schema: ClickLogSchema,
    transform: Transform,
    folder: Path,
) -> None:
    spec = raw_feature_spec(schema, with_label=True)

    def preprocess(serialized: tf.Tensor) -> tuple[tf.Tensor, int, int]:
        rows = transform(tf.io.parse_example(serialized, spec))
        label = tf.bitcast(rows[LABEL], tf.int32)[:, tf.newaxis]
        dense = tf.bitcast(rows[DENSE], tf.int32)
        sparse = tf.cast(rows[SPARSE], tf.int32)
        return tf.concat([label, dense, sparse], axis=1), tf.shape(dense)[1], tf.shape(sparse)[1]

    batches = example_dataset(example_files(patterns), _PACK_BATCH).map(
        preprocess, num_parallel_calls=tf.data.AUTOTUNE
    )
    aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    aside.mkdir(parents=True)
    rows = dense = sparse = 0
    try:
        with (aside / "rows.bin").open("wb") as file:
            for words, dense_width, sparse_width in batches.prefetch(2).as_numpy_iterator():
                file.write(words)  # `tofile` is silent where the last few bytes do not fit on the disk.
                rows, dense, sparse = rows + len(words), int(dense_width), int(sparse_width)
        if not rows:
            raise InputError(f"the examples in {', '.join(patterns)} hold no row")
        written = sum(map(_rows_written, patterns))
        if rows != written:
            raise InputError(f"{', '.join(patterns)}: {written} rows were written, {rows} can be read")
        (aside / "meta.json").write_text(json.dumps({"rows": rows, "dense": dense, "sparse": sparse}))
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _rows_written(pattern: str) -> int:
    """Rows that ClickLogExampleGen says are in the files of one split."""
    uri, split, _ = pattern.rsplit("/", 2)
    return read_ingest_report(uri)["rows"][split.removeprefix("Split-")]
