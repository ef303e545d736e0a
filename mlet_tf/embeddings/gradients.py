"""Derivatives of a model's predictions by its embeddings (TensorFlow)."""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from mlet_tf.embeddings.energy import Gradients

_BLOCK_ROWS = 2048
_LEAST_CTR = 1e-6  # A saturated sigmoid has no derivative to divide by.


def measure_gradients(
    model: keras.Model,
    layer: keras.layers.Layer,
    inputs: Mapping[str, np.ndarray],
    ids: np.ndarray,
    label: np.ndarray,
    midway_to: keras.layers.Layer | None = None,
    block_rows: int = _BLOCK_ROWS,
) -> Gradients:
    """Measures how predictions depend on embeddings, in inference mode.

    A dot product changes by the sum of what both ends change, each times the other end midway of its own change. So
    when all tables of a plan have changed at once, derivatives midway to them tell the loss better.

    Args:
        model: Gives click probabilities, `[B]` or `[B, 1]`, each from its own row alone.
        layer: The layer of the model that looks up all embeddings, `[B, F, d]`, and is called once.
        inputs: Inputs of the model, `[n, ...]` each.
        ids: The ids that `layer` gets, `[n, F]`.
        label: Labels `[n]`.
        midway_to: Looks up other embeddings of the same ids: derivatives are taken midway between both.
        block_rows: Rows the model gets at once.

    Returns:
        One row for each row of the inputs, with the embeddings of `layer`.
    """
    blocks = []
    for low in range(0, len(label), block_rows):
        block = {name: values[low : low + block_rows] for name, values in inputs.items()}
        blocks.append(_block(model, layer, block, midway_to))
    embeddings, jacobian, ctr = map(np.concatenate, zip(*blocks, strict=True))
    return Gradients(np.asarray(ids), embeddings, jacobian, ctr, np.asarray(label))


def _block(
    model: keras.Model,
    layer: keras.layers.Layer,
    inputs: Mapping[str, np.ndarray],
    midway_to: keras.layers.Layer | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Embeddings and derivatives of the logit `[B, F, d]`, and probabilities `[B]`."""
    import tensorflow as tf

    lookup, own, outputs = layer.call, [], []

    def watched(*args: Any, **kwargs: Any) -> Any:
        own.append(lookup(*args, **kwargs))
        others = own[-1] if midway_to is None else midway_to(*args, **kwargs)
        outputs.append((own[-1] + others) / 2)
        tape.watch(outputs[-1])
        return outputs[-1]

    with tf.GradientTape(watch_accessed_variables=False) as tape:
        # Past Keras, which would track what is set.
        object.__setattr__(layer, "call", watched)
        try:
            ctr = tf.reshape(model(inputs, training=False), [-1])
        finally:
            object.__delattr__(layer, "call")
    if len(outputs) != 1:
        raise ValueError(f"`layer` should be called once by the model. Received: {len(outputs)} calls")
    # The sum of all probabilities has the derivatives of each in its own row.
    derivative = tf.cast(tape.gradient(ctr, outputs[0]), tf.float32).numpy()
    probability = np.clip(ctr.numpy(), _LEAST_CTR, 1 - _LEAST_CTR)
    embeddings = tf.cast(own[0], tf.float32).numpy()
    return embeddings, derivative / (probability * (1 - probability))[:, None, None], probability
