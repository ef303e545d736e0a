"""Row stores: how far a value may be off, layers of one feature, and shapes of ids."""

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlet_tf.embeddings import Band, FeaturePlan, Plan, ServedTable, TrainedTable
from mlet_tf.errors import InputError

ON_TORCH = keras.backend.backend() == "torch"
DTYPES = ("float32", "float16", "bfloat16", *(() if ON_TORCH else ("float8",)), "int8", "int4", "columns")
STEPS = {"int8": 254, "int4": 15}


def written(table, store, block_rows=7, parts=None, **options):
    wide = table.shape[1] if store == "columns" else None
    band = Band(len(table), table.shape[1], store, parts=parts, wide=wide)
    layer = ServedTable(Plan(table.shape[1], (FeaturePlan("items", len(table), (band,)),)), **options)
    layer.build()
    layer.write(TrainedTable("items", len(table), lambda low, high: table[low:high]), block_rows)
    return layer


def numbers(tensor):
    return keras.ops.convert_to_numpy(tensor).astype("float64")


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


@pytest.mark.parametrize("store", STEPS)
@settings(max_examples=3 if keras.backend.backend() == "jax" else 25, deadline=None)
@given(table=tables(), block_rows=st.integers(1, 25))
def test_integer_rows_are_off_by_half_a_step_at_most(store, table, block_rows):
    layer = written(table, store, block_rows)
    received = numbers(layer(np.arange(len(table))))
    scale = numbers(keras.ops.cast(layer.table.stores[0].scales_offsets, "float32"))[:, :1]
    rounding = 2.0**-22 * np.abs(table).max(axis=1, keepdims=True)
    assert (np.abs(received - table) <= scale / 2 + rounding).all()
    # A step is no longer than it has to be: the row's range, and what a bfloat16 offset is off by.
    reach = (table.max(1) - table.min(1)).astype("float64") / STEPS[store]
    offset = np.abs(table).max(1) * 2.0**-7 / STEPS[store]
    assert (scale[:, 0] <= 1.01 * (reach + offset)).all()
    constant = table.max(1) == table.min(1)
    np.testing.assert_allclose(received[constant], table[constant], rtol=2.0**-7 / STEPS[store])
    assert (received[(table == 0).all(1)] == 0).all()


@pytest.mark.skipif(ON_TORCH, reason="refused there")
@settings(max_examples=3 if keras.backend.backend() == "jax" else 25, deadline=None)
@given(tables())
def test_float8_values_keep_four_digits_or_a_share_of_the_largest(table):
    """Three bits after the leading one; below 2^-6 of the unit, steps of 2^-9 of it. Nothing overflows to NaN."""
    received = numbers(written(table, "float8")(np.arange(len(table))))
    unit = np.abs(table).max() / 448 * 2
    assert (np.abs(received - table) <= np.maximum(np.abs(table) * 2.0**-4, unit * 2.0**-10)).all()


@pytest.mark.parametrize(("dtype", "digits"), [("float16", 11), ("bfloat16", 8)])
def test_float_tables_are_rounded_to_the_nearest(dtype, digits):
    table = np.random.default_rng(0).normal(size=(50, 3)).astype("float32")
    received = numbers(written(table, dtype)(np.arange(50)))
    np.testing.assert_allclose(received, table, rtol=2.0**-digits)
    assert np.abs(received - table).max() > 0


def test_values_too_large_for_float16_are_refused_by_name():
    table = np.array([[1.0, 7e4]], "float32")
    with pytest.raises(InputError, match=r"Table items: .*65504.*float16.*Received: 70000"):
        written(table, "float16")
    for dtype in ("bfloat16", "int8"):
        np.testing.assert_allclose(numbers(written(table, dtype)(np.array([0]))), table, atol=300)


def test_up_to_256_distinct_rows_are_coded_exactly():
    generator = np.random.default_rng(0)
    distinct = generator.normal(size=(256, 6)).astype("float32")
    table = distinct[np.concatenate([np.arange(256), generator.integers(0, 256, 800)])]
    received = numbers(written(table, "pq", 100, parts=2)(np.arange(len(table))))
    np.testing.assert_allclose(received, table, atol=1e-6)


def test_frequent_rows_are_coded_better():
    """k-means weighted by counts: the same rows, once all alike and once with some that matter."""
    table = np.random.default_rng(0).normal(size=(3000, 4)).astype("float32")
    frequent = np.arange(3000) < 600
    losses = []
    for counts in (None, np.where(frequent, 1000, 1)):
        layer = written(table, "pq", parts=2)
        layer.write(TrainedTable("items", 3000, lambda low, high: table[low:high], counts))
        losses.append(np.square(numbers(layer(np.arange(3000))) - table).sum(1))
    assert losses[1][frequent].mean() < 0.9 * losses[0][frequent].mean()
    assert losses[1][~frequent].mean() > losses[0][~frequent].mean()


@pytest.mark.skipif(not ON_TORCH, reason="works elsewhere")
def test_torch_refuses_float8():
    with pytest.raises(ValueError, match="no rows in float8 on torch"):
        written(np.ones((3, 2), "float32"), "float8")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (0,), (3, 2), (0, 4)])
def test_batches_of_any_shape(dtype, shape):
    table = np.random.default_rng(0).normal(size=(9, 5)).astype("float32")
    layer = written(table, dtype, mask_zero=True)
    ids = np.random.default_rng(1).integers(0, 9, shape)
    outputs = keras.ops.convert_to_numpy(layer(ids))
    assert outputs.shape == (*shape, 5)
    np.testing.assert_allclose(outputs, table[ids], atol=0.2)
    assert (keras.ops.convert_to_numpy(layer.compute_mask(keras.ops.array(ids))) == (ids != 0)).all()


def test_ids_out_of_range_are_refused():
    layer = written(np.ones((4, 2), "float32"), "int8", name="items")
    with pytest.raises(ValueError, match=r'feature "items": expected 0 <= id < 4. Received: 4'):
        layer(np.array([3, 4]))


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="sparse tensors of TensorFlow")
def test_sparse_ids_are_read_as_keras_reads_them():
    import tensorflow as tf

    table = np.random.default_rng(0).normal(size=(9, 4)).astype("float32")
    ids = np.array([[1, 0, 3], [0, 2, 0]])
    received = written(table, "bfloat16", mask_zero=True)(tf.sparse.from_dense(ids))
    np.testing.assert_allclose(received, table[ids], atol=0.02)
