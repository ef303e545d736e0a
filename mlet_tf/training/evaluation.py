"""Predictions of a model over packed rows, and their metrics."""

import functools
from collections.abc import Callable

import keras
import numpy as np
import tensorflow as tf

from mlet_tf.features.names import DENSE, SPARSE
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.metrics import ctr_metrics

_BLOCK_ROWS = 16_384


class Predictor:
    """Click probabilities of a model, which may be trained further between calls.

    Args:
        model: Takes `{"dense_features": [B, D], "sparse_features": [B, F]}`, gives the CTR `[B]`.
    """

    def __init__(self, model: keras.Model) -> None:
        self._model = model
        self._function = functools.cache(self._trace)

    def __call__(self, rows: PackedRows) -> np.ndarray:
        """Click probabilities float32 `[N]`."""
        predict = self._function(rows.dense, rows.sparse)
        return np.concatenate([predict(block).numpy() for block in rows.blocks(_BLOCK_ROWS)])

    def metrics(self, rows: PackedRows) -> dict[str, float]:
        """The metrics of `mlet_tf.metrics.ctr_metrics` on all rows."""
        return ctr_metrics(rows.label, self(rows))

    def _trace(self, dense: int, sparse: int) -> Callable[[dict[str, np.ndarray]], tf.Tensor]:
        # Not `predict_on_batch`, which fails under a strategy over several hosts.
        signature = {
            DENSE: tf.TensorSpec([None, dense], tf.float32),
            SPARSE: tf.TensorSpec([None, sparse], tf.int32),
        }
        return tf.function(lambda inputs: self._model(inputs, training=False), input_signature=[signature])
