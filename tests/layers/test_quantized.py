import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.errors import InputError
from mlet_tf.layers import EmbeddingCollection, EmbeddingFeature
from mlet_tf.layers.quantized import QuantizedEmbedding, QuantizedEmbeddingCollection

DTYPES = ("float16", "bfloat16", "int8")
FEATURES = [
    EmbeddingFeature("site", 40),
    EmbeddingFeature("device", 4),
    EmbeddingFeature("app", 30, combiner="mean", table="apps"),
    EmbeddingFeature("seen", 30, combiner="sum", table="apps"),
]


def quantized(table, dtype, block_rows=7, **options):
    layer = QuantizedEmbedding(*table.shape, dtype, **options)
    layer.build()
    layer.write("items", lambda: (table[i : i + block_rows] for i in range(0, len(table), block_rows)))
    return layer


def collections(dtype, oov="error", **options):
    """A direct collection and its quantised form, whose tables are nearly the same."""
    plain = EmbeddingCollection(FEATURES, 6, oov=oov, **options)
    plain.build()
    narrow = QuantizedEmbeddingCollection.from_config({**plain.get_config(), "table_dtype": dtype})
    narrow.build()
    narrow.write_quantized(plain, block_rows=11)
    return plain, narrow


@st.composite
def tables(draw):
    """Rows of all magnitudes, some of them constant or zero."""
    rows, width = draw(st.integers(1, 20)), draw(st.integers(1, 9))
    generator = np.random.default_rng(draw(st.integers(0, 999)))
    magnitude = 10.0 ** generator.uniform(-20, 20) * 10.0 ** generator.uniform(
        -draw(st.integers(0, 12)), 0, (rows, 1)
    )
    table = magnitude * (generator.normal(size=(rows, width)) + draw(st.sampled_from([0, 1, -300])))
    table[generator.random(rows) < 0.2] = 0.0
    constant = generator.random(rows) < 0.3
    table[constant] = table[constant, :1]
    return table.astype("float32")


@settings(max_examples=3 if keras.backend.backend() == "jax" else 40)
@given(tables(), st.integers(1, 25))
def test_int8_rows_are_off_by_half_a_step_at_most(table, block_rows):
    layer = quantized(table, "int8", block_rows)
    received = keras.ops.convert_to_numpy(layer(np.arange(len(table)))).astype("float64")
    scale = keras.ops.convert_to_numpy(layer.scales_offsets)[:, :1].astype("float64")
    unit = float(layer.unit)
    rounding = 2.0**-22 * np.abs(table).max(axis=1, keepdims=True)
    assert (np.abs(received - table) <= scale * unit / 2 + rounding).all()
    # A step is no longer than it has to be: the row's range in 254, and what a float16 offset is off by.
    reach = (table.max(1) - table.min(1)).astype("float64") / 254
    offset = np.abs(table).max(1) * 2.0**-11 / 127
    floor = np.abs(table).max() * 2.0**-38
    assert (scale[:, 0] * unit <= 1.002 * (reach + offset) + floor).all()
    constant = table.max(1) == table.min(1)
    np.testing.assert_allclose(received[constant], table[constant], rtol=3e-6, atol=floor)
    assert (received[(table == 0).all(1)] == 0).all()


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_float_tables_are_rounded_to_the_nearest(dtype, digits):
    table = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    received = keras.ops.convert_to_numpy(quantized(table, dtype)(np.arange(50)))
    assert received.dtype == "float32"
    np.testing.assert_allclose(received, table, rtol=2.0**-digits)
    assert np.abs(received - table).max() > 0


def test_values_too_large_for_float16_are_refused_by_name():
    table = np.array([[1.0, 7e4]], "float32")
    with pytest.raises(InputError, match=r"Table items: .*65504.*float16.*Received: 70000"):
        quantized(table, "float16")
    for dtype in ("bfloat16", "int8"):
        received = keras.ops.convert_to_numpy(quantized(table, dtype)(np.array([0])))
        np.testing.assert_allclose(received, table, atol=300)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (0,), (3, 2), (0, 4)])
def test_batches_of_any_shape(dtype, shape):
    table = np.random.default_rng(0).normal(size=(9, 5)).astype("float32")
    layer = quantized(table, dtype, mask_zero=True)
    ids = np.random.default_rng(1).integers(0, 9, shape)
    outputs = keras.ops.convert_to_numpy(layer(ids))
    assert outputs.shape == (*shape, 5)
    np.testing.assert_allclose(outputs, table[ids], atol=0.02)
    assert (keras.ops.convert_to_numpy(layer.compute_mask(keras.ops.array(ids))) == (ids != 0)).all()


def test_rows_take_the_bytes_that_are_told():
    for dtype, size in (("float16", 16), ("bfloat16", 16), ("int8", 12)):
        layer = quantized(np.ones((5, 8), "float32"), dtype)
        assert layer.row_bytes == size
        itemsizes = {"float16": 2, "bfloat16": 2, "int8": 1}
        per_row = [w for w in layer.weights if len(w.shape) == 2]
        assert sum(w.shape[1] * itemsizes[keras.backend.standardize_dtype(w.dtype)] for w in per_row) == size
        assert not layer.trainable_weights


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [0, 1, 5, 300])
def test_collection_answers_as_the_collapsed_one(dtype, rows, to_numpy):
    plain, narrow = collections(dtype)
    generator = np.random.default_rng(rows)
    ids = generator.integers(0, [f.input_dim for f in FEATURES], (rows, len(FEATURES)))
    received, expected = to_numpy(narrow(ids)), to_numpy(plain(ids))
    assert received.shape == (rows, len(FEATURES), 6)
    np.testing.assert_allclose(received, expected, atol=4e-3)
    for feature in FEATURES[:2]:
        np.testing.assert_allclose(
            narrow.effective_table(feature.name), plain.effective_table(feature.name), atol=4e-3
        )
    if rows:
        assert np.abs(received - expected).max() > 0
        bags = {f.name: ids[:, [i] * 3] if f.combiner else ids[:, i] for i, f in enumerate(FEATURES)}
        bags["app"][0] = -1  # An empty bag.
        np.testing.assert_allclose(to_numpy(narrow(bags)), to_numpy(plain(bags)), atol=1.2e-2)
        assert (to_numpy(narrow(bags))[0, 2] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_out_of_range_ids_do_what_they_did(dtype, to_numpy):
    ids = np.array([[40, 0, 0, 0], [0, -1, 0, 0]])
    for layer in collections(dtype):
        with pytest.raises(ValueError, match=r'feature "site".*0 <= id < 40.*Received: 40'):
            layer(ids)
    plain, narrow = collections(dtype, oov="last")
    np.testing.assert_allclose(to_numpy(narrow(ids)), to_numpy(plain(ids)), atol=4e-3)
    np.testing.assert_allclose(
        to_numpy(narrow(ids)), to_numpy(narrow(np.array([[39, 0, 0, 0], [0, 3, 0, 0]]))), atol=1e-6
    )


def test_large_collections_keep_their_parts_apart(to_numpy):
    plain, narrow = collections("int8", max_rows_per_table=45)
    assert [table.shape for table in narrow.tables] == [(44, 6), (30, 6)]
    ids = np.array([[39, 3, 29, 0], [0, 0, 0, 29]])
    np.testing.assert_allclose(to_numpy(narrow(ids)), to_numpy(plain(ids)), atol=4e-3)


def test_configuration_errors():
    with pytest.raises(
        ValueError, match=r"`table_dtype` should be one of float16, bfloat16, int8. Received: 'int4'"
    ):
        QuantizedEmbedding(4, 2, "int4")
    with pytest.raises(ValueError, match=r"should be direct"):
        QuantizedEmbeddingCollection(FEATURES[:1], 2, hidden_dim=8)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sparse tensors of TensorFlow")
def test_sparse_ids_are_read_as_keras_reads_them():
    import tensorflow as tf

    table = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
    ids = np.array([[1, 0, 3], [0, 2, 0]])
    received = quantized(table, "bfloat16", mask_zero=True)(tf.sparse.from_dense(ids))
    np.testing.assert_allclose(received, table[ids], atol=0.02)
