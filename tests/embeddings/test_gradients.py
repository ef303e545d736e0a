"""Gradients of predictions by embeddings, and the loss that they predict."""

import numpy as np
import pytest

from mlet_tf import EmbeddingCollection, EmbeddingFeature
from mlet_tf.embeddings.gradients import measure_gradients
from mlet_tf.models import DLRM
from mlet_tf.models.dlrm import mlp

ROWS = {"a": 50, "b": 30}


@pytest.fixture
def model():
    features = [EmbeddingFeature(name, size) for name, size in ROWS.items()]
    model = DLRM(EmbeddingCollection(features, 4), mlp([4], "relu"), None, mlp([8, 1], "sigmoid"))
    model.build({"dense_features": (None, 2), "sparse_features": (None, 2)})
    table = model._embedding_layer.tables[0]
    table.assign(np.random.default_rng(1).normal(size=table.shape) * 0.5)
    return model


def logit(ctr):
    return np.log(ctr / (1 - ctr))


def test_jacobian_is_what_a_small_change_of_a_row_does(model):
    inputs = model.random_inputs(300)
    ids = inputs["sparse_features"]
    gradients = measure_gradients(model, model._embedding_layer, inputs, ids, np.zeros(300), block_rows=128)
    table = model._embedding_layer.tables[0]
    before = table.numpy()
    np.testing.assert_allclose(gradients.embeddings[:, 1], before[50 + ids[:, 1]], rtol=1e-6)
    np.testing.assert_allclose(gradients.ctr, model(inputs), rtol=1e-5)
    change = np.random.default_rng(2).normal(size=before.shape).astype("float32") * 1e-3
    change[:50] = 0
    table.assign(before + change)
    expected = np.einsum("nd,nd->n", gradients.jacobian[:, 1], change[50 + ids[:, 1]])
    difference = logit(np.asarray(model(inputs), "float64")) - logit(gradients.ctr.astype("float64"))
    # ReLUs may switch in a few rows.
    assert np.median(np.abs(difference - expected)) < 0.02 * np.abs(expected).mean()


def test_the_layer_is_as_before_and_must_be_called_once(model):
    inputs = model.random_inputs(8)
    measure_gradients(model, model._embedding_layer, inputs, inputs["sparse_features"], np.zeros(8))
    assert "call" not in vars(model._embedding_layer)
    other = EmbeddingCollection([EmbeddingFeature("a", 5)], 4)
    with pytest.raises(ValueError, match="called once"):
        measure_gradients(model, other, inputs, inputs["sparse_features"], np.zeros(8))


def test_midway_derivatives_tell_how_dot_products_change_when_both_ends_do(model):
    """With a linear network behind them, what two tables change together is told exactly midway, and not before."""
    linear = DLRM(model._embedding_layer, mlp([4], "relu"), None, mlp([1], "sigmoid"))
    linear.build({"dense_features": (None, 2), "sparse_features": (None, 2)})
    inputs = linear.random_inputs(200)
    ids = inputs["sparse_features"]
    other = EmbeddingCollection.from_config(model._embedding_layer.get_config())
    other.build()
    other.tables[0].assign(np.random.default_rng(3).normal(size=(80, 4)) * 0.5)
    before = measure_gradients(linear, linear._embedding_layer, inputs, ids, np.zeros(200))
    midway = measure_gradients(linear, linear._embedding_layer, inputs, ids, np.zeros(200), other)
    np.testing.assert_allclose(midway.embeddings, before.embeddings, rtol=1e-6)
    change = np.asarray(other(ids)) - before.embeddings
    after = measure_gradients(linear, other_layer(linear, other), inputs, ids, np.zeros(200))
    actual = logit(after.ctr.astype("float64")) - logit(before.ctr.astype("float64"))
    told = [np.einsum("nfd,nfd->n", gradients.jacobian, change) for gradients in (midway, before)]
    np.testing.assert_allclose(told[0], actual, atol=1e-4)
    assert np.abs(told[1] - actual).max() > 0.05
    assert midway.predicted_loss(change) == pytest.approx((midway.curvature * actual**2).mean() / 2, rel=1e-3)


def other_layer(model, other):
    """The model's lookup layer, with the rows of another one."""
    model._embedding_layer.tables[0].assign(other.tables[0])
    return model._embedding_layer
