"""Layers that serve embeddings in the form of a plan."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from mlet_tf.embeddings.banded_table import BandedTable
from mlet_tf.embeddings.fitting import Basis, TrainedTable, write_tables
from mlet_tf.embeddings.plan import Plan, RowStatistics
from mlet_tf.errors import InputError
from mlet_tf.layers.embedding_collection import EmbeddingCollection, EmbeddingFeature
from mlet_tf.layers.factorization import BLOCK_ROWS, Factorization
from mlet_tf.layers.ids import as_ids, guard_ids, validate_oov
from mlet_tf.layers.single import SingleEmbedding
from mlet_tf.types import Shape, Tensor

# Arguments of a collection that a plan says, or that are for training.
_NOT_SERVED = ("output_dim", "hidden_dim", "direct_threshold", "deduplicate")


@keras.saving.register_keras_serializable(package="mlet_tf")
class ServedTable(SingleEmbedding):
    """Embedding of one feature in the form of a plan, not trained.

    Args:
        plan: The plan, of one feature.
        mask_zero: Whether id 0 is padding that later layers should mask.
        oov: What happens to an id out of range, see `MLETEmbedding`.
        **kwargs: Arguments of `keras.layers.Layer`.

    Input shape:
        Integer ids of any rank (float ids are cast); ragged tensors on TensorFlow, sparse ones as in
        `keras.layers.Embedding`.

    Output shape:
        Input shape with `output_dim` appended.

    Raises:
        ValueError: An id is out of range.
        tf.errors.InvalidArgumentError: The same in a TensorFlow graph.

    Example:
        >>> layer = ServedTable(Plan.direct({"items": 2}, 3, "int8"))
        >>> layer.build()
        >>> table = np.array([[0.0, 0.5, 1.0], [7.0, 7.0, 7.0]])
        >>> layer.write(TrainedTable("items", 2, lambda low, high: table[low:high]))
        >>> layer(np.array([1])).numpy()
        array([[7., 7., 7.]], dtype=float32)
    """

    built: bool  # Keras sets it.

    def __init__(
        self, plan: Plan | Mapping[str, Any], mask_zero: bool = False, oov: str = "error", **kwargs: Any
    ) -> None:
        plan = plan if isinstance(plan, Plan) else Plan.from_plain(plan)
        (feature,) = plan.features
        super().__init__(feature.rows, plan.output_dim, mask_zero, **kwargs)
        self.plan = plan
        self.oov = validate_oov(oov)
        self.table = BandedTable(self.plan, name="table")

    @property
    def embeddings(self) -> Tensor:
        """The whole table, widened, `[V, d]`: for models that read it, such as those with tied weights."""
        return self._embed(ops.arange(self.input_dim))

    def build(self, input_shape: Shape | None = None) -> None:
        """Creates the variables, all zeros."""
        self.table.build()
        self.built = True

    def write(self, table: TrainedTable, block_rows: int = BLOCK_ROWS) -> None:
        """Writes a trained table, `[V, d]`.

        Raises:
            InputError: A value is not finite, or too large for float16.
        """
        write_tables(self.table, [table], block_rows)

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        own = {"plan": _plain(self.plan), "mask_zero": self.mask_zero, "oov": self.oov}
        return {**super().get_config(), **own}

    def _embed(self, ids: Tensor, training: bool = False) -> Tensor:
        ids, invalid = guard_ids(as_ids(ids), [self.input_dim], [self.name], self.oov)
        vectors = ops.cast(self.table(ids), self.compute_dtype)
        if invalid is None:
            return vectors
        return ops.where(invalid[..., None], ops.cast(float("nan"), vectors.dtype), vectors)


@keras.saving.register_keras_serializable(package="mlet_tf")
class ServedEmbedding(EmbeddingCollection):
    """An `EmbeddingCollection` in the form of a plan, not trained.

    Features, ids and outputs are those of `EmbeddingCollection`. `served_embedding` makes one from a trained
    collection.

    Args:
        features: Features without a `hidden_dim`, see `EmbeddingCollection`.
        plan: The plan, with one entry for each table, in the order of the features.
        **kwargs: Further arguments of `EmbeddingCollection`, but for sizes and `deduplicate`.

    Raises:
        InputError: The plan is not for these features.

    Example:
        >>> features = [EmbeddingFeature("site", 5000), EmbeddingFeature("device", 4)]
        >>> layer = ServedEmbedding(features, Plan.direct({"site": 5000, "device": 4}, 8, "int4"))
        >>> layer(np.array([[17, 3]])).shape
        (1, 2, 8)
    """

    def __init__(
        self,
        features: Sequence[EmbeddingFeature | Mapping[str, Any]],
        plan: Plan | Mapping[str, Any],
        **kwargs: Any,
    ) -> None:
        plan = plan if isinstance(plan, Plan) else Plan.from_plain(plan)
        super().__init__(features, plan.output_dim, deduplicate=False, **kwargs)
        self.plan = plan
        planned = [(feature.name, feature.rows) for feature in plan.features]
        have = list(self.table_rows().items())
        if planned != have:
            raise InputError(f"Layer '{self.name}': expected a plan of {have}. Received: a plan of {planned}")

    def get_config(self) -> dict[str, object]:
        """Returns the constructor's arguments."""
        return {**_served_config(super().get_config()), "plan": _plain(self.plan)}

    def collapse(self, block_rows: int = BLOCK_ROWS) -> EmbeddingCollection:
        """Raises an error: the tables are collapsed already.

        Raises:
            InputError: Always.
        """
        stores = " and ".join(self.plan.stores)
        raise InputError(f"Layer '{self.name}': expected factorised tables. Received: {stores} tables")

    def _add_table(self, index: int, group: Any) -> BandedTable:
        tables = self.table_features()[index]
        names = {table[0] for table in tables}
        features = tuple(feature for feature in self.plan.features if feature.name in names)
        suffix = f"_{index}" if len(self._plan.groups) > 1 else ""
        plan = Plan(self.plan.output_dim, features)
        table = BandedTable(plan, [len(table) for table in tables], name=f"table{suffix}")
        table.build()
        return table


def served_embedding(
    collection: EmbeddingCollection,
    plan: Plan,
    statistics: RowStatistics | None = None,
    bases: Mapping[str, Basis] | None = None,
    *,
    block_rows: int = BLOCK_ROWS,
) -> ServedEmbedding:
    """Returns a trained collection in the form of a plan; the given one is not changed.

    Args:
        collection: Direct or factorised tables; factors are multiplied out in blocks.
        plan: The plan, with one entry for each table, see `FeaturePlan`.
        statistics: How often rows occur; without, all rows matter alike.
        bases: Columns of the tables by name, for those that lose some; others get their principal ones.
        block_rows: Rows that are in memory at once.

    Raises:
        InputError: The plan is not for these features, or a value is not finite or too large for float16.
    """
    groups = collection.table_features()
    names = {table[0]: table for group in groups for table in group}
    tables = {
        first: trained_table(
            collection.factorization(first), _counts(statistics, shared), (bases or {}).get(first)
        )
        for first, shared in names.items()
    }
    return written_collection(collection, plan, tables, block_rows=block_rows)


def written_collection(
    collection: EmbeddingCollection,
    plan: Plan,
    tables: Mapping[str, TrainedTable],
    *,
    block_rows: int = BLOCK_ROWS,
) -> ServedEmbedding:
    """Returns the collection that serves tables in the form of a plan.

    Args:
        collection: The trained collection; it is not changed.
        plan: The plan, with one entry for each table.
        tables: The tables by the names of their first features.
        block_rows: Rows that are in memory at once.

    Raises:
        InputError: See `served_embedding`.
    """
    config = _served_config(collection.collapsed_config())
    served = ServedEmbedding.from_config({**config, "plan": plan})
    served.build()
    for features, target in zip(served.table_features(), served.tables, strict=True):
        write_tables(target, [tables[names[0]] for names in features], block_rows)
    return served


def trained_table(
    factorization: Factorization, counts: Any = None, basis: Basis | None = None
) -> TrainedTable:
    """A table of a trained layer, see `TrainedTable`."""
    return TrainedTable(factorization.name, factorization.rows, factorization.effective_rows, counts, basis)


def _counts(statistics: RowStatistics | None, names: Sequence[str]) -> np.ndarray | None:
    """How often the rows of a table occur, in all features that share it."""
    if statistics is None:
        return None
    return np.sum([statistics.counts[name] for name in names], axis=0)


def _served_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration of a collection without what is not of its served form."""
    return {key: value for key, value in config.items() if key not in _NOT_SERVED}


def _plain(plan: Plan) -> dict[str, Any]:
    """A plan of dicts and lists; Keras would write tuples as objects."""
    return json.loads(plan.to_json())
