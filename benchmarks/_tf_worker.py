"""TensorFlow variants of the training benchmark: ours, plain Keras 3, and stock tensorflow-recommenders.

Started by `benchmarks.training`. The stock variant runs on Keras 2 (`TF_USE_LEGACY_KERAS=1`), whose Adagrad
updates rows: on Keras 3 it would be the plain Keras variant with other MLPs.
"""

import json
import os
import sys
from typing import Any

import numpy as np

from benchmarks import _click_data, _harness

_XLA_BATCH = 8192  # From here on XLA's dense part is the faster one; at 128 it is the slower one.


def build_ours(spec: dict[str, Any], sizes: list[int]) -> Any:
    """Our DLRM; `k` None makes it direct."""
    import keras
    import tensorflow_recommenders as tfrs

    import mlet_tf.optimizers
    from mlet_tf.layers import EmbeddingFeature
    from mlet_tf.models.dlrm import build_dlrm

    bare = None if spec.get("metrics", True) else tfrs.tasks.Ranking(loss=keras.losses.BinaryCrossentropy())
    model = build_dlrm(
        _click_data.NUM_DENSE,
        [EmbeddingFeature(f"c{i}", size) for i, size in enumerate(sizes)],
        output_dim=spec["d"],
        hidden_dim=spec["k"],
        **{"jit_compile_dense": spec["batch"] >= _XLA_BATCH, "task": bare, **spec.get("model", {})},
    )
    optimizer = getattr(mlet_tf.optimizers, spec.get("optimizer", "SparseAdagrad"))(0.01)
    steps = spec.get("steps_per_execution", 1)
    model.compile(optimizer, jit_compile=False, steps_per_execution=steps)
    optimizer.build(model.trainable_variables)  # As fit() does, before anything is traced.
    return model


def build_keras(spec: dict[str, Any], sizes: list[int]) -> Any:
    """The same network of Keras 3's own parts: Embedding, Dense, Adagrad."""
    import keras
    from keras import ops

    dense = keras.Input((_click_data.NUM_DENSE,), name="dense_features")
    ids = keras.Input((len(sizes),), dtype="int64", name="sparse_features")
    vectors = []
    for i, size in enumerate(sizes):
        k = spec["k"] if spec["k"] and size > spec["k"] else None
        vector = keras.layers.Embedding(size, k or spec["d"])(ids[:, i])
        vectors.append(keras.layers.Dense(spec["d"], use_bias=False)(vector) if k else vector)
    x = dense
    for units in (512, 256, spec["d"]):
        x = keras.layers.Dense(units, "relu")(x)
    stacked = ops.stack([*vectors, x], axis=1)
    products = ops.matmul(stacked, ops.transpose(stacked, (0, 2, 1)))
    rows, columns = np.tril_indices(len(sizes) + 1, -1)
    pairs = ops.take(
        ops.reshape(products, (-1, (len(sizes) + 1) ** 2)), rows * (len(sizes) + 1) + columns, axis=1
    )
    y = ops.concatenate([x, pairs], axis=1)
    for units in (512, 256):
        y = keras.layers.Dense(units, "relu")(y)
    y = keras.layers.Dense(1, "sigmoid")(y)
    model = keras.Model({"dense_features": dense, "sparse_features": ids}, y)
    model.compile(
        keras.optimizers.Adagrad(0.01),
        "binary_crossentropy",
        metrics=["auc"],
        steps_per_execution=spec.get("steps_per_execution", 1),
    )
    return model


def build_tfrs(spec: dict[str, Any], sizes: list[int]) -> Any:
    """Stock Ranking model: one Embedding and one projection a feature."""
    import tensorflow as tf
    import tensorflow_recommenders as tfrs

    layers = tf.keras.layers
    tf.keras.mixed_precision.set_global_policy(spec.get("policy", "float32"))

    class Embeddings(layers.Layer):
        def __init__(self) -> None:
            super().__init__()
            hidden = [spec["k"] if spec["k"] and size > spec["k"] else None for size in sizes]
            self.tables = [layers.Embedding(n, k or spec["d"]) for n, k in zip(sizes, hidden, strict=True)]
            self.projections = [layers.Dense(spec["d"], use_bias=False) if k else None for k in hidden]

        def call(self, ids: Any) -> list[Any]:
            pairs = zip(self.tables, self.projections, tf.unstack(ids, axis=1), strict=True)
            return [p(t(i)) if p else t(i) for t, p, i in pairs]

    model = tfrs.experimental.models.Ranking(
        embedding_layer=Embeddings(),
        bottom_stack=tfrs.layers.blocks.MLP([512, 256, spec["d"]], final_activation="relu"),
        top_stack=tfrs.layers.blocks.MLP([512, 256, 1], final_activation="sigmoid"),
        task=tfrs.tasks.Ranking(
            loss=tf.keras.losses.BinaryCrossentropy(), metrics=[tf.keras.metrics.AUC(name="auc")]
        ),
    )
    model.compile(tf.keras.optimizers.Adagrad(0.01), steps_per_execution=spec.get("steps_per_execution", 1))
    return model


def serve_floor(spec: dict[str, Any], sizes: list[int]) -> None:
    """Runs only what no implementation can leave out: matrix products and, unless `products_only`, rows."""
    import tensorflow as tf

    batch, d, k = spec["batch"], spec["d"], spec["k"]
    pairs = (len(sizes) + 1) * len(sizes) // 2
    widths = [(_click_data.NUM_DENSE, 512), (512, 256), (256, d), (d + pairs, 512), (512, 256), (256, 1)]
    layers = [
        (tf.random.normal((batch, m)), tf.random.normal((m, n)), tf.random.normal((batch, n)))
        for m, n in widths
    ]
    offsets = np.cumsum([0, *sizes[:-1]])
    rows = [
        tf.constant(np.unique(ids + offsets).astype("int32"))
        for _, ids, _ in _click_data.batches(sizes, batch, spec["batches"])
    ]
    table, accumulator = (tf.Variable(tf.ones((sum(sizes), k))) for _ in range(2))

    @tf.function
    def step(rows: tf.Tensor) -> tf.Tensor:
        total = 0.0
        for i, (x, w, g) in enumerate(layers):
            outputs = [x @ w, tf.matmul(x, g, transpose_a=True)]
            if i:
                outputs.append(tf.matmul(g, w, transpose_b=True))
            total += tf.add_n([o[0, 0] for o in outputs])
        if spec.get("products_only"):
            return total
        read = tf.gather(table, rows)
        tf.raw_ops.ResourceSparseApplyAdagradV2(
            var=table.handle, accum=accumulator.handle, lr=0.01, epsilon=1e-7, grad=read, indices=rows
        )
        return total

    def run(steps: int) -> float:
        for i in range(steps):
            total = step(rows[i % len(rows)])
        return float(total)

    _harness.serve(run)


def serve_collapse(spec: dict[str, Any]) -> None:
    """Collapses one layer as often as asked."""
    from mlet_tf.layers import MLETEmbedding

    layer = MLETEmbedding(spec["rows"], spec["d"], spec["k"])
    layer.build()

    def run(times: int) -> float:
        for _ in range(times):
            layer.collapse()
        return 0.0

    _harness.serve(run)


def main() -> None:
    """Does what the parent process asks."""
    spec = json.loads(sys.argv[1])
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "0")
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    if spec["kind"] == "idle":
        import mlet_tf.models  # noqa: F401

        _harness.serve(lambda steps: 0.0)
        return
    if spec["kind"] == "collapse":
        serve_collapse(spec)
        return
    sizes = _click_data.vocabulary_sizes(spec["rows"])
    if spec["kind"] == "floor":
        serve_floor(spec, sizes)
        return
    model = {"ours": build_ours, "keras": build_keras, "tfrs": build_tfrs}[spec["kind"]](spec, sizes)
    dense, ids, labels = (
        np.concatenate(x)
        for x in zip(*_click_data.batches(sizes, spec["batch"], spec["batches"]), strict=True)
    )
    features = {"dense_features": dense, "sparse_features": ids}
    data = tf.data.Dataset.from_tensor_slices((features, labels)).batch(spec["batch"], drop_remainder=True)
    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    iterator = iter(data.cache().repeat().with_options(options))
    calls = spec.get("steps_per_execution", 1)
    train = model.make_train_function()

    def run(steps: int) -> float:
        function = train or model.train_function
        for _ in range(max(1, steps // calls)):
            logs = function(iterator)
        return float(tf.cast(logs["loss"], tf.float32))

    _harness.serve(run)


if __name__ == "__main__":
    main()
