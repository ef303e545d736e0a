import keras
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature, MLETEmbedding, variable_role
from mlet_tf.optimizers import SparseAdagrad

BACKEND = keras.backend.backend()
ON_TENSORFLOW = BACKEND == "tensorflow"
SLOW_TO_COMPILE = BACKEND == "jax"  # It compiles every operation for every shape.
tensorflow_only = pytest.mark.skipif(not ON_TENSORFLOW, reason="only TensorFlow updates tables by rows")

# Shared tables, shared projections, both, chains, direct ones, in mixed order.
MIXED = [
    EmbeddingFeature("plain", 30),
    EmbeddingFeature("tiny", 3),
    EmbeddingFeature("chain", 20, hidden_dim=(7, 6)),
    EmbeddingFeature("home", 25, table="place"),
    EmbeddingFeature("work", 25, table="place"),
    EmbeddingFeature("first", 12, projection="p"),
    EmbeddingFeature("second", 14, projection="p"),
    EmbeddingFeature("both", 11, table="t", projection="q"),
    EmbeddingFeature("both_again", 11, table="t", projection="q"),
    EmbeddingFeature("forced_direct", 40, hidden_dim=0),
    EmbeddingFeature("last", 9, hidden_dim=8),
]
ROWS = np.array([feature.input_dim for feature in MIXED])


def random_ids(features, batch, seed=0):
    return np.random.default_rng(seed).integers(0, [f.input_dim for f in features], (batch, len(features)))


def built(features, *args, **kwargs):
    layer = EmbeddingCollection(features, *args, **kwargs)
    layer.build()
    return layer


def separate_layers(layer):
    """One MLETEmbedding or Embedding for each feature, with the weights that the collection has for it."""
    for feature in layer.features:
        factors = layer.factorization(feature.name)
        table = next(factors.iter_table(10**6))
        if factors.projections:
            chain = [p.shape[0] for p in factors.projections]
            alone = MLETEmbedding(feature.input_dim, layer.output_dim, chain)
        else:
            alone = keras.layers.Embedding(feature.input_dim, layer.output_dim)
        alone.build()
        alone.set_weights([table, *factors.projections])
        yield alone


@settings(max_examples=3 if SLOW_TO_COMPILE else 7)
@given(
    batch=st.sampled_from([0, 1, 2, 9, 300]),
    deduplicate=st.sampled_from([None, True, False]),
    max_rows=st.sampled_from([2**31 - 1, 60, 10]),
    order=st.permutations(range(len(MIXED))),
)
def test_computes_what_separate_layers_do(to_numpy, batch, deduplicate, max_rows, order):
    features = [MIXED[i] for i in order]
    layer = built(features, 4, 5, deduplicate=deduplicate, max_rows_per_table=max_rows)
    ids = random_ids(features, batch)
    outputs = to_numpy(layer(ids))
    assert outputs.shape == (batch, len(features), 4)
    for slot, alone in enumerate(separate_layers(layer)):
        np.testing.assert_allclose(outputs[:, slot], to_numpy(alone(ids[:, slot])), atol=1e-6)
    np.testing.assert_allclose(to_numpy(layer.collapse()(ids)), outputs, atol=1e-6)
    columns = {feature.name: ids[:, i : i + 1] for i, feature in enumerate(features)}
    np.testing.assert_allclose(to_numpy(layer(columns)), outputs, atol=1e-6)


def test_every_row_belongs_to_one_table():
    for max_rows in (2**31 - 1, 50):
        layer = built(MIXED, 4, 5, max_rows_per_table=max_rows)
        taken = {id(table): np.zeros(table.shape[0], int) for table in layer.tables}
        ranges = {(id(f.table), f.offset, f.rows) for f in layer.factorizations()}
        for table, offset, rows in ranges:
            taken[table][offset : offset + rows] += 1
        assert all((count == 1).all() for count in taken.values())
    assert len(layer.tables) > 4
    # A table which is shared, with or without its projections, is stored once.
    assert sum(table.shape[0] for table in layer.tables) == ROWS.sum() - 25 - 11


@settings(max_examples=2 if SLOW_TO_COMPILE else 4)
@given(deduplicate=st.booleans(), seed=st.integers(0, 99))
def test_gradients_are_those_of_the_product(gradients, to_numpy, deduplicate, seed):
    """The outputs are linear in each weight by itself, so a gradient times a change is the whole difference."""
    rng = np.random.default_rng(seed)
    layer = built(MIXED, 4, 5, deduplicate=deduplicate)
    ids = random_ids(MIXED, 20, seed)
    upstream = rng.normal(size=(20, len(MIXED), 4)).astype("float32")

    def loss():
        return (to_numpy(layer(ids)).astype("float64") * upstream).sum()

    received = gradients(layer, ids, upstream)
    before = loss()
    for variable, gradient in zip(layer.trainable_variables, received, strict=True):
        old = keras.ops.convert_to_numpy(variable)
        change = rng.normal(size=old.shape)
        variable.assign(old + change)
        assert loss() - before == pytest.approx((gradient * change).sum(), rel=1e-3, abs=1e-3), variable.path
        variable.assign(old)


@settings(max_examples=3 if SLOW_TO_COMPILE else 5)
@given(
    seed=st.integers(0, 99),
    batch=st.sampled_from([1, 5]),
    width=st.sampled_from([1, 3]),
    deduplicate=st.booleans(),
)
@example(seed=0, batch=5, width=1, deduplicate=True)
def test_bags_are_combined(to_numpy, seed, batch, width, deduplicate):
    features = [
        EmbeddingFeature("single", 30),
        EmbeddingFeature("summed", 20, combiner="sum"),
        EmbeddingFeature("averaged", 25, hidden_dim=(6, 7), combiner="mean"),
        EmbeddingFeature("direct", 3, combiner="mean"),
    ]
    rng = np.random.default_rng(seed)
    layer = built(features, 4, 5, deduplicate=deduplicate)
    inputs = {"single": rng.integers(0, 30, batch)}
    expected = [layer.effective_table("single")[inputs["single"]]]
    for feature in features[1:]:
        ids = rng.integers(-feature.input_dim, feature.input_dim, (batch, width))
        ids = np.maximum(ids, -1)  # -1 is padding.
        inputs[feature.name] = ids
        rows = layer.effective_table(feature.name)[ids] * (ids >= 0)[..., None]
        count = np.maximum((ids >= 0).sum(1), 1)[:, None] if feature.combiner == "mean" else 1
        expected.append(rows.sum(1) / count)
    np.testing.assert_allclose(to_numpy(layer(inputs)), np.stack(expected, 1), atol=1e-6)
    if ON_TENSORFLOW:
        import tensorflow as tf

        for name in ("summed", "averaged"):
            inputs[name] = tf.ragged.constant([row[row >= 0].tolist() for row in inputs[name]], tf.int64)
        np.testing.assert_allclose(tf.function(layer)(inputs), np.stack(expected, 1), atol=1e-6)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_long_bags_are_summed_in_full_precision(gradients, to_numpy, policy):
    """In the compute dtype itself a count of 5000 would end at 256 or 2048, and so would sums and gradients."""

    def assert_close(received, expected):
        """Half precision is exact to some percent of the largest number of a vector."""
        assert (np.abs(received - expected) <= 0.04 * np.abs(expected).max(-1, keepdims=True)).all()

    features = [EmbeddingFeature("mean", 20, combiner="mean"), EmbeddingFeature("sum", 20, combiner="sum")]
    layer = built(features, 4, 6, dtype=policy)
    inputs = {name: np.full((2, 5000), 3) for name in ("mean", "sum")}
    one = to_numpy(layer(dict.fromkeys(inputs, np.array([[3]]))))[0]
    outputs = layer(inputs)
    assert keras.backend.standardize_dtype(outputs.dtype) == policy.removeprefix("mixed_")
    for row in to_numpy(outputs):
        assert_close(row, one * [[1], [5000]])
    of_long = gradients(layer, inputs, np.ones((2, 2, 4), "float32"))
    # The same totals for a bag of one id.
    upstream = np.repeat(np.array([[[2], [10_000]]], "float32"), 4, axis=2)
    of_one = gradients(layer, dict.fromkeys(inputs, np.array([[3]])), upstream)
    for long, short in zip(of_long, of_one, strict=True):
        assert_close(long, short)
    if ON_TENSORFLOW:
        import tensorflow as tf

        compiled = tf.function(layer, jit_compile=True)(inputs)
        assert_close(to_numpy(compiled), to_numpy(outputs))


def test_small_vocabularies_are_direct():
    features = [EmbeddingFeature("a", 8), EmbeddingFeature("b", 9), EmbeddingFeature("c", 50, hidden_dim=0)]

    def hidden(**kwargs):
        layer = built(features, 4, 8, **kwargs)
        return [layer.factorization(f.name).hidden_dim for f in features]

    assert hidden() == [None, 8, None]
    assert hidden(direct_threshold=0) == [8, 8, None]
    assert hidden(direct_threshold=9) == [None, None, None]
    direct = built(features, 4)
    assert [variable_role(v) for v in direct.weights] == ["table"]
    mixed = built(features, 4, 8)
    assert sorted(variable_role(v) for v in mixed.weights) == ["projection", "table", "table"]


@pytest.mark.parametrize("bad", [-1, 25])
def test_ids_out_of_range_name_the_feature(bad, to_numpy):
    ids = random_ids(MIXED, 6)
    ids[4, 3] = bad
    strict, lenient = built(MIXED, 4, 5), built(MIXED, 4, 5, oov="last")
    message = rf'feature "home": expected 0 <= id < 25. Received: {bad}'
    with pytest.raises(ValueError, match=message):
        strict(ids)
    expected = lenient.effective_table("home")[24]
    np.testing.assert_allclose(to_numpy(lenient(ids))[4, 3], expected, atol=1e-6)
    if ON_TENSORFLOW:
        import tensorflow as tf

        with pytest.raises(tf.errors.InvalidArgumentError, match=r"home.*0 <= id < 25"):
            tf.function(strict)(tf.constant(ids))
        compiled = tf.function(strict, jit_compile=True)(tf.constant(ids))
    elif BACKEND == "jax":
        import jax

        compiled = jax.jit(strict)(ids)
    else:
        return
    where = np.argwhere(np.isnan(to_numpy(compiled)).any(-1))
    assert where.tolist() == [[4, 3]]


def test_model_with_a_collection_saves_and_trains(tmp_path):
    ids = keras.Input((len(MIXED),), dtype="int64")
    layer = EmbeddingCollection(
        MIXED, 4, (5, 6), initialization="orthogonal", projection_learning_rate_multiplier=0.5, oov="last"
    )
    model = keras.Model(ids, keras.layers.Dense(1)(keras.layers.Flatten()(layer(ids))))
    assert layer.output.shape == (None, len(MIXED), 4)
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.5), "mse")
    x = random_ids(MIXED, 64)
    model.fit(x, np.ones((64, 1)), verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(variable) - old).max() > 0, variable.path
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[1].get_config() == layer.get_config()
    np.testing.assert_allclose(loaded.predict(x, verbose=0), model.predict(x, verbose=0), atol=1e-6)


@pytest.mark.parametrize(
    ("regularizer", "constraint"),
    [
        (keras.regularizers.L2(0.1), keras.constraints.MaxNorm(0.3)),  # Of columns, by default.
        (keras.regularizers.OrthogonalRegularizer(0.1), keras.constraints.UnitNorm(axis=1)),
        (keras.regularizers.L1(0.1), keras.constraints.NonNeg()),
    ],
    ids=["norm of columns", "norm of rows", "element by element"],
)
def test_regularizers_and_constraints_are_those_of_separate_layers(regularizer, constraint, to_numpy):
    features = [EmbeddingFeature("a", 30), EmbeddingFeature("b", 20), EmbeddingFeature("direct", 5)]
    rules = {
        "table_regularizer": regularizer,
        "projection_regularizer": regularizer,
        "table_constraint": constraint,
        "projection_constraint": constraint,
    }
    layer = built(features, 4, 6, **rules)
    alone = [MLETEmbedding(30, 4, 6, **rules), MLETEmbedding(20, 4, 6, **rules)]
    alone.append(
        keras.layers.Embedding(5, 4, embeddings_regularizer=regularizer, embeddings_constraint=constraint)
    )
    for other, same in zip(alone, separate_layers(layer), strict=True):
        other.build()
        other.set_weights(same.get_weights())
    ids = keras.Input((3,), dtype="int32")
    fused = keras.Model(ids, layer(ids))
    parts = keras.Model(ids, keras.ops.stack([x(ids[:, i]) for i, x in enumerate(alone)], axis=1))
    np.testing.assert_allclose(to_numpy(sum(layer.losses)), to_numpy(sum(parts.losses)), rtol=1e-5)
    x = random_ids(features, 16)
    for model in (fused, parts):
        model.compile(SparseAdagrad(0.1), "mse", jit_compile=False)
        model.fit(x, np.ones((16, 3, 4)), epochs=2, verbose=0)
    for received, expected in zip(separate_layers(layer), alone, strict=True):
        for one, other in zip(received.get_weights(), expected.get_weights(), strict=True):
            np.testing.assert_allclose(one, other, atol=1e-5)
    config = layer.get_config()
    assert EmbeddingCollection.from_config(config).get_config() == config
    assert config["table_regularizer"] is not None and config["projection_constraint"] is not None
    collapsed = layer.collapse()
    assert not collapsed.losses and collapsed.tables[0].constraint is None
    np.testing.assert_allclose(to_numpy(collapsed(x)), to_numpy(layer(x)), atol=1e-6)


def test_collapse_refuses_nan_and_names_the_feature():
    layer = built(MIXED, 4, 5)
    factors = layer.factorization("work")
    values = keras.ops.convert_to_numpy(factors.table).copy()
    values[factors.offset + 7] = np.inf
    factors.table.assign(values)
    with pytest.raises(InputError, match=r"home|work"):
        layer.collapse()


def test_more_rows_than_int32_numbers_are_several_tables():
    features = [EmbeddingFeature(f"f{i}", 900_000_000) for i in range(5)]
    assert [lookup.rows for lookup in EmbeddingCollection(features, 4, 8)._plan.groups] == [
        1_800_000_000
    ] * 2 + [900_000_000]


def test_direct_tables_start_within_their_own_bounds():
    layer = built([EmbeddingFeature("a", 4), EmbeddingFeature("b", 10_000)], 8)
    for name, rows in (("a", 4), ("b", 10_000)):
        table = layer.effective_table(name)
        assert 0.8 * rows**-0.5 < np.abs(table).max() <= rows**-0.5


@pytest.mark.parametrize(
    ("features", "message"),
    [
        ([], "at least one"),
        ([EmbeddingFeature("a", 9), EmbeddingFeature("a", 9)], "unique names"),
        ([EmbeddingFeature("a", 9, table="t"), EmbeddingFeature("b", 8, table="t")], "share a table"),
        (
            [EmbeddingFeature("a", 9, 2, projection="p"), EmbeddingFeature("b", 8, 3, projection="p")],
            "share a proj",
        ),
        ([EmbeddingFeature(f"f{i}", 900_000_000, table="t") for i in range(3)], "2147483647 rows together"),
        ([EmbeddingFeature("a", 2**31)], "`input_dim` of feature 'a' should be at most 2147483647"),
    ],
)
def test_features_that_do_not_fit_are_refused(features, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingCollection(features, 4, 5)


def test_wrong_inputs_are_named():
    layer = built([EmbeddingFeature("a", 9), EmbeddingFeature("b", 8)], 4, 5)
    with pytest.raises(ValueError, match="one column for each feature"):
        layer(np.zeros((3, 3), "int64"))
    with pytest.raises(ValueError, match="should have the keys"):
        layer({"a": np.zeros(3, "int64")})
    with pytest.raises(ValueError, match="'b' should have one id a row, or a `combiner`"):
        layer({"a": np.zeros(3, "int64"), "b": np.zeros((3, 2), "int64")})
    with pytest.raises(ValueError, match="`combiner`"):
        EmbeddingFeature("a", 3, combiner="max")
    with pytest.raises(ValueError, match="should be one of"):
        layer.effective_table("c")
    with pytest.raises(ValueError, match='feature "b"'):  # 2**32 would be row 0 in 32 bits.
        layer({"a": np.array([1]), "b": np.array([2**32])})
    with pytest.raises(ValueError, match="`projection_learning_rate_multiplier`"):
        EmbeddingCollection(layer.features, 4, 5, projection_learning_rate_multiplier=float("inf"))


@tensorflow_only
def test_row_gradients_have_no_row_twice():
    import tensorflow as tf

    layer = built(MIXED, 4, 5, deduplicate=True)
    ids = tf.constant(random_ids(MIXED, 50))

    @tf.function
    def rows():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids))
        return [g.indices for g in tape.gradient(loss, [table.value for table in layer.tables])]

    noted = []
    for table, indices in zip(layer.tables, rows(), strict=True):
        unique = len(set(indices.numpy())) == len(indices)
        # A promise must hold; where features project shared rows in two ways, none is made.
        assert unique or not table.mlet_unique_slices
        noted.append(table.mlet_unique_slices)
    assert noted.count(False) == 1


@tensorflow_only
def test_fused_lookup_costs_one_gather_for_each_variable():
    import tensorflow as tf

    features = [EmbeddingFeature(f"c{i}", 50 + i) for i in range(8)]
    layer = built(features, 4, 5)
    graph = tf.function(layer).get_concrete_function(tf.TensorSpec((None, 8), tf.int64)).graph
    types = [op.type for op in graph.get_operations()]
    assert types.count("ResourceGather") == len(layer.tables) == 1
    assert types.count("Unique") == 1


@tensorflow_only
@pytest.mark.parametrize("deduplicate", [True, False])
def test_sparse_ids(to_numpy, deduplicate):
    """A bag has the ids that are there, as a ragged one; elsewhere 0 is read where nothing is, as Keras does."""
    import tensorflow as tf

    features = [EmbeddingFeature("site", 30), EmbeddingFeature("tags", 20, combiner="mean")]
    layer = built(features, 4, 5, deduplicate=deduplicate)
    matrix = np.array([[7, 3], [0, 4], [2, 0]])
    sparse = tf.sparse.from_dense(matrix)
    np.testing.assert_allclose(layer(sparse), layer(matrix), atol=1e-6)
    tags = tf.SparseTensor([[0, 1], [0, 0], [2, 4]], [9, 0, 5], [3, 6])  # Not in order, and one of id 0.
    site = tf.sparse.from_dense(matrix[:, :1])
    inputs = {"site": site, "tags": tags}
    expected = layer({"site": matrix[:, 0], "tags": tf.ragged.constant([[9, 0], [], [5]], tf.int64)})
    np.testing.assert_allclose(layer(inputs), expected, atol=1e-6)
    np.testing.assert_allclose(tf.function(layer)(inputs), expected, atol=1e-6)
    with pytest.raises(ValueError, match="'site' should have one id a row"):
        layer({"site": tags, "tags": tags})
