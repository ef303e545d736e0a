"""Baselines that save memory without MLET: hashed and quotient-remainder tables.

Both keep the embedding dimension and have fewer rows. They are for comparison only.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature

# Knuth's multiplicative hash; ids come in order of frequency, so that a plain modulo would be no hash at all.
_FACTOR, _STEP, _MODULUS = 2_654_435_761, 2_246_822_519, 1 << 31


class HashedEmbeddings(keras.layers.Layer):
    """Direct tables in which several ids share a row, by hashing.

    Args:
        table_rows: Vocabulary size V by feature.
        output_dim: Width of a row.
        share: Share of the rows that is kept, at most 1.
        initial_scale: As in `EmbeddingCollection`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Ids `[B, F]`.

    Output shape:
        `[B, F, output_dim]`.

    References:
        Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", arXiv 0902.2206.
    """

    def __init__(
        self,
        table_rows: Mapping[str, int],
        output_dim: int,
        share: float,
        initial_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = list(table_rows.values())
        self._buckets = [min(size, max(1, round(size * share))) for size in sizes]
        self._whole = np.array([kept == size for kept, size in zip(self._buckets, sizes, strict=True)])
        self._steps = np.arange(len(sizes), dtype=np.int64) * _STEP % _MODULUS
        features = [EmbeddingFeature(n, b) for n, b in zip(table_rows, self._buckets, strict=True)]
        self._tables = EmbeddingCollection(
            features, output_dim, initial_scale=initial_scale, dtype=self.dtype_policy
        )
        self.served_values = sum(self._buckets) * output_dim

    def build(self, input_shape: Any) -> None:
        """Creates the tables."""
        self._tables.build(input_shape)
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns the embeddings."""
        ids = ops.cast(inputs, "int64")
        hashed = (ids * _FACTOR + self._steps) % _MODULUS % np.array(self._buckets, np.int64)
        return self._tables(ops.where(self._whole, ids, hashed))

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns `(batch, features, output_dim)`."""
        return self._tables.compute_output_shape(input_shape)


class QuotientRemainderEmbeddings(keras.layers.Layer):
    """Two small tables per feature, looked up at `id % m` and `id // m`, whose rows are multiplied.

    The product is `r * (1 + q)`, so that initial embeddings are close to those of a direct table.

    Args:
        table_rows: Vocabulary size V by feature.
        output_dim: Width of a row.
        share: Rows of both tables together as a share of V; they have at least about `2 sqrt(V)` rows.
        initial_scale: As in `EmbeddingCollection`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Ids `[B, F]`.

    Output shape:
        `[B, F, output_dim]`.

    References:
        Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation
        Systems", arXiv 1909.02107.
    """

    def __init__(
        self,
        table_rows: Mapping[str, int],
        output_dim: int,
        share: float,
        initial_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        sizes = list(table_rows.values())
        self._moduli = np.array([_modulus(size, share) for size in sizes], np.int64)
        quotients = [math.ceil(size / m) for size, m in zip(sizes, self._moduli, strict=True)]
        self._count = len(sizes)
        self._tables = EmbeddingCollection(
            [
                EmbeddingFeature(f"{n} remainder", int(m))
                for n, m in zip(table_rows, self._moduli, strict=True)
            ]
            + [EmbeddingFeature(f"{n} quotient", q) for n, q in zip(table_rows, quotients, strict=True)],
            output_dim,
            initial_scale=initial_scale,
            dtype=self.dtype_policy,
        )
        # A quotient table of one row is a constant that the remainder table could have taken in.
        self.served_values = (int(self._moduli.sum()) + sum(q for q in quotients if q > 1)) * output_dim

    def build(self, input_shape: Any) -> None:
        """Creates the tables."""
        self._tables.build((None, 2 * self._count))
        self.built = True

    def call(self, inputs: Any) -> Any:
        """Returns the embeddings."""
        ids = ops.cast(inputs, "int64")
        both = self._tables(ops.concatenate([ids % self._moduli, ids // self._moduli], axis=1))
        return both[:, : self._count] * (1 + both[:, self._count :])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns `(batch, features, output_dim)`."""
        return input_shape[0], self._count, self._tables.output_dim


def _modulus(size: int, share: float) -> int:
    """Rows of the remainder table: as many as the budget allows."""
    budget = round(size * share)
    smallest = math.isqrt(size - 1) + 1 if size > 1 else 1
    if share >= 1 or smallest + math.ceil(size / smallest) >= size:
        return size
    fitting = [m for m in range(smallest, size) if m + math.ceil(size / m) <= budget]
    return max(fitting, default=smallest)
