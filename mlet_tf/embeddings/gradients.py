"""Derivatives of a model's predictions by its embeddings (TensorFlow)."""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from mlet_tf.errors import InputError
from mlet_tf.types import Inputs, Tensor

_LEAST_CTR = 1e-6  # A saturated sigmoid has no derivative to divide by.


@dataclasses.dataclass(frozen=True, eq=False)
class LayerCall:
    """A call of a layer while a model ran.

    Attributes:
        layer: The layer.
        inputs: What it got.
        outputs: Its outputs.
        jacobian: Derivative of the logit by them, float32, of the same shape; empty where it was not asked for.
    """

    layer: keras.layers.Layer
    inputs: Tensor
    outputs: Tensor
    jacobian: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, "float32"))


@contextlib.contextmanager
def watched(
    layers: Sequence[keras.layers.Layer], change: Callable[[LayerCall], Tensor] | None = None
) -> Iterator[list[LayerCall]]:
    """Keeps the calls of some layers while the context lasts, in their order.

    Args:
        layers: The layers.
        change: Returns the outputs that the model sees instead.
    """
    calls: list[LayerCall] = []

    def watch(layer: keras.layers.Layer) -> None:
        lookup = layer.call

        def call(inputs: Tensor, *args: Any, **kwargs: Any) -> Tensor:
            made = LayerCall(layer, inputs, lookup(inputs, *args, **kwargs))
            calls.append(made)
            return made.outputs if change is None else change(made)

        # Past Keras, which would track what is set.
        object.__setattr__(layer, "call", call)

    for layer in layers:
        watch(layer)
    try:
        yield calls
    finally:
        for layer in layers:
            object.__delattr__(layer, "call")


def logit_derivatives(
    model: keras.Model,
    layers: Sequence[keras.layers.Layer],
    inputs: Inputs,
    change: Callable[[LayerCall], Tensor] | None = None,
) -> tuple[list[LayerCall], np.ndarray]:
    """Runs a model in inference mode, with derivatives by the outputs of some layers.

    Args:
        model: Gives click probabilities, `[B]` or `[B, 1]`, each from its own row alone.
        layers: The layers.
        inputs: Inputs of the model.
        change: See `watched`.

    Returns:
        The calls of the layers, and the probabilities `[B]`.

    Raises:
        InputError: The outputs are no probabilities, one a row, or a layer does not look up ids of each row.
    """
    import tensorflow as tf

    rows = len(keras.tree.flatten(inputs)[0])
    seen: list[tf.Tensor] = []

    def watch(call: LayerCall) -> tf.Tensor:
        # A tensor of its own: a layer may give the same one twice.
        seen.append(tf.identity(call.outputs if change is None else change(call)))
        tape.watch(seen[-1])
        return seen[-1]

    with tf.GradientTape(watch_accessed_variables=False) as tape, watched(layers, watch) as calls:
        outputs = model(inputs, training=False)
        _require_one_a_row(model, outputs, rows)
        ctr = tf.reshape(outputs, [-1])
    for call in calls:
        if tuple(call.outputs.shape[:1]) != (rows,):
            raise InputError(
                f"Layer '{call.layer.name}': expected a lookup of ids of each row, [B, ...]. "
                f"Received: one of shape {list(call.outputs.shape)} for {rows} rows"
            )
    probability = tf.cast(ctr, tf.float32).numpy()
    if not ((probability >= 0) & (probability <= 1)).all():
        raise InputError(
            f"Model '{model.name}': expected click probabilities, from 0 to 1; logits need a sigmoid. "
            f"Received: {probability.min():.4g} to {probability.max():.4g}"
        )
    probability = np.clip(probability, _LEAST_CTR, 1 - _LEAST_CTR)
    # The sum of all probabilities has the derivatives of each in its own row.
    derivatives = tape.gradient(ctr, seen, unconnected_gradients=tf.UnconnectedGradients.ZERO)
    slope = probability * (1 - probability)
    found = [
        dataclasses.replace(call, jacobian=_per_row(tf.cast(derivative, tf.float32).numpy(), slope))
        for call, derivative in zip(calls, derivatives, strict=True)
    ]
    return found, probability


def _require_one_a_row(model: keras.Model, outputs: Any, rows: int) -> None:
    found = [tuple(tensor.shape) for tensor in keras.tree.flatten(outputs)]
    if isinstance(outputs, Mapping) or found not in ([(rows,)], [(rows, 1)]):
        shapes = " and ".join(str(list(shape)) for shape in found)
        named = " by name" if isinstance(outputs, Mapping) else ""
        raise InputError(
            f"Model '{model.name}': expected one click probability a row, [B] or [B, 1]. "
            f"Received: {shapes}{named} for {rows} rows"
        )


def _per_row(derivative: np.ndarray, slope: np.ndarray) -> np.ndarray:
    """Derivatives of the probability, `[B, ...]`, as those of the logit."""
    return derivative / slope.reshape(-1, *[1] * (derivative.ndim - 1))
