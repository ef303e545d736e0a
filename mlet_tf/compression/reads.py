"""What a model reads from its tables: which ids, how often, and how much its predictions depend on it (TensorFlow)."""

import dataclasses
from collections.abc import Mapping, Sequence

import keras
import numpy as np

from mlet_tf.compression.rows import LabelledRows
from mlet_tf.embeddings.energy import TableGradients
from mlet_tf.embeddings.gradients import LayerCall, logit_derivatives, watched
from mlet_tf.embeddings.model_tables import TableLayer, embedding_layers, tables_of
from mlet_tf.embeddings.plan import RowStatistics
from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection
from mlet_tf.layers.factorization import Factorization
from mlet_tf.layers.ids import is_sparse
from mlet_tf.replace import layers_of
from mlet_tf.types import Tensor

_BLOCK_ROWS = 2048


@dataclasses.dataclass(frozen=True, eq=False)
class ModelTable:
    """A table of a model.

    Attributes:
        layer: The layer that has it.
        name: Its name in the plan of the layer.
        factorization: Its rows.
        slots: Of an `EmbeddingCollection`, the features that read it.
    """

    layer: TableLayer
    name: str
    factorization: Factorization
    slots: tuple[int, ...] = ()

    def counts(self, statistics: RowStatistics) -> tuple[np.ndarray, int]:
        """Returns how often each id occurs, int64 `[V]`, in all features that read the table; and ids of its tail."""
        names = [self.layer.features[slot].name for slot in self.slots] or [self.name]
        return np.sum([statistics.counts[name] for name in names], axis=0), statistics.tail[names[0]]

    @property
    def float32_bytes(self) -> int:
        """Bytes of the whole table in float32."""
        return 4 * self.factorization.rows * self.factorization.output_dim


def model_tables(model: keras.Model) -> list[ModelTable]:
    """Returns the tables of a model, layer by layer; factorised ones count as their products.

    Raises:
        InputError: The model has no weights yet; see `embedding_layers`; or ids of a collection are pooled in it.
    """
    require_built(model)
    found = []
    for layer in embedding_layers(model, layers_of(model), factorised=True):
        slots: Mapping[str, tuple[int, ...]] = {}
        if isinstance(layer, EmbeddingCollection):
            slots = _slots(layer)
        found += [
            ModelTable(layer, name, rows, slots.get(name, ())) for name, rows in tables_of(layer).items()
        ]
    return found


def require_built(model: keras.Model) -> None:
    """Raises InputError for a model without weights."""
    if not model.built:
        raise InputError(f"Model '{model.name}': expected a trained model. Received: one without weights")


def count_ids(model: keras.Model, tables: Sequence[ModelTable], rows: LabelledRows) -> list[np.ndarray]:
    """Counts how often each id of each table is read, int64 `[V]`; the model runs over all rows.

    Raises:
        InputError: Ids are ragged or sparse, or none of the table's.
    """
    counts = [np.zeros(table.factorization.rows, "int64") for table in tables]
    for block in rows.blocks(_BLOCK_ROWS):
        with watched(_layers(tables)) as calls:
            model(block.inputs, training=False)
        for number, table in enumerate(tables):
            for call in _calls_of(table, calls):
                ids, _ = _reads(table, call)
                counts[number] += np.bincount(ids, minlength=table.factorization.rows)
    return counts


def measure_reads(
    model: keras.Model,
    tables: Sequence[ModelTable],
    rows: LabelledRows,
    midway_to: keras.layers.Layer | None = None,
    block_rows: int = _BLOCK_ROWS,
) -> list[TableGradients]:
    """Measures how predictions depend on what is read from each table, in inference mode.

    A dot product changes by the sum of what both ends change, each times the other end midway of its own change. So
    when all tables of a plan have changed at once, derivatives midway to them tell the loss better.

    Args:
        model: Gives click probabilities, `[B]` or `[B, 1]`, each from its own row alone.
        tables: Its tables.
        rows: Some thousand rows.
        midway_to: For a model with one layer of tables, looks up other embeddings of the same ids: derivatives are
            taken midway between both.
        block_rows: Rows the model gets at once.

    Raises:
        InputError: Ids are ragged or sparse, or none of their table's; a table is not read, or not by each row; or
            predictions are no probabilities.
    """
    parts: list[list[tuple[np.ndarray, ...]]] = [[] for _ in tables]
    change = None if midway_to is None else lambda call: (call.outputs + midway_to(call.inputs)) / 2
    for block in rows.blocks(block_rows):
        calls, ctr = logit_derivatives(model, _layers(tables), block.inputs, change)
        for table, part in zip(tables, parts, strict=True):
            for call in _calls_of(table, calls):
                ids, places = _reads(table, call)
                values = (np.asarray(values, "float32")[places] for values in (call.outputs, call.jacobian))
                part.append((ids, *values, ctr[places[0]], block.label[places[0]]))
    for table, part in zip(tables, parts, strict=True):
        if not part:
            raise InputError(
                f"Table '{table.name}': expected a table that the model reads. Received: no lookup"
            )
    joined = (tuple(np.concatenate(values) for values in zip(*part, strict=True)) for part in parts)
    return [TableGradients(*values, len(rows)) for values in joined]  # type: ignore[call-arg, arg-type]


def _layers(tables: Sequence[ModelTable]) -> list[keras.layers.Layer]:
    return list({id(table.layer): table.layer for table in tables}.values())


def _calls_of(table: ModelTable, calls: Sequence[LayerCall]) -> list[LayerCall]:
    return [call for call in calls if call.layer is table.layer]


def _reads(table: ModelTable, call: LayerCall) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """The ids that a call reads from a table, int `[m]`, and the places of their rows in its outputs; padding apart."""
    ids = _matrix(table.layer, call.inputs)
    chosen = np.ones(ids.shape, bool)
    if table.slots:
        chosen = np.zeros(ids.shape, bool)
        chosen[:, list(table.slots)] = True
    elif table.layer.mask_zero:
        chosen = ids != 0
    return _known(table, ids[chosen]), np.nonzero(chosen)


def _known(table: ModelTable, ids: np.ndarray) -> np.ndarray:
    """Ids as rows of a table; those out of its range, where they are allowed, are the last row."""
    outside = (ids < 0) | (ids >= table.factorization.rows)
    if getattr(table.layer, "oov", "error") == "last":
        return np.where(outside, table.factorization.rows - 1, ids)
    if outside.any():
        raise InputError(
            f"Table '{table.name}': expected ids from 0 to {table.factorization.rows - 1}. "
            f"Received: {ids[outside][0]}"
        )
    return ids


def _matrix(layer: keras.layers.Layer, inputs: Tensor | Mapping[str, Tensor]) -> np.ndarray:
    """The ids of a call, `[B, F]` for a collection."""
    if isinstance(inputs, Mapping):
        columns = [inputs[feature.name] for feature in layer.features]
        return np.stack([_matrix(layer, column).reshape(-1) for column in columns], axis=1)
    if is_sparse(inputs) or not hasattr(inputs, "shape") or type(inputs).__name__ == "RaggedTensor":
        raise InputError(
            f"Layer '{layer.name}': expected dense ids, for compression. Received: ragged or sparse ones"
        )
    return np.asarray(inputs).astype("int64")


def _slots(layer: EmbeddingCollection) -> dict[str, tuple[int, ...]]:
    """The features that read each table, by the name of the first one."""
    if pooled := [feature.name for feature in layer.features if feature.combiner is not None]:
        raise InputError(
            f"Layer '{layer.name}': expected features without a combiner, for compression. "
            f"Received: {', '.join(pooled)}"
        )
    places = {feature.name: slot for slot, feature in enumerate(layer.features)}
    groups = layer.table_features()
    return {table[0]: tuple(places[name] for name in table) for group in groups for table in group}
