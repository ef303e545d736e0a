"""Speed of the layers on a GPU: one training step of MLET against direct, on Keras's JAX or torch backend.

`KERAS_BACKEND=jax python -m benchmarks.gpu_layers [--quick] [--json FILE]`; needs no TensorFlow. The network is
the collection with a dot interaction and DLRM's top MLP; ids, labels and parameters stay on the device. The
tables take dense gradients on these backends, so a step passes over them whole: the rows are fewer here.
"""

import argparse
import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from benchmarks import _click_data
from benchmarks._harness import Result, main, quartiles, ratio
from mlet_tf.layers import DotInteraction, EmbeddingCollection, EmbeddingFeature
from mlet_tf.optimizers import RowWiseAdagrad

_ROWS = 1_000_000
_TURNS = 15


def measure(arguments: argparse.Namespace) -> list[Result]:
    """Times MLET and direct in turn, forward passes and whole training steps."""
    backend = keras.backend.backend()
    results = []
    for batch in (2048,) if arguments.quick else (2048, 8192, 32_768):
        sizes = _click_data.vocabulary_sizes(_ROWS)
        data = [(ids, labels) for _, ids, labels in _click_data.batches(sizes, batch, 8)]
        variants = {name: _make(sizes, k, data) for name, k in (("mlet", 64), ("direct", None))}
        for part in ("forward", "training step"):
            seconds: dict[str, list[float]] = {name: [] for name in variants}
            for turn in range(2 + (3 if arguments.quick else _TURNS)):
                for name, functions in variants.items():
                    elapsed = _seconds(functions[part])
                    if turn >= 2:  # The first ones compile.
                        seconds[name].append(elapsed)
            label = f"{part}: MLET / direct, {backend}, batch {batch}"
            result = ratio(label, seconds["mlet"], seconds["direct"], None, "lower")
            medians = (1e3 * quartiles(seconds[name])[0] for name in ("mlet", "direct"))
            result.note = "{:.2f} / {:.2f} ms".format(*medians)
            results.append(result)
    return results


def _make(
    sizes: list[int], hidden_dim: int | None, data: list[tuple[np.ndarray, ...]]
) -> dict[str, Callable]:
    """Returns what to time: each function runs all batches and ends with one number on the host."""
    features = [EmbeddingFeature(f"c{i}", size) for i, size in enumerate(sizes)]
    inputs = keras.Input((len(sizes),), dtype="int32")
    # Checking ids needs a copy to the host in eager code; "last" clamps on the device.
    x = EmbeddingCollection(features, 16, hidden_dim, oov="last")(inputs)
    x = DotInteraction()(x)
    for units in (512, 256):
        x = keras.layers.Dense(units, "relu")(x)
    model = keras.Model(inputs, keras.layers.Dense(1, "sigmoid")(x))
    model.compile(RowWiseAdagrad(0.01), "binary_crossentropy")
    batches = [
        (ops.convert_to_tensor(ids.astype("int32")), ops.convert_to_tensor(labels[:, None]))
        for ids, labels in data
    ]

    def train() -> Any:
        losses = [model.train_on_batch(ids, labels) for ids, labels in batches]
        return losses[-1]

    def forward() -> Any:
        return [model.predict_on_batch(ids) for ids, _ in batches][-1]

    return {"forward": forward, "training step": train}


def _seconds(function: Callable) -> float:
    """Seconds per batch; fetching the last result waits for the device."""
    start = time.perf_counter()
    np.asarray(function())
    return (time.perf_counter() - start) / 8


if __name__ == "__main__":
    main(__doc__.splitlines()[0], measure)
