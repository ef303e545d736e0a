"""Writes the SavedModels that `benchmarks.serving` compares: `python -m benchmarks._serving_models FOLDER ROWS`."""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from mlet_tf.collapse import collapse_model
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding
from mlet_tf.models import DLRM
from mlet_tf.models.dlrm import mlp
from mlet_tf.quantize import quantize_model

TABLE_DTYPES = ("float16", "int8")
FEATURES, DENSE, HIDDEN_DIM, OUTPUT_DIM = 26, 13, 64, 8


def vocabulary_sizes(rows: int) -> list[int]:
    """Sizes that sum to about `rows`, falling as 1/rank, none so small that it would stay direct."""
    shares = 1 / np.arange(1, FEATURES + 1)
    return [max(HIDDEN_DIM + 1, int(rows * share / shares.sum())) for share in shares]


class Tables(keras.layers.Layer):
    """One `MLETEmbedding` for each feature, as a model without a fused collection has them."""

    def __init__(self, sizes: list[int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._embeddings = [MLETEmbedding(size, OUTPUT_DIM, HIDDEN_DIM) for size in sizes]

    def call(self, ids: Any) -> list[Any]:
        return [embed(ids[:, index]) for index, embed in enumerate(self._embeddings)]


def build(embeddings: keras.layers.Layer) -> DLRM:
    """A DLRM around an embedding layer."""
    model = DLRM(
        embeddings, bottom_stack=mlp([64, OUTPUT_DIM], "relu"), top_stack=mlp([128, 64, 1], "sigmoid")
    )
    model(
        {
            "dense_features": np.zeros((1, DENSE), "float32"),
            "sparse_features": np.zeros((1, FEATURES), "int64"),
        }
    )
    return model


def export(model: keras.Model, path: Path) -> None:
    """Saves a signature of the model's own inputs, so that the embeddings weigh as much as they can."""
    module = tf.Module()
    module.kept = [variable.value for variable in model.variables]

    @tf.function(autograph=False)
    def ctr(dense_features: tf.Tensor, sparse_features: tf.Tensor) -> dict[str, tf.Tensor]:
        inputs = {"dense_features": dense_features, "sparse_features": sparse_features}
        return {"ctr": tf.reshape(model(inputs, training=False), [-1])}

    signature = ctr.get_concrete_function(
        dense_features=tf.TensorSpec([None, DENSE], tf.float32),
        sparse_features=tf.TensorSpec([None, FEATURES], tf.int64),
    )
    tf.saved_model.save(module, str(path), {"serving_default": signature})


def main(folder: Path, rows: int) -> None:
    """Writes `tables`, `fused`, `collapsed` and its quantised forms, version 1 each; one model is in memory."""
    keras.utils.set_random_seed(1)
    sizes = vocabulary_sizes(rows)
    features = [EmbeddingFeature(f"C{index}", size) for index, size in enumerate(sizes)]
    fused = build(EmbeddingCollection(features, OUTPUT_DIM, HIDDEN_DIM))
    export(fused, folder / "fused" / "1")
    collapsed = collapse_model(fused)
    del fused
    export(collapsed, folder / "collapsed" / "1")
    for dtype in TABLE_DTYPES:
        export(quantize_model(collapsed, dtype), folder / dtype / "1")
    export(build(Tables(sizes)), folder / "tables" / "1")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
