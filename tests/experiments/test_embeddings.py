"""Nested embeddings and truncation, by what they compute."""

import functools

import keras
import numpy as np
import pytest

from mlet_tf import EmbeddingCollection, EmbeddingFeature, collapse_model
from mlet_tf.embeddings.nested import NestedEmbeddings
from mlet_tf.experiments import truncation
from mlet_tf.experiments.tables import embedding_collection
from mlet_tf.features.packed_rows import PackedRows
from mlet_tf.models import DLRM
from mlet_tf.models.dlrm import mlp

ROWS = {"a": 50, "b": 30, "tiny": 3}


def make_dlrm(layer, width=8):
    model = DLRM(layer, mlp([4, width], "relu"), None, mlp([8, 1], "sigmoid"))
    model.build({"dense_features": (None, 2), "sparse_features": (None, len(ROWS))})
    return model


def features():
    return [EmbeddingFeature(name, size) for name, size in ROWS.items()]


def inputs(count=40):
    generator = np.random.default_rng(0)
    ids = generator.integers(0, list(ROWS.values()), (count, len(ROWS)))
    return {"dense_features": generator.normal(size=(count, 2)).astype("float32"), "sparse_features": ids}


def test_nested_masks_trailing_columns_in_training_alone(tmp_path):
    layer = NestedEmbeddings(EmbeddingCollection(features(), 8, 16, 0), [2, 4], full_share=0.5, seed=1)
    ids = np.tile(inputs(1)["sparse_features"], (4000, 1))
    whole = np.asarray(layer(ids, training=False))
    masked = np.asarray(layer(ids, training=True))
    sizes = (masked != 0).all(axis=1).sum(axis=1)
    np.testing.assert_allclose(masked, np.where(np.arange(8) < sizes[:, None, None], whole, 0), atol=1e-7)
    shares = {int(size): (sizes == size).mean() for size in np.unique(sizes)}
    assert shares == pytest.approx({2: 0.25, 4: 0.25, 8: 0.5}, abs=0.03)
    assert len(np.unique(np.asarray(layer(ids, training=True)) == masked)) == 2, "the same draw twice"

    model = make_dlrm(layer)
    collapsed = collapse_model(model)
    assert all(table.hidden_dim is None for table in embedding_collection(collapsed).factorizations())
    model.save(tmp_path / "nested.keras")
    again = keras.models.load_model(tmp_path / "nested.keras")
    for other in (collapsed, again):
        np.testing.assert_allclose(model(inputs()), other(inputs()), rtol=1e-5)


def test_truncated_model_computes_what_restored_tables_do():
    model = make_dlrm(EmbeddingCollection(features(), 8))
    tables = [embedding_collection(model).effective_table(name) for name in ROWS]
    counts = [np.arange(1, size + 1)[::-1] for size in ROWS.values()]
    moment = truncation.bottom_moment(model, inputs()["dense_features"])
    metrics = lambda candidate: [np.eye(8)] * 3  # noqa: E731
    for candidate in truncation.candidates(tables, counts, [1, 3], truncation.METHODS, moment, metrics):
        small = truncation.truncated_model(model, candidate)
        stored = sum(
            int(np.prod(v.shape)) for v in small.variables if "table" in v.path or "projection" in v.path
        )
        assert stored == candidate.values
        reference = make_dlrm(EmbeddingCollection(features(), 8))
        reference.set_weights(model.get_weights())
        embedding_collection(reference).tables[0].assign(np.concatenate(candidate.restored()))
        np.testing.assert_allclose(small(inputs()), reference(inputs()), rtol=1e-5)


def test_truncation_loses_nothing_of_low_rank_tables_and_little_of_others():
    generator = np.random.default_rng(0)
    low = [generator.normal(size=(40, 3)) @ generator.normal(size=(3, 8)) for _ in range(2)]
    counts = [generator.integers(1, 100, 40) for _ in low]
    for method in ("per_table", "interaction"):
        for spectrum in truncation.spectra(low, counts, method):
            np.testing.assert_allclose(spectrum.restored(3), spectrum.table, atol=1e-4)

    def error(spectrum, columns, count):
        difference = spectrum.restored(columns) - spectrum.table
        return (count[:, None] * difference**2).sum()

    tables = [generator.normal(size=(40, 8)) for _ in counts]
    best = truncation.spectra(tables, counts, "per_table")
    for i, count in enumerate(counts):
        # Eckart and Young: what is lost is the energy of the columns left out, the least possible.
        assert error(best[i], 5, count) / count.sum() == pytest.approx(best[i].energy[5:].sum(), rel=1e-4)
        for method in ("leading", "common", "interaction"):
            other = truncation.spectra(tables, counts, method)[i]
            assert error(other, 5, count) > error(best[i], 5, count)


def test_interaction_is_the_best_for_dot_products_with_the_other_tables():
    generator = np.random.default_rng(1)
    # The other table lives in three directions: only what a row has of those matters.
    first, second = generator.normal(size=(40, 8)), generator.normal(size=(40, 3)) @ np.eye(3, 8)
    counts = [np.ones(40)] * 2
    products = first @ second.T

    def error(method):
        spectrum = truncation.spectra([first, second], counts, method)[0]
        return np.abs(spectrum.restored(3) @ second.T - products).max()

    assert error("interaction") < 1e-3 < 0.5 < error("per_table")


def test_columns_go_where_the_energy_is():
    generator = np.random.default_rng(0)
    flat, steep = generator.normal(size=(100, 8)), generator.normal(size=(100, 8)) * 4.0 ** -np.arange(8)
    spectra = truncation.spectra([flat, steep], [np.ones(100)] * 2, "per_table")
    columns = truncation.allocate_columns(spectra, 8 * 108)
    assert columns[0] > columns[1] >= 1
    assert sum(columns) <= 8


def test_columns_go_where_the_model_looks():
    """Dot products with a table that the network behind them ignores are as large, but worth nothing."""
    model = make_dlrm(EmbeddingCollection(features(), 8))
    collection = embedding_collection(model)
    collection.tables[0].assign(np.random.default_rng(2).normal(size=(83, 8)) * 0.3)
    weights = model._top_stack.layers[0].kernel.numpy()
    pairs = [(i, j) for i in range(4) for j in range(i)]
    weights[:8] = 0
    weights[[8 + number for number, pair in enumerate(pairs) if 0 in pair]] = 0
    model._top_stack.layers[0].kernel.assign(weights)
    rows = inputs(2000)
    words = np.concatenate(
        [
            np.zeros((2000, 1), "float32").view("int32"),
            rows["dense_features"].view("int32"),
            rows["sparse_features"].astype("int32"),
        ],
        axis=1,
    )
    packed = PackedRows("", 2000, 2, 3)
    packed.__dict__["words"] = words
    metrics = functools.partial(truncation.fisher_metrics, model, packed)
    first = metrics(None)
    assert np.trace(first[0]) < 1e-9 * np.trace(first[1])
    tables = [collection.effective_table(name) for name in ROWS]
    counts = [np.ones(size) for size in ROWS.values()]
    (candidate,) = truncation.candidates(tables, counts, [4], ["allocated"], metrics=metrics)
    (uniform,) = truncation.candidates(tables, counts, [4], ["per_table"])
    assert candidate.columns[0] < 4 < candidate.columns[1]
    assert candidate.values <= uniform.values
