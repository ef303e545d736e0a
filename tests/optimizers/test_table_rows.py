"""Decay and rates of tables on TensorFlow: values of the dense formulas, at the cost of the touched rows."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mlet_tf.optimizers

if keras.backend.backend() != "tensorflow":
    pytest.skip("row updates need TensorFlow", allow_module_level=True)

import tensorflow as tf

from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding
from mlet_tf.layers.roles import mark_tables

RULES = ["SparseSGD", "SparseAdagrad", "RowWiseAdagrad", "LazyAdam"]


def make(rule, rate=0.1, **options):
    return getattr(mlet_tf.optimizers, rule)(rate, **options)


def stacked(weights, row_counts):
    variable = keras.Variable(weights, name="table")
    mark_tables(variable, row_counts)
    return variable


@settings(max_examples=8)
@given(
    row_counts=st.lists(st.integers(1, 6), min_size=1, max_size=4),
    exponent=st.sampled_from([0.0, 0.5, 1.0]),
    decay=st.sampled_from([0.0, 0.1, 2.0]),
    l2=st.sampled_from([0.0, 0.01]),
    finalize_after=st.integers(0, 3),
    compiled=st.booleans(),
    seed=st.integers(0, 2**31),
)
@pytest.mark.parametrize("rule", RULES)
def test_stacked_tables_follow_the_dense_formula(
    rule, row_counts, exponent, decay, l2, finalize_after, compiled, seed, reference
):
    rng = np.random.default_rng(seed)
    rows = sum(row_counts)
    weights = rng.normal(size=(rows, 3)).astype("float32")
    variable = stacked(weights, row_counts)
    optimizer = make(rule, rows_exponent=exponent, weight_decay=decay, l2=l2)
    optimizer.build([variable])
    rates = 0.1 * (np.repeat(row_counts, row_counts) / max(row_counts)) ** exponent
    expected = reference(rule, weights, rates, decay, l2)
    step = tf.function(lambda g: optimizer.apply([g], [variable])) if compiled else None
    for number in range(4):
        ids = rng.integers(0, rows, rng.integers(1, 8))
        values = rng.normal(size=(len(ids), 3)).astype("float32")
        gradient = tf.IndexedSlices(tf.constant(values), tf.constant(ids), tf.constant([rows, 3]))
        step(gradient) if compiled else optimizer.apply([gradient], [variable])
        summed = np.zeros((rows, 3), "float32")
        np.add.at(summed, ids, values)
        expected.update(summed, np.isin(np.arange(rows), ids))
        if decay:  # What a layer reads in training.
            owed = variable.mlet_owed_decay(tf.range(rows)).numpy()[:, None]
            np.testing.assert_allclose(variable.numpy() * owed, expected.w, rtol=1e-4, atol=1e-5)
        if number == finalize_after:
            optimizer.finalize_variable_values([variable])
            np.testing.assert_allclose(variable.numpy(), expected.w, rtol=1e-4, atol=1e-5)
    optimizer.finalize_variable_values([variable])
    np.testing.assert_allclose(variable.numpy(), expected.w, rtol=1e-4, atol=1e-5)


def test_xla_gives_the_same_rows(rule):
    results = []
    for jit_compile in (False, True):
        rng = np.random.default_rng(1)
        variable = stacked(rng.normal(size=(9, 4)).astype("float32"), [2, 3, 4])
        optimizer = make(rule, rows_exponent=0.5, weight_decay=0.5, l2=0.01)
        optimizer.build([variable])
        step = tf.function(lambda g: optimizer.apply([g]), jit_compile=jit_compile)  # noqa: B023
        for _ in range(3):
            values = tf.constant(rng.normal(size=(3, 4)).astype("float32"))
            step(tf.IndexedSlices(values, tf.constant(rng.integers(0, 9, 3)), tf.constant([9, 4])))
        optimizer.finalize_variable_values([variable])
        results.append(variable.numpy())
    np.testing.assert_allclose(*results, rtol=1e-5, atol=1e-6)


def test_no_tensor_of_a_step_has_the_size_of_a_table(rule):
    """Neither the forward pass nor the update; only the variables themselves have V rows."""
    rows = 10_007
    layer = EmbeddingCollection(
        [EmbeddingFeature("a", rows - 7), EmbeddingFeature("b", 7, hidden_dim=8)],
        4,
        hidden_dim=8,
        direct_threshold=0,
    )
    layer.build()
    optimizer = make(rule, rows_exponent=0.5, weight_decay=0.5)
    optimizer.build(layer.trainable_variables)

    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids, training=True) ** 2)
        variables = layer.trainable_variables
        gradients = tape.gradient(loss, [v.value for v in variables])
        assert isinstance(gradients[0], tf.IndexedSlices)
        optimizer.apply(gradients, variables)

    graph = tf.function(step).get_concrete_function(tf.TensorSpec([32, 2], tf.int32)).graph
    outputs = [out for op in graph.get_operations() for out in op.outputs if op.type != "Placeholder"]
    sizes = [out.shape.num_elements() for out in outputs if out.shape.rank is not None]
    assert max(size for size in sizes if size) < 1000 < rows
    assert not [
        op
        for op in graph.get_operations()
        if op.type == "ReadVariableOp" and op.outputs[0].shape[:1] == [rows]
    ]


def embedding_layers():
    features = [EmbeddingFeature("a", 30), EmbeddingFeature("b", 5)]
    collection = {"output_dim": 3, "hidden_dim": 6, "initialization": "orthogonal"}
    return {
        "distinct ids": lambda: EmbeddingCollection(features, deduplicate=True, **collection),
        "all ids": lambda: EmbeddingCollection(features, deduplicate=False, **collection),
        "single, distinct": lambda: MLETEmbedding(30, 3, 6, deduplicate=True),
        "single, all": lambda: MLETEmbedding(30, 3, 6, deduplicate=False),
    }


@pytest.mark.parametrize("case", embedding_layers())
@pytest.mark.parametrize("rule", ["SparseSGD", "RowWiseAdagrad"])
def test_training_by_rows_is_training_with_decay_of_all_rows(rule, case):
    """The forward pass reads rows with the decay that they are owed, so that all gradients agree."""

    def train(by_rows):
        keras.utils.set_random_seed(0)
        layer = embedding_layers()[case]()
        layer.build()
        optimizer = make(rule, 0.2, weight_decay=1.0, rows_exponent=0.5)
        optimizer.build(layer.trainable_variables)
        rng = np.random.default_rng(0)

        @tf.function
        def step(ids, targets):
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum((layer(ids, training=True) - targets) ** 2)
            gradients = tape.gradient(loss, [v.value for v in layer.trainable_variables])
            if not by_rows:
                gradients = [tf.convert_to_tensor(g) for g in gradients]
            optimizer.apply(gradients, layer.trainable_variables)

        for _ in range(8):
            step(
                rng.integers(0, [30, 5], (4, 2)).astype("int32")
                if "ids" in case
                else rng.integers(0, 30, (4, 2)),
                1.0,
            )
        if by_rows:
            before = layer.trainable_variables[0].numpy()
        optimizer.finalize_variable_values(layer.trainable_variables)
        if by_rows:
            assert np.abs(before - layer.trainable_variables[0].numpy()).max() > 1e-3, "nothing was owed"
        return [v.numpy() for v in layer.trainable_variables]

    for lazy, dense in zip(train(True), train(False), strict=True):
        np.testing.assert_allclose(lazy, dense, rtol=1e-4, atol=1e-5)


def test_what_is_owed_survives_a_file(rule, tmp_path):
    """Saved in the middle of an epoch, with rows that are owed decay; `fit` would have settled them."""
    ids = keras.Input((2,), dtype="int32")
    vectors = EmbeddingCollection([EmbeddingFeature("a", 30), EmbeddingFeature("b", 5)], 3)(ids)
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(vectors)))
    optimizer = mlet_tf.optimizers.split_optimizer(
        tables=make(rule, weight_decay=1.0, rows_exponent=0.5), dense=make(rule, weight_decay=0.1)
    )
    model.compile(optimizer, "mse", jit_compile=False)
    rng = np.random.default_rng(0)
    for _ in range(4):
        model.train_on_batch(rng.integers(0, [30, 5], (4, 2)), np.ones((4, 1)))
    model.save(tmp_path / "model.keras")
    restored = keras.saving.load_model(tmp_path / "model.keras")
    batch = rng.integers(0, [30, 5], (4, 2))
    before = model.get_weights()[0]
    for one in (model, restored):
        one.train_on_batch(batch, np.ones((4, 1)))
        one.optimizer.finalize_variable_values(one.trainable_variables)
    assert np.abs(before - model.get_weights()[0]).max() > 1e-3
    for a, b in zip(model.get_weights(), restored.get_weights(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_fit_leaves_no_row_in_debt_and_a_new_optimizer_knows_of_none(rule):
    ids = keras.Input((1,), dtype="int32")
    layer = MLETEmbedding(50, 2, 4)
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids))))
    model.compile(make(rule, weight_decay=1.0), "mse", jit_compile=False)
    start = layer.table.numpy()
    model.fit(np.arange(8)[:, None], np.ones((8, 1)), batch_size=2, shuffle=False, verbose=0)
    np.testing.assert_allclose(layer.table.numpy()[8:], start[8:] * 0.9**4, rtol=1e-5)
    np.testing.assert_array_equal(layer.table.mlet_owed_decay(tf.range(50)), np.ones(50))
    model.compile(make(rule), "mse", jit_compile=False)
    model.optimizer.build(model.trainable_variables)
    assert layer.table.mlet_owed_decay is None


@pytest.mark.parametrize("options", [{"use_ema": True}, {"gradient_accumulation_steps": 2}])
def test_decay_of_all_rows_where_keras_passes_over_them_anyway(options, reference):
    weights = np.random.default_rng(2).normal(size=(6, 2)).astype("float32")
    variable = stacked(weights, [4, 2])
    optimizer = make("SparseSGD", weight_decay=0.5, rows_exponent=1.0, **options)
    optimizer.build([variable])
    expected = reference("SparseSGD", weights, 0.1 * np.repeat([1, 0.5], [4, 2]), 0.5)
    for row in (0, 5):
        values = np.full((1, 2), 3.0, "float32")
        optimizer.apply(
            [tf.IndexedSlices(tf.constant(values), tf.constant([row]), tf.constant([6, 2]))], [variable]
        )
        if "use_ema" in options:
            expected.update(np.eye(6)[:, [row]] * values)
    if "use_ema" not in options:
        expected.update((np.eye(6)[:, [0]] + np.eye(6)[:, [5]]) * 1.5 * np.ones((1, 2)))
    np.testing.assert_allclose(variable.numpy(), expected.w, rtol=1e-5)
