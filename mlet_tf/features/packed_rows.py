"""Preprocessed rows in a file of fixed-length records: what training and evaluation read.

A packed row is `label` float32, `dense_features` float32 `[D]`, `sparse_features` int32 `[F]`: words of four bytes.
"""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import tensorflow as tf

from mlet_tf.features.names import DENSE, LABEL, SPARSE

Batches: TypeAlias = tf.data.Dataset  # Of `(inputs, label)`.

_RANGES = 16  # Pieces of a packed file that are read in random order.
_GATHERED_BATCHES = 32


def pack_words(outputs: Mapping[str, tf.Tensor]) -> tf.Tensor:
    """Outputs of `preprocessing_fn`, label included, as packed rows int32 `[B, 1 + D + F]`."""
    label = tf.bitcast(outputs[LABEL], tf.int32)[:, tf.newaxis]
    return tf.concat(
        [label, tf.bitcast(outputs[DENSE], tf.int32), tf.cast(outputs[SPARSE], tf.int32)], axis=1
    )


@dataclasses.dataclass(frozen=True)
class PackedRows:
    """Preprocessed rows in a file of fixed-length records.

    Attributes:
        path: The file.
        rows: Number of rows N.
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

    @functools.cached_property
    def words(self) -> np.ndarray:
        """The file mapped into memory, int32 `[N, 1 + D + F]`."""
        return np.memmap(self.path, np.int32, "r", shape=(self.rows, 1 + self.dense + self.sparse))

    @property
    def label(self) -> np.ndarray:
        """Labels, float32 `[N]`, a view of the file."""
        return self.words[:, :1].view(np.float32)[:, 0]

    @property
    def dense_features(self) -> np.ndarray:
        """Dense features, float32 `[N, D]`, a view of the file."""
        return self.words[:, 1 : 1 + self.dense].view(np.float32)

    @property
    def sparse_features(self) -> np.ndarray:
        """Ids, int32 `[N, F]`, a view of the file."""
        return self.words[:, 1 + self.dense :]

    def id_counts(self, sizes: Sequence[int]) -> tuple[np.ndarray, ...]:
        """How often each id of each feature occurs, int64 `[V]` each; `sizes` are the V."""
        ids = self.sparse_features
        return tuple(np.bincount(ids[:, i], minlength=size).astype(np.int64) for i, size in enumerate(sizes))

    def blocks(self, size: int) -> Iterator[dict[str, np.ndarray]]:
        """Model inputs of all rows in file order, `size` rows at a time; the last block may be shorter."""
        for start in range(0, self.rows, size):
            rows = slice(start, start + size)
            yield {DENSE: self.dense_features[rows], SPARSE: self.sparse_features[rows]}

    def batches(self, batch_size: int) -> Batches:
        """All rows in file order; the last batch may be smaller."""
        records = tf.data.FixedLengthRecordDataset(self.path, self.record_bytes)
        return records.batch(batch_size).map(self._decode, num_parallel_calls=1).prefetch(2)

    def shuffled_batches(
        self,
        batch_size: int,
        seed: int,
        shuffle_rows: int,
        first_step: int = 0,
        part: tuple[int, int] = (0, 1),
    ) -> Batches:
        """One epoch in an order that depends on `seed` alone, in batches of one fixed size.

        The file is read in pieces, so that it may be much larger than memory.

        Args:
            batch_size: Rows per batch; rows that do not fill the last one are dropped in this epoch.
            seed: Order of the rows.
            shuffle_rows: Rows held in memory to draw from.
            first_step: Batches to skip at the start, to resume after an interruption.
            part: `(i, n)` yields part i of n equal parts of each batch.
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
        return records.map(self._decode, num_parallel_calls=1).prefetch(2)

    def permuted_batches(self, batch_size: int, seed: int | tuple[int, ...], first_step: int = 0) -> Batches:
        """One epoch in an evenly drawn order of all rows: for files that fit into memory.

        Args:
            batch_size: Rows per batch; rows that do not fill the last one are dropped in this epoch.
            seed: Order of the rows.
            first_step: Batches to skip at the start.
        """
        steps = self.rows // batch_size
        order = np.random.default_rng(seed).permutation(self.rows)[: steps * batch_size]
        order = order.reshape(steps, batch_size)[first_step:]

        def gather() -> Iterator[np.ndarray]:
            for start in range(0, len(order), _GATHERED_BATCHES):
                yield self.words[order[start : start + _GATHERED_BATCHES]]

        signature = tf.TensorSpec([None, batch_size, self.words.shape[1]], tf.int32)
        batches = tf.data.Dataset.from_generator(gather, output_signature=signature).unbatch()
        batches = batches.apply(tf.data.experimental.assert_cardinality(len(order)))
        return batches.map(self._split, num_parallel_calls=1).prefetch(4)

    def _decode(self, records: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        words = tf.io.decode_raw(records, tf.int32, fixed_length=None)
        return self._split(tf.ensure_shape(words, [None, 1 + self.dense + self.sparse]))

    def _split(self, words: tf.Tensor) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        floats = tf.bitcast(words[:, : 1 + self.dense], tf.float32)
        return {DENSE: floats[:, 1:], SPARSE: words[:, 1 + self.dense :]}, floats[:, 0]
