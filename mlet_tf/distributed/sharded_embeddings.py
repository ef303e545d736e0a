"""Embeddings whose tables are divided by rows over the processes of a training."""

import dataclasses
import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlet_tf.distributed.workers import Workers
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.layers.factorization import BLOCK_ROWS, write_rows
from mlet_tf.layers.ids import as_ids, guard_ids
from mlet_tf.layers.initializers import RowScaledUniform
from mlet_tf.layers.roles import mark_tables, stacked_tables
from mlet_tf.types import Shape, Tensor


class RowShardedEmbeddings(keras.layers.Layer):
    """An `EmbeddingCollection` of which each of N processes holds every N-th row.

    Row r of a feature is in process `r % N`, as row `r // N` of its table there, so that frequent ids, the first
    ones, are spread evenly. Each process looks up and projects the rows it holds for the batches of all, and only the
    d-wide results are sent: with B rows per process, a process receives `N * B * F` ids and `N * B * F * d` floats
    per step, and the same number of floats in the backward pass. Tables and optimizer state take 1/N of the memory in
    each process; projections are replicated.

    It starts from the values of an `EmbeddingCollection` made under the same seed, and trains like one on the batches
    of all processes together. Each process draws all initial values and keeps its own.

    Args:
        features: The features, as for `EmbeddingCollection`, without combiners.
        output_dim: Embedding dimension `d`.
        hidden_dim: As in `EmbeddingCollection`.
        direct_threshold: As in `EmbeddingCollection`.
        workers: The processes.
        initialization: As in `EmbeddingCollection`.
        initial_scale: As in `EmbeddingCollection`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Integer ids `[B, F]`; B must be the same in all processes.

    Output shape:
        `[B, F, output_dim]`.

    Raises:
        ValueError: A feature has a combiner.
        tf.errors.InvalidArgumentError: An id is out of range.

    Example:
        >>> layer = RowShardedEmbeddings(features, output_dim=8, hidden_dim=32, workers=Workers.join())
    """

    built: bool  # Keras sets it.

    def __init__(
        self,
        features: Sequence[EmbeddingFeature],
        output_dim: int,
        hidden_dim: int | Sequence[int] | None = None,
        direct_threshold: int | None = None,
        *,
        workers: Workers,
        initialization: str = "fixed_variance",
        initial_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.autocast = False  # Ids that arrive as floats would lose digits.
        if bags := [feature.name for feature in features if feature.combiner]:
            raise ValueError(f"`features` of divided tables should have no combiner. Received: {bags}")
        self.features = tuple(features)
        self._workers = workers
        self._rows = np.asarray([feature.input_dim for feature in features], "int64")
        # One more row, for the ids of other processes.
        self._local_rows = -(-self._rows // workers.size) + 1
        # Without weights: it knows which features are direct, and what `gather` fills.
        whole = EmbeddingCollection(
            features,
            output_dim,
            hidden_dim,
            direct_threshold,
            initialization=initialization,
            initial_scale=initial_scale,
            dtype=self.dtype_policy,
            name=self.name,
        )
        self._whole_config = whole.get_config()
        self._local = EmbeddingCollection(
            [
                dataclasses.replace(
                    feature, input_dim=int(rows), hidden_dim=whole.hidden_dims_of(feature.name) or 0
                )
                for feature, rows in zip(features, self._local_rows, strict=True)
            ],
            output_dim,
            hidden_dim,
            direct_threshold=0,
            initialization=initialization,
            initial_scale=initial_scale,
            dtype=self.dtype_policy,
            name=f"{self.name}_rows",
        )

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates this process's rows."""
        if self.built:
            return
        before = random.getstate()
        self._local.build()
        after = random.getstate()
        # Draws the same seeds again, now for the values of whole tables.
        random.setstate(before)
        for table, names in self._tables():
            whole_rows = [int(self._rows[self._index(name)]) for name in names]
            initializer = RowScaledUniform(whole_rows, scale=self._local.initial_scale)
            self._write_initial(table, names, initializer)
            mark_tables(table, stacked_tables(table).row_counts, whole_rows)
        random.setstate(after)
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Returns the embeddings of all features."""
        ids = as_ids(inputs)
        ids, _ = guard_ids(ids, self._rows.tolist(), [f.name for f in self.features], "error")
        size, rank = self._workers.size, self._workers.rank

        @tf.custom_gradient
        def spread(partial: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
            """Sums the shares of each batch in the process whose batch it is."""
            own = tf.reduce_sum(
                self._workers.exchange(tf.reshape(partial, [size, -1, *partial.shape[1:]])), 0
            )
            return own, self._workers.gather

        ids = tf.cast(self._workers.gather(ids), tf.int64)
        mine = tf.equal(ids % size, rank)
        others = tf.constant(self._local_rows - 1)
        rows = self._local(tf.where(mine, ids // size, others))
        return spread(tf.where(mine[..., tf.newaxis], rows, tf.zeros_like(rows)))

    def compute_output_spec(self, inputs: keras.KerasTensor) -> keras.KerasTensor:
        """Returns the symbolic output."""
        shape = (inputs.shape[0], len(self.features), self._local.output_dim)
        return keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self) -> dict[str, object]:
        """Returns the arguments of the whole `EmbeddingCollection`; the processes are not among them."""
        return dict(self._whole_config)

    def gather(self, block_rows: int = BLOCK_ROWS) -> EmbeddingCollection | None:
        """Gathers all rows in one collection; every process must call it.

        Args:
            block_rows: Rows of each process that are sent at a time.

        Returns:
            The collection in the chief, None in the other processes.
        """
        whole = EmbeddingCollection.from_config(self.get_config()) if self._workers.is_chief else None
        if whole is not None:
            whole.build()
        for feature in self.features:
            target = None if whole is None else whole.factorization(feature.name)
            low = 0
            for block in self._whole_blocks(feature.name, block_rows):
                if target is not None:
                    write_rows(target.table, [block], target.offset + low, len(block))
                low += len(block)
        if whole is not None:
            for own, other in zip(self._local.projections, whole.projections, strict=True):
                other.assign(own)
        return whole

    def _whole_blocks(self, name: str, block_rows: int) -> Iterator[np.ndarray]:
        """Yields a feature's rows, in order, to every process."""
        size, rows = self._workers.size, int(self._rows[self._index(name)])
        for i, block in enumerate(self._local.factorization(name).iter_table(block_rows)):
            of_all = self._workers.gather_now(block).reshape(size, *block.shape)
            ordered = np.swapaxes(of_all, 0, 1).reshape(-1, block.shape[1])
            yield ordered[: max(0, rows - i * block_rows * size)]

    def _index(self, name: str) -> int:
        return next(i for i, feature in enumerate(self.features) if feature.name == name)

    def _tables(self) -> Iterator[tuple[keras.Variable, list[str]]]:
        """Yields each table of this process, in order of creation, and the features in it, top to bottom."""
        for table in self._local.tables:
            offsets: dict[int, str] = {}
            for feature in self.features:
                found = self._local.factorization(feature.name)
                if found.table is table:
                    offsets.setdefault(found.offset, feature.name)
            yield table, [offsets[offset] for offset in sorted(offsets)]

    def _write_initial(self, table: keras.Variable, names: list[str], initializer: RowScaledUniform) -> None:
        blocks = initializer.iter_blocks(table.shape[1])
        size, rank = self._workers.size, self._workers.rank
        for name in names:
            rows, low = int(self._rows[self._index(name)]), 0
            offset = self._local.factorization(name).offset
            while low < rows:
                block = next(blocks)
                first = (rank - low) % size
                own = block[first::size]
                write_rows(table, [own], offset + (low + first) // size, len(own))
                low += len(block)
