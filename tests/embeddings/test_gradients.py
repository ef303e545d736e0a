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
