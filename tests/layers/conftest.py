"""Gradients of a layer's weights on whichever backend Keras runs."""

import keras
import numpy as np
import pytest


def _tensorflow(layer, inputs, weights):
    import tensorflow as tf

    @tf.function
    def compute():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(inputs) * weights)
        return [tf.convert_to_tensor(g) for g in tape.gradient(loss, layer.trainable_variables)]

    return [gradient.numpy() for gradient in compute()]


def _jax(layer, inputs, weights):
    import jax

    def loss(trainable):
        state = [v.value for v in layer.non_trainable_variables]
        outputs, _ = layer.stateless_call(trainable, state, inputs)
        return (outputs * weights).sum()

    gradients = jax.jit(jax.grad(loss))([v.value for v in layer.trainable_variables])
    return [np.asarray(gradient) for gradient in gradients]


def _torch(layer, inputs, weights):
    import torch

    layer.zero_grad()
    (layer(inputs) * torch.as_tensor(weights)).sum().backward()
    return [v.value.grad.numpy() for v in layer.trainable_variables]


@pytest.fixture(scope="session")
def gradients():
    """Function of a built layer, inputs and weights: gradients of sum(layer(inputs) * weights), dense."""
    return {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]


@pytest.fixture(scope="session")
def to_numpy():
    return lambda x: keras.ops.convert_to_numpy(keras.ops.cast(x, "float32"))
