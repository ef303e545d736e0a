"""References outside of MLET that spend the same bytes another way: hashing and quotient-remainder tables.

Both keep rows of the full width and have fewer of them. They are for comparison only.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.embeddings.addresses import hashed
from mlet_tf.embeddings.fitting import TrainedTable, write_tables
from mlet_tf.embeddings.plan import Plan
from mlet_tf.embeddings.served import ServedEmbedding
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.types import Shape, Tensor


@keras.saving.register_keras_serializable(package="mlet_tf")
class HashedEmbeddings(keras.layers.Layer):
    """A direct table for each feature whose rows several ids share.

    Args:
        plan: One band a feature, float32, of which some are hashed with one hash.
        initial_scale: As in `EmbeddingCollection`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Ids `[B, F]`.

    Output shape:
        `[B, F, output_dim]`.

    References:
        Weinberger et al., "Feature Hashing for Large Scale Multitask Learning", arXiv 0902.2206.
    """

    def __init__(self, plan: Plan | Mapping[str, Any], initial_scale: float = 1.0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.plan = plan if isinstance(plan, Plan) else Plan.from_plain(plan)
        self.initial_scale = initial_scale
        bands = [feature.bands[0] for feature in self.plan.features]
        self._whole = np.array([band.address == "identity" for band in bands])
        self._buckets = np.array([band.rows or band.stop for band in bands], np.int64)
        self._salts = np.array([band.salts[0] if band.salts else (1, 0) for band in bands], np.int64).T
        features = [
            EmbeddingFeature(feature.name, int(count))
            for feature, count in zip(self.plan.features, self._buckets, strict=True)
        ]
        self.tables = EmbeddingCollection(
            features, self.plan.output_dim, initial_scale=initial_scale, dtype=self.dtype_policy
        )

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the tables."""
        self.tables.build(input_shape)
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Returns the embeddings."""
        ids = ops.cast(inputs, "int64")
        return self.tables(
            ops.where(self._whole, ids, hashed(ids, self._salts[0], self._salts[1], self._buckets))
        )

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns `(batch, features, output_dim)`."""
        return self.tables.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        plan = json.loads(self.plan.to_json())
        return {**super().get_config(), "plan": plan, "initial_scale": self.initial_scale}

    def served(self) -> ServedEmbedding:
        """Returns the layer in the form that is served."""
        features = [EmbeddingFeature(feature.name, feature.rows) for feature in self.plan.features]
        served = ServedEmbedding(features, self.plan, name=self.name, dtype=self.dtype_policy)
        served.build()
        for names, target in zip(served.table_features(), served.tables, strict=True):
            write_tables(target, [self._trained(name) for (name,) in names])
        return served

    def _trained(self, name: str) -> TrainedTable:
        """The table of a feature as if each id had a row."""
        slot = [feature.name for feature in self.plan.features].index(name)
        table, salt = self.tables.effective_table(name), self._salts[:, slot]

        def read(low: int, high: int) -> np.ndarray:
            ids = np.arange(low, high, dtype=np.int64)
            return table[ids if self._whole[slot] else hashed(ids, salt[0], salt[1], self._buckets[slot])]

        return TrainedTable(name, self.plan.features[slot].rows, read)


@keras.saving.register_keras_serializable(package="mlet_tf")
class QuotientRemainderEmbeddings(keras.layers.Layer):
    """Two small tables a feature, read at `id % m` and `id // m` and multiplied.

    The product is `r * (1 + q)`, so that a new table begins as a direct one does.

    Args:
        tables: A collection of the tables: `m` rows of remainders for each feature, then the rows of quotients.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Ids `[B, F]`.

    Output shape:
        `[B, F, output_dim]`.

    References:
        Shi et al., "Compositional Embeddings Using Complementary Partitions for Memory-Efficient Recommendation
        Systems", arXiv 1909.02107.
    """

    def __init__(self, tables: EmbeddingCollection, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.tables = tables
        self._count = len(tables.features) // 2
        self._moduli = np.array([feature.input_dim for feature in tables.features[: self._count]], np.int64)

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the tables."""
        self.tables.build((None, 2 * self._count))
        self.built = True

    def call(self, inputs: Tensor) -> Tensor:
        """Returns the embeddings."""
        ids = ops.cast(inputs, "int64")
        both = self.tables(ops.concatenate([ids % self._moduli, ids // self._moduli], axis=1))
        return both[:, : self._count] * (1 + both[:, self._count :])

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns `(batch, features, output_dim)`."""
        return input_shape[0], self._count, self.tables.output_dim

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {**super().get_config(), "tables": keras.saving.serialize_keras_object(self.tables)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "QuotientRemainderEmbeddings":
        """Makes the layer from `get_config()`."""
        config = dict(config)
        return cls(keras.saving.deserialize_keras_object(config.pop("tables")), **config)
