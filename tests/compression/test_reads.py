"""Derivatives of predictions by what is read from tables."""

import numpy as np
import pytest

from mlet_tf import EmbeddingCollection, EmbeddingFeature
from mlet_tf.compression.reads import measure_reads, model_tables
from mlet_tf.compression.rows import LabelledRows
from mlet_tf.errors import InputError
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


def measured(model, inputs, **options):
    """What is read from the tables of both features."""
    rows = LabelledRows(inputs, np.zeros(len(inputs["sparse_features"]), "float32"))
    return measure_reads(model, model_tables(model), rows, **options)


def test_jacobian_is_what_a_small_change_of_a_row_does(model):
    inputs = model.random_inputs(300)
    ids = inputs["sparse_features"]
    _, second = measured(model, inputs, block_rows=128)
    table = model._embedding_layer.tables[0]
    before = table.numpy()
    np.testing.assert_array_equal(second.ids, ids[:, 1])
    np.testing.assert_allclose(second.embeddings, before[50 + ids[:, 1]], rtol=1e-6)
    np.testing.assert_allclose(second.ctr, model(inputs), rtol=1e-5)
    change = np.random.default_rng(2).normal(size=before.shape).astype("float32") * 1e-3
    change[:50] = 0
    table.assign(before + change)
    expected = np.einsum("nd,nd->n", second.jacobian, change[50 + ids[:, 1]])
    difference = logit(np.asarray(model(inputs), "float64")) - logit(second.ctr.astype("float64"))
    # ReLUs may switch in a few rows.
    assert np.median(np.abs(difference - expected)) < 0.02 * np.abs(expected).mean()
    metric = np.einsum("n,ni,nj->ij", second.curvature, second.jacobian, second.jacobian) / 300
    np.testing.assert_allclose(second.metric(), metric, rtol=1e-5, atol=1e-9)


def test_the_layer_is_as_before_and_must_be_called(model):
    inputs = model.random_inputs(8)
    measured(model, inputs)
    assert "call" not in vars(model._embedding_layer)
    other = DLRM.from_config(model.get_config())
    other.build({"dense_features": (None, 2), "sparse_features": (None, 2)})
    rows = LabelledRows(inputs, np.zeros(8, "float32"))
    with pytest.raises(InputError, match="a table that the model reads"):
        measure_reads(model, model_tables(other), rows)


def test_midway_derivatives_tell_how_dot_products_change_when_both_ends_do(model):
    """With a linear network behind them, what two tables change together is told exactly midway, and not before."""
    linear = DLRM(model._embedding_layer, mlp([4], "relu"), None, mlp([1], "sigmoid"))
    linear.build({"dense_features": (None, 2), "sparse_features": (None, 2)})
    inputs = linear.random_inputs(200)
    ids = inputs["sparse_features"]
    other = EmbeddingCollection.from_config(model._embedding_layer.get_config())
    other.build()
    other.tables[0].assign(np.random.default_rng(3).normal(size=(80, 4)) * 0.5)
    before, midway = measured(linear, inputs), measured(linear, inputs, midway_to=other)
    changes = []
    for feature, (one, same) in enumerate(zip(before, midway, strict=True)):
        np.testing.assert_allclose(same.embeddings, one.embeddings, rtol=1e-6)
        changes.append(np.asarray(other(ids))[:, feature] - one.embeddings)
    ctr = np.asarray(linear(inputs), "float64")
    other_layer(linear, other)
    actual = logit(np.asarray(linear(inputs), "float64")) - logit(ctr)
    told = [
        sum(np.einsum("nd,nd->n", t.jacobian, change) for t, change in zip(tables, changes, strict=True))
        for tables in (midway, before)
    ]
    np.testing.assert_allclose(told[0], actual, atol=1e-4)
    assert np.abs(told[1] - actual).max() > 0.05


def other_layer(model, other):
    """The model's lookup layer, with the rows of another one."""
    model._embedding_layer.tables[0].assign(other.tables[0])
    return model._embedding_layer
