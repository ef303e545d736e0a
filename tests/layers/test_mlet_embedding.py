import subprocess
import sys
import textwrap
import tracemalloc

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.errors import InputError
from mlet_tf.layers import MLETEmbedding, variable_role

BACKEND = keras.backend.backend()
ON_TENSORFLOW = BACKEND == "tensorflow"
SLOW_TO_COMPILE = BACKEND == "jax"  # It compiles every operation for every shape.
tensorflow_only = pytest.mark.skipif(not ON_TENSORFLOW, reason="only TensorFlow updates tables by rows")
HALF = {"mixed_bfloat16": 2e-2, "mixed_float16": 4e-3, "float32": 1e-6}


def built(*args, **kwargs):
    layer = MLETEmbedding(*args, **kwargs)
    layer.build()
    return layer


@settings(max_examples=5 if SLOW_TO_COMPILE else 25)
@given(data=st.data())
def test_collapsed_layer_computes_the_same(data, to_numpy):
    rows = data.draw(st.integers(1, 40))
    chain = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    policy = data.draw(st.sampled_from(list(HALF)))
    layer = MLETEmbedding(
        rows,
        data.draw(st.integers(1, 7)),
        chain if len(chain) > 1 else chain[0],
        initialization=data.draw(st.sampled_from(["fixed_variance", "variance_preserving", "orthogonal"])),
        deduplicate=data.draw(st.sampled_from([None, True, False])),
        dtype=policy,
    )
    shape = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=3))
    ids = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, rows, shape)
    ids = ids.astype(data.draw(st.sampled_from(["int32", "int64", "float32", "uint8"])))
    outputs, expected = layer(ids), layer.collapse()(ids)
    assert tuple(outputs.shape) == (*shape, layer.output_dim) == layer.compute_output_shape(tuple(shape))
    assert keras.backend.standardize_dtype(outputs.dtype) == layer.compute_dtype
    scale = np.abs(layer.effective_table()).max()
    np.testing.assert_allclose(to_numpy(outputs), to_numpy(expected), atol=HALF[policy] * (1 + scale))


@settings(max_examples=3 if SLOW_TO_COMPILE else 8)
@given(deduplicate=st.booleans(), chain=st.sampled_from([(5,), (5, 4), (3, 6, 2)]), seed=st.integers(0, 99))
def test_gradients_are_those_of_the_explicit_product(gradients, deduplicate, chain, seed):
    rng = np.random.default_rng(seed)
    layer = built(11, 3, chain, deduplicate=deduplicate)
    ids = rng.integers(0, 11, (6, 4))
    upstream = rng.normal(size=(6, 4, 3)).astype("float32")
    table, *projections = [keras.ops.convert_to_numpy(v) for v in layer.trainable_variables]
    of_effective = np.zeros((11, 3))
    np.add.at(of_effective, ids, upstream)
    product = np.linalg.multi_dot([*projections, np.eye(3)])
    expected = [of_effective @ product.T]
    for i in range(len(projections)):
        before = np.linalg.multi_dot([np.eye(11), table, *projections[:i]])
        after = np.linalg.multi_dot([*projections[i + 1 :], np.eye(3), np.eye(3)])
        expected.append(before.T @ of_effective @ after.T)
    for received, wanted in zip(gradients(layer, ids, upstream), expected, strict=True):
        np.testing.assert_allclose(received, wanted, atol=1e-5)


def test_replaces_keras_embedding_in_a_functional_model(to_numpy):
    def head(embedding):
        inputs = keras.Input((7,), dtype="int32")
        return keras.Model(inputs, keras.layers.LSTM(3)(embedding(inputs)))

    keras.utils.set_random_seed(0)
    layer = MLETEmbedding(20, 4, 6, mask_zero=True)
    model = head(layer)
    reference = head(layer.collapse())
    reference.layers[-1].set_weights(model.layers[-1].get_weights())
    ids = np.random.default_rng(0).integers(0, 3, (5, 7))
    assert np.array_equal(layer.compute_mask(ids), ids != 0)
    np.testing.assert_allclose(to_numpy(model(ids)), to_numpy(reference(ids)), atol=1e-6)
    assert model.layers[1].output.shape == (None, 7, 4)


def test_weights_move_and_file_restores_everything(tmp_path):
    layer = MLETEmbedding(
        30,
        4,
        (8, 5),
        initialization="orthogonal",
        table_initializer="glorot_uniform",
        table_regularizer=keras.regularizers.L2(1e-3),
        projection_regularizer="l1",
        table_constraint="max_norm",
        projection_constraint=keras.constraints.NonNeg(),
        table_learning_rate_multiplier=0.5,
        projection_learning_rate_multiplier=2.0,
        mask_zero=True,
        oov="last",
        deduplicate=True,
        name="items",
    )
    model = keras.Sequential([keras.Input((3,)), layer, keras.layers.Flatten(), keras.layers.Dense(1)])
    before = [keras.ops.convert_to_numpy(v) for v in model.trainable_variables]
    model.compile(keras.optimizers.SGD(0.5), "mse")
    ids = np.random.default_rng(0).integers(0, 30, (64, 3))
    model.fit(ids, np.ones((64, 1)), verbose=0)
    for variable, old in zip(model.trainable_variables, before, strict=True):
        assert np.abs(keras.ops.convert_to_numpy(variable) - old).max() > 0
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert loaded.layers[0].get_config() == layer.get_config()
    np.testing.assert_allclose(loaded.predict(ids, verbose=0), model.predict(ids, verbose=0), atol=1e-6)


def test_regularizers_add_losses():
    layer = built(5, 2, 3, table_regularizer=keras.regularizers.L2(0.5))
    expected = 0.5 * (keras.ops.convert_to_numpy(layer.table) ** 2).sum()
    assert float(sum(layer.losses)) == pytest.approx(expected, rel=1e-5)


def test_factors_can_be_frozen_and_carry_roles_and_multipliers():
    layer = built(5, 2, (3, 4), projection_trainable=False, table_learning_rate_multiplier=3.0)
    assert [v.name for v in layer.trainable_variables] == ["table"]
    assert [variable_role(v) for v in layer.weights] == ["table", "projection", "projection"]
    assert [v.mlet_lr_multiplier for v in layer.weights] == [3.0, 1.0, 1.0]
    assert built(5, 2, 3, table_trainable=False).trainable_variables[0].name == "projection"
    dense = keras.layers.Dense(2, name="table")
    dense.build((None, 3))
    assert {variable_role(v) for v in dense.weights} == {"dense"}
    embedding = keras.layers.Embedding(3, 2)
    embedding.build()
    assert variable_role(embedding.weights[0]) == "table"


def test_spectrum_equals_that_of_the_effective_table():
    layer = built(300, 6, (9, 8))
    expected = np.linalg.svd(layer.effective_table().astype("float64"), compute_uv=False)
    np.testing.assert_allclose(layer.singular_values(), expected, rtol=1e-4)
    layer.table.assign(np.outer(np.arange(300), np.ones(9)))
    assert layer.effective_rank() == pytest.approx(1.0, abs=1e-4)
    assert len(built(2, 6, 8).singular_values()) == 2
    layer.table.assign(np.zeros((300, 9)))
    assert layer.effective_rank() == 0.0


def test_effective_table_does_not_depend_on_the_blocks():
    layer = built(103, 3, 5)
    whole = layer.effective_table()
    np.testing.assert_allclose(layer.effective_table(block_rows=10), whole, atol=1e-7)
    expected = keras.ops.convert_to_numpy(layer.table) @ keras.ops.convert_to_numpy(layer.projections[0])
    np.testing.assert_allclose(whole, expected, atol=1e-7)


def test_effective_table_needs_little_beside_the_result():
    layer = built(60_000, 16, 32)
    tracemalloc.start()
    try:
        table = layer.effective_table(block_rows=1000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.3 * table.nbytes


@pytest.mark.skipif(BACKEND == "jax", reason="arrays of JAX cannot be written in place")
def test_collapse_needs_little_beside_the_result():
    script = textwrap.dedent(
        """
        import resource
        from mlet_tf import MLETEmbedding

        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

        layer = MLETEmbedding(2_000_000, 16, 8)
        layer.build()
        before = peak()
        embedding = layer.collapse()
        print((peak() - before) / (2_000_000 * 16 * 4))
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(done.stdout.splitlines()[-1]) < 1.6


@tensorflow_only
def test_collapsed_table_is_not_copied_when_it_is_read():
    table = built(20, 4, 6).collapse().embeddings.value
    assert np.shares_memory(*(np.frombuffer(table.read_value(), "float32") for _ in range(2)))


@pytest.mark.parametrize("deduplicate", [True, False])
def test_a_single_id_has_one_vector(gradients, to_numpy, deduplicate):
    layer = built(20, 4, 6, deduplicate=deduplicate)
    outputs = to_numpy(layer(np.array(7)))
    assert outputs.shape == layer.compute_output_shape(()) == (4,)
    np.testing.assert_allclose(outputs, layer.effective_table()[7], atol=1e-6)
    of_table = gradients(layer, np.array(7), np.ones(4, "float32"))[0]
    assert np.flatnonzero(np.abs(of_table).sum(1)).tolist() == [7]


def test_ids_wider_than_int32_are_out_of_range(to_numpy):
    ids = np.array([3, 2**32 + 1])
    with pytest.raises(ValueError, match=r"items.*0 <= id < 20"):
        built(20, 4, 6, name="items")(ids)
    lenient = built(20, 4, 6, oov="last")
    unsigned = [] if BACKEND == "torch" else [ids.astype("uint64")]  # torch has no such tensors.
    for wide in (ids, ids - 2**33, *unsigned):
        np.testing.assert_allclose(to_numpy(lenient(wide))[1], lenient.effective_table()[19], atol=1e-6)


def test_collapse_leaves_the_layer_alone_and_refuses_nan():
    layer = built(10, 3, 5, name="items", mask_zero=True, dtype="mixed_bfloat16")
    before = [keras.ops.convert_to_numpy(v) for v in layer.weights]
    collapsed = layer.collapse()
    assert type(collapsed) is keras.layers.Embedding
    assert (collapsed.name, collapsed.mask_zero, collapsed.compute_dtype) == ("items", True, "bfloat16")
    collapsed.embeddings.assign(np.zeros((10, 3)))
    for variable, old in zip(layer.weights, before, strict=True):
        np.testing.assert_array_equal(keras.ops.convert_to_numpy(variable), old)
    layer.table.assign(np.full((10, 5), np.nan))
    with pytest.raises(InputError, match="items"):
        layer.collapse()


@pytest.mark.parametrize("bad", [-1, 10])
def test_ids_out_of_range(bad, to_numpy):
    ids = np.array([[3, bad]])
    strict = built(10, 3, 5, name="items")
    with pytest.raises(ValueError, match=f"items.*0 <= id < 10.*Received: {bad}"):
        strict(ids)
    lenient = built(10, 3, 5, oov="last")
    last = to_numpy(lenient(np.array([9])))[0]
    np.testing.assert_allclose(to_numpy(lenient(ids))[0, 1], last, atol=1e-6)
    compiled = None
    if ON_TENSORFLOW:
        import tensorflow as tf

        with pytest.raises(tf.errors.InvalidArgumentError, match=rf"items.*0 <= id < 10.*Received: {bad}"):
            tf.function(strict)(tf.constant(ids))
        compiled = tf.function(strict, jit_compile=True)(tf.constant(ids))
    elif BACKEND == "jax":
        import jax

        compiled = jax.jit(strict)(ids)
    if compiled is not None:
        assert np.array_equal(np.isnan(to_numpy(compiled)).any(-1), [[False, True]])


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_dim": 0}, "`input_dim`"),
        ({"output_dim": 2.5}, "`output_dim`"),
        ({"hidden_dim": []}, "`hidden_dim`"),
        ({"hidden_dim": (4, -1)}, "`hidden_dim`"),
        ({"hidden_dim": True}, "`hidden_dim`"),
        ({"hidden_dim": 6.0}, "`hidden_dim` should be .* Received: 6.0"),
        ({"table_learning_rate_multiplier": -1}, "`table_learning_rate_multiplier` .* Received: -1"),
        ({"projection_learning_rate_multiplier": float("nan")}, "`projection_learning_rate_multiplier`"),
        ({"projection_learning_rate_multiplier": "1"}, "`projection_learning_rate_multiplier`"),
        ({"initialization": "xavier"}, "fixed_variance, variance_preserving, orthogonal"),
        ({"oov": "zero"}, "`oov`"),
    ],
)
def test_wrong_arguments_are_named(changed, message):
    with pytest.raises(ValueError, match=message):
        MLETEmbedding(**{"input_dim": 5, "output_dim": 2, "hidden_dim": 3, **changed})
    with pytest.raises(ValueError, match="no weights yet"):
        MLETEmbedding(5, 2, 3).effective_table()


@tensorflow_only
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
@pytest.mark.parametrize("deduplicate", [True, False])
def test_no_step_reads_the_whole_table(policy, deduplicate):
    import tensorflow as tf

    layer = built(1000, 4, 8, deduplicate=deduplicate, dtype=policy)

    @tf.function
    def step(ids):
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(layer(ids))
        gradient = tape.gradient(loss, layer.table.value)
        assert isinstance(gradient, tf.IndexedSlices)
        return gradient.values, gradient.indices

    ids = np.array([7, 7, 3])
    graph = step.get_concrete_function(tf.constant(ids)).graph
    captured = {id(inner) for outer, inner in graph.captures if outer is layer.table.value.handle}
    readers = {op.type for op in graph.get_operations() if any(id(x) in captured for x in op.inputs)}
    assert "ResourceGather" in readers
    assert "ReadVariableOp" not in readers
    rows = step(tf.constant(ids))[1].numpy()
    assert sorted(rows) == ([3, 7] if deduplicate else [3, 7, 7])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_gradients_of_a_frequent_id_are_whole_in_half_precision(policy, gradients):
    ids, ones = np.zeros(8192, "int64"), np.ones((8192, 2), "float32")
    half, whole = (built(10, 2, 4, deduplicate=True, dtype=dtype) for dtype in (policy, "float32"))
    half.set_weights(whole.get_weights())
    for received, expected in zip(gradients(half, ids, ones), gradients(whole, ids, ones), strict=True):
        np.testing.assert_allclose(received, expected, rtol=2e-2, atol=2e-2 * np.abs(expected).max())


@tensorflow_only
def test_note_on_unique_rows_holds_for_a_single_lookup_only():
    import tensorflow as tf

    layer = built(50, 4, 8, deduplicate=True)
    ids = tf.constant([1, 1, 2])
    tf.function(lambda: layer(ids)).get_concrete_function()
    assert layer.table.mlet_unique_slices and layer.table.value.mlet_unique_slices
    tf.function(lambda: layer(ids) + layer(ids)).get_concrete_function()
    assert not layer.table.mlet_unique_slices
    tf.function(lambda: layer(ids)).get_concrete_function()
    assert layer.table.mlet_unique_slices
    layer(ids)
    assert not layer.table.mlet_unique_slices


@tensorflow_only
def test_ragged_ids():
    import tensorflow as tf

    layer = built(50, 4, 8)
    ids = tf.ragged.constant([[1, 2, 3], [], [4]])
    outputs = layer(ids)
    assert outputs.row_lengths().numpy().tolist() == [3, 0, 1]
    np.testing.assert_allclose(outputs.flat_values, layer(np.array([1, 2, 3, 4])), atol=1e-7)


@tensorflow_only
def test_ragged_ids_may_have_a_mask():
    import tensorflow as tf

    layer = built(50, 4, 8, mask_zero=True)
    rows = [[1, 0, 3], [], [0]]
    outputs = layer(tf.ragged.constant(rows))
    mask = layer.compute_mask(tf.ragged.constant(rows))
    assert mask.to_list() == [[True, False, True], [], [False]]
    np.testing.assert_allclose(outputs.flat_values, layer(np.array([1, 0, 3, 0])), atol=1e-7)
    inputs = keras.Input((None,), ragged=True, dtype="int64")
    model = keras.Model(inputs, layer(inputs))
    np.testing.assert_allclose(model(tf.ragged.constant(rows)).flat_values, outputs.flat_values, atol=1e-7)


@tensorflow_only
@pytest.mark.parametrize("deduplicate", [True, False])
def test_ids_of_unknown_rank(deduplicate):
    import tensorflow as tf

    layer = built(50, 4, 8, deduplicate=deduplicate)
    traced = tf.function(layer, input_signature=[tf.TensorSpec(None, tf.int64)])
    for ids in (np.array([[4, 5, 4]]), np.array([3])):
        np.testing.assert_allclose(traced(tf.constant(ids)), layer.effective_table()[ids], atol=1e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no sparse tensors on torch")
def test_sparse_ids_are_read_as_keras_reads_them(to_numpy):
    """Where nothing is, `keras.layers.Embedding` reads row 0."""
    dense = np.array([[1, 0, 3], [0, 2, 0]])
    layer = built(9, 4, 6)
    sparse = sparse_of(dense)
    expected = to_numpy(layer.collapse()(sparse))
    np.testing.assert_allclose(to_numpy(layer(sparse)), expected, atol=1e-6)
    np.testing.assert_allclose(to_numpy(layer(dense)), expected, atol=1e-6)
    if ON_TENSORFLOW:
        inputs = keras.Input((3,), sparse=True, dtype="int64")
        model = keras.Model(inputs, built(9, 4, 6, mask_zero=True)(inputs))
        assert model(sparse).shape == (2, 3, 4)
        with pytest.raises(ValueError, match="0 <= id < 9"):
            layer(sparse_of(dense * 5))


def sparse_of(dense):
    if ON_TENSORFLOW:
        import tensorflow as tf

        return tf.sparse.from_dense(dense.astype("int64"))
    from jax.experimental.sparse import BCOO

    return BCOO.fromdense(dense)
