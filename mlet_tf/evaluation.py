"""Several SavedModels asked side by side for the click probabilities of the same rows."""

from collections.abc import Mapping, Sequence

import numpy as np
import tensorflow as tf

from mlet_tf.datasets import ClickLogSchema
from mlet_tf.features.examples import raw_feature_spec
from mlet_tf.features.halves import ALL_ROWS
from mlet_tf.features.names import FREQUENCY, FREQUENCY_BUCKETS
from mlet_tf.features.records import at_positions, example_batches
from mlet_tf.features.transform_graph import TransformGraph
from mlet_tf.predictions import CTR, LABEL, SLICE

_BATCH = 4096


class ModelComparison:
    """Models that are loaded, and what is needed to put their rows into slices.

    Args:
        models: SavedModel folders by name.
        schema: Schema of the log.
        transform_graph: URI of the transform graph, which names the frequency buckets of ids.
        slices: Raw columns whose values are slices.
        frequency_slices: Categorical columns sliced by frequency bucket.
        positions: `(first, every)`: of each file the rows at `first`, `first + every`, ... are asked.
    """

    def __init__(
        self,
        models: Mapping[str, str],
        schema: ClickLogSchema,
        transform_graph: str,
        slices: Sequence[str],
        frequency_slices: Sequence[str],
        positions: tuple[int, int] = ALL_ROWS,
    ) -> None:
        self._models = {name: tf.saved_model.load(path) for name, path in models.items()}
        self._schema, self._transform = schema, TransformGraph(transform_graph)
        self._columns, self._frequency_columns = slices, frequency_slices
        self._positions = positions

    def predict(self, path: str) -> dict[str, np.ndarray]:
        """Answers the rows of a TFRecord file of raw tf.Examples.

        Returns:
            `label` int8, `ctr.<model>` float32 and `slice.<column>` texts, each `[N]`; empty for a file without rows
            to ask.
        """
        parts, start = [], 0
        for batch in example_batches([path], _BATCH):
            if rows := at_positions(batch, start, *self._positions):
                parts.append(self._predict(tf.constant(rows)))
            start += len(batch)
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}

    def _predict(self, serialized: tf.Tensor) -> dict[str, np.ndarray]:
        columns = tf.io.parse_example(serialized, raw_feature_spec(self._schema, with_label=True))
        arrays = {LABEL: columns[self._schema.label].values.numpy().astype(np.int8)}
        for name, model in self._models.items():
            arrays[f"{CTR}{name}"] = model.signatures["serving_default"](examples=serialized)["ctr"].numpy()
        for name in self._columns:
            arrays[f"{SLICE}{name}"] = _texts(columns[name], len(arrays[LABEL]))
        if self._frequency_columns:
            del columns[self._schema.label]
            codes = self._transform(columns)[FREQUENCY].numpy()
            for name, column in zip(self._frequency_columns, codes.T, strict=True):
                arrays[f"{SLICE}{name} frequency"] = np.array(FREQUENCY_BUCKETS)[column]
        return arrays


def _texts(column: tf.SparseTensor, rows: int) -> np.ndarray:
    texts = np.full(rows, "missing", dtype=object)
    values = column.values.numpy()
    texts[column.indices.numpy()[:, 0]] = [
        v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in values
    ]
    return texts.astype(str)
